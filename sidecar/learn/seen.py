"""One request and its answer as they were seen, and every value in them with its place: a pure function of bytes."""

import json
import math
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

Pairs = tuple[tuple[str, str], ...]
Kind = Literal["header", "cookie", "query", "json", "form", "xml", "html", "user", "password"]
"""`user` and `password`: those of HTTP Basic. `html`: a hidden field or a meta tag."""

_INPUT = re.compile(r"<(?:input|meta)\b[^>]*>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([a-zA-Z-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_MEMBERS = re.compile(r"member\[name='(\w+)'\]")
_DEEPEST = 20
_MOST = 2000


@dataclass(frozen=True, slots=True)
class Seen:
    """A request and its answer, codings undone; a body is None where it was not looked at. All of it may be secret."""

    method: str
    url: str = field(repr=False)
    fields: Pairs = field(repr=False)
    body: bytes | None = field(repr=False)
    status: int
    answer_fields: Pairs = field(repr=False)
    answer_body: bytes | None = field(repr=False)

    @property
    def path(self) -> str:
        """The path, percent-decoded."""
        return unquote(urlsplit(self.url).path)

    @property
    def is_read(self) -> bool:
        """Whether the method says that nothing is changed."""
        return self.method in ("GET", "HEAD")


class Datum(NamedTuple):
    """A text in a message, and its place: a name, a pointer or a path of ElementTree."""

    kind: Kind
    name: str
    text: str

    @property
    def last(self) -> str:
        """The last part of the name; of a member of XML-RPC its own."""
        if self.kind == "xml" and (members := _MEMBERS.findall(self.name)):
            return str(members[-1])
        return re.split(r"[/.]", self.name.rstrip("/"))[-1] if self.kind in ("json", "xml") else self.name


def field_of(pairs: Pairs, name: str) -> str:
    """Return the value of the first field called *name*, empty if there is none."""
    return next((value for key, value in pairs if key.lower() == name.lower()), "")


def shown(seen: Seen) -> list[Datum]:
    """Return what the request shows: fields, cookies, query, and the leaves of its body."""
    found: list[Datum] = []
    for name, value in seen.fields:
        if name.lower() == "cookie":
            pairs = (each.strip().partition("=") for each in value.split(";"))
            found += [Datum("cookie", key, word.strip('"')) for key, _, word in pairs if key]
        elif (pair := basic_of(name, value)) is not None:
            found += [Datum("user", "username", pair[0]), Datum("password", "password", pair[1])]
        else:
            found.append(Datum("header", name, value))
    found += [Datum("query", *pair) for pair in parse_qsl(urlsplit(seen.url).query, keep_blank_values=True)]
    return found + list(_body(seen.body, seen.fields, form=True))


def told(seen: Seen) -> list[Datum]:
    """Return what the answer tells: the leaves of its body, fields, cookies, and hidden fields of a page."""
    found = list(_body(seen.answer_body, seen.answer_fields, form=False))
    found += [Datum("header", *pair) for pair in seen.answer_fields if pair[0].lower() != "set-cookie"]
    found += [Datum("cookie", *pair) for pair in cookies_set(seen)]
    if "html" in field_of(seen.answer_fields, "content-type").lower():
        found += _hidden(text_of(seen.answer_body))
    return found


def cookies_set(seen: Seen) -> list[tuple[str, str]]:
    """Return names and values of the cookies that the answer sets; those it takes away are none."""
    found: list[tuple[str, str]] = []
    for name, value in seen.answer_fields:
        if name.lower() == "set-cookie":
            key, _, word = value.partition(";")[0].partition("=")
            if key.strip() and word.strip():
                found.append((key.strip(), word.strip().strip('"')))
    return found


def basic_of(name: str, value: str) -> tuple[str, str] | None:
    """Return user and password of a field of HTTP Basic (RFC 7617), None if it is none."""
    scheme, _, coded = value.partition(" ")
    if name.lower() != "authorization" or scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(coded, validate=True).decode().partition(":")
    except ValueError:
        return None
    return (user, password) if colon else None


def document_of(body: bytes | None) -> Any:
    """Return the JSON object or list of *body*, None if it is none."""
    try:
        # What JSON does not have, no recipe can write.
        found = json.loads(body or b"", parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def element_of(body: bytes | None) -> Element | None:
    """Return the root of the XML of *body*, None if it is none."""
    if body is None or not body.lstrip().startswith(b"<"):
        return None
    try:
        return fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, RecursionError, LookupError):
        return None


def form_of(body: bytes | None, fields: Pairs) -> Pairs | None:
    """Return names and values of a form in order, None if *body* is none."""
    if "x-www-form-urlencoded" not in field_of(fields, "content-type").lower():
        return None
    try:
        return tuple(parse_qsl(text_of(body), keep_blank_values=True, max_num_fields=_MOST))
    except ValueError:
        return None


def text_of(body: bytes | None) -> str:
    """Return *body* as text; what is not UTF-8 is replaced."""
    return (body or b"").decode("utf-8", "replace")


def local(tag: str) -> str:
    """Return the name of an element without its namespace."""
    return tag.rpartition("}")[2]


def pointed(above: str, name: object) -> str:
    """Return the pointer to the member *name* below *above* (RFC 6901)."""
    return f"{above}/{str(name).replace('~', '~0').replace('/', '~1')}"


def word_of(value: Any) -> str | None:
    """Return the scalar *value* as it stands in a text, None for what is no scalar worth following."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value)


def _body(body: bytes | None, fields: Pairs, *, form: bool) -> Iterator[Datum]:
    if not body:
        return
    if form and (pairs := form_of(body, fields)) is not None:
        yield from (Datum("form", *pair) for pair in pairs)
    elif (document := document_of(body)) is not None:
        yield from _json_leaves(document, "", _DEEPEST)
    elif (root := element_of(body)) is not None and "html" not in local(root.tag).lower():
        yield from _xml_leaves(root, ".", _DEEPEST)
        if form:  # of a request: what it shows is a template, also there
            for each in list(root.iter())[:_MOST]:
                yield from (Datum("xml", f"@{local(name)}", value) for name, value in each.attrib.items())


def _json_leaves(value: Any, above: str, deepest: int) -> Iterator[Datum]:
    if (word := word_of(value)) is not None:
        yield Datum("json", above, word)
    elif deepest and isinstance(value, dict | list):
        for name, each in list(value.items() if isinstance(value, dict) else enumerate(value))[:_MOST]:
            yield from _json_leaves(each, pointed(above, name), deepest - 1)


def _xml_leaves(element: Element, above: str, deepest: int) -> Iterator[Datum]:
    if not len(element) and (element.text or "").strip():
        yield Datum("xml", above, (element.text or "").strip())
    for child in list(element)[:_MOST] if deepest else ():
        member = _member_of(child)
        step = f"member[name='{member}']" if member else local(child.tag)
        for leaf in _xml_leaves(child, f"{above}/{step}", deepest - 1):
            if not (member and leaf.name.endswith(f"{step}/name")):
                yield leaf


def _member_of(element: Element) -> str:
    """Return the name of a member of an XML-RPC struct, "" for what is none."""
    name = element.findtext("name") or ""
    return name if local(element.tag) == "member" and re.fullmatch(r"\w+", name) else ""


def _hidden(page: str) -> Iterator[Datum]:
    for tag in _INPUT.findall(page):
        given = {name.lower(): unescape(one or other) for name, one, other in _ATTRIBUTE.findall(tag)}
        value = given.get("value") or given.get("content")
        if value and given.get("name") and (given.get("type", "hidden").lower() == "hidden"):
            yield Datum("html", given["name"], value)
