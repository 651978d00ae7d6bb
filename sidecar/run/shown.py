"""Answers to a login as anybody may read them: their structure, and of their values what cannot be a secret."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from sidecar.auth.grant import JAR
from sidecar.policy.message import Fields, value_of

STARS = "***"
_LONGEST = 2000
"""Characters of a body."""
_PLAIN = frozenset({"content-length", "content-type", "date", "retry-after"})
"""Fields whose values are shown; of all others, but for Location, the names."""
_SENSITIVE = re.compile(
    r"token|secret|session|passw|pwd|credential|cookie|ticket|jwt|assertion|signature|nonce|csrf|xsrf|"
    r"(^|[^a-z])(key|sid|pin|otp|auth|lt|code_verifier)$|(api|access|private).?key",
    re.IGNORECASE,
)
_TOLD = re.compile(r"(type|expires|_in|count|limit)$", re.IGNORECASE)
"""What is told of a secret, and is none."""
_OPAQUE = re.compile(r"(?=\S*[0-9])\S{8,}|[A-Za-z]{20,}")
"""What looks like a session or a token in a sentence."""
_LEAST = 3


def without(text: str, hidden: Iterable[str]) -> str:
    """Return *text* with stars for each of *hidden*, in whatever case, as it is and as URLs and JSON write it."""
    words = {form for word in hidden if len(word) >= _LEAST for form in _forms(word)}
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(re.escape(word), STARS, text, flags=re.IGNORECASE)
    return text


def texts_of(name: str, value: str) -> Iterator[str]:
    """Yield what is secret in the value *name* of a credential: of a jar the cookies' values, else all texts in it."""
    try:
        told = json.loads(value)
    except ValueError:
        told = value
    yield from _strings([cookie[1] for cookie in told] if name == JAR else told)


def cookie_values(fields: Fields) -> Iterator[str]:
    """Yield the values of the cookies that an answer sets."""
    for name, value in fields:
        if name.lower() == b"set-cookie":
            yield value.partition(b";")[0].rpartition(b"=")[2].decode("latin-1").strip()


def answer_lines(fields: Fields, body: bytes, hidden: Iterable[str]) -> Iterator[str]:
    """Yield the fields of an answer, and its body if that is JSON or XML; of any other how long it is."""
    words = list(hidden)
    for name, value in fields:
        shown, text = name.decode("latin-1"), value.decode("latin-1")
        if shown.lower() in _PLAIN:
            yield f"{shown}: {without(text, words)}"
        elif shown.lower() == "location":
            yield f"{shown}: {without(re.split('[;?#]', text)[0], words)}"
        elif shown.lower() == "set-cookie":
            cookie, equals, _ = text.partition(";")[0].partition("=")
            yield f"{shown}: {cookie.strip() if equals else ''}={STARS}"
        else:
            yield f"{shown}: {STARS}"
    if body:
        kind = (value_of(fields, b"content-type") or b"no type").decode("latin-1").partition(";")[0]
        readable = _readable(body, words)
        if readable is None:
            yield f"{len(body)} bytes of {kind}"
        else:
            yield readable[:_LONGEST] + (" ..." if readable[_LONGEST:] else "")


def _readable(body: bytes, hidden: list[str]) -> str | None:
    try:
        document = json.loads(body)
        if isinstance(document, dict | list):
            return json.dumps(_masked(document, "", hidden), ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    try:
        root = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, RecursionError, LookupError):
        return None
    return None if "html" in _local(root.tag).lower() else _element(root, hidden)


def _masked(value: Any, name: str, hidden: list[str]) -> Any:
    if isinstance(value, dict):
        return {without(key, hidden): _masked(each, f"{name}/{key}", hidden) for key, each in value.items()}
    if isinstance(value, list):
        return [_masked(each, name, hidden) for each in value]
    if value is None or isinstance(value, bool):
        return value
    shown = _leaf(str(value), name, hidden)
    return value if shown == str(value) else shown


def _element(element: Element, hidden: list[str]) -> str:
    name = _local(element.tag)
    inner = "".join(_element(each, hidden) for each in element)
    inner = inner or _leaf((element.text or "").strip(), name, hidden)
    attributes = "".join(f' {_local(key)}="{_leaf(text, _local(key), hidden)}"' for key, text in element.attrib.items())
    return f"<{name}{attributes}>{inner}</{name}>"


def _leaf(text: str, name: str, hidden: list[str]) -> str:
    from sidecar.auth.recipes.words import is_plain  # late: it brings the recipes' libraries

    if not text:
        return ""
    if (_SENSITIVE.search(name) and not _TOLD.search(name)) or without(text, hidden) != text:
        return STARS
    if " " in text.strip():
        return _OPAQUE.sub(STARS, text)
    return text if is_plain(text) else STARS


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)
    elif isinstance(value, str):
        yield value


def _forms(word: str) -> set[str]:
    return {word, quote(word, safe=""), quote_plus(word), json.dumps(word)[1:-1]}
