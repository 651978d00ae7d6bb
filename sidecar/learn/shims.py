"""What scripts are answered in the system's place: their logins, told from all else, and the answers that were seen."""

import re
from typing import Any, NamedTuple

from sidecar.learn.anatomy import Anatomy
from sidecar.learn.names import Names
from sidecar.learn.seen import Seen, cookies_set, document_of, element_of, field_of, local, text_of, told
from sidecar.learn.steps import in_xml, place_of, without_parameters

PLACEHOLDER = "{placeholder}"
_LONGEST = 4096
"""Bytes of an answer that is repeated to scripts in full."""
_MOVED = range(300, 400)
_SENSITIVE = re.compile(r"token|secret|session|refresh|key|passw|cookie|ticket|jwt|sid$|auth", re.IGNORECASE)
_HARMLESS = re.compile(r"[0-9]{0,5}|true|false|yes|no|ok|none|bearer|basic|jwt|.* .*", re.IGNORECASE | re.DOTALL)
"""What is told even under such a name: a flag, a count, a kind, a sentence."""
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[\w.+/=~!*|:-]{16,}")
_JWT = re.compile(r"eyJ[\w-]*\.[\w-]+\.[\w-]*")
_BRACES = frozenset("{}")
_CALLS = ("method", "operationName")
"""Members of a JSON body that say what is called."""


def shim_of(anatomy: Anatomy, names: Names, base: str, unseen: list[str]) -> list[dict[str, Any]]:
    """Return the shim of a recipe; what cannot be given to scripts is added to *unseen*."""
    numbers = [number for number in anatomy.steps if number not in anatomy.prepares and _answerable(anatomy, number)]
    if anatomy.logout is not None and anatomy.login is not None:
        numbers.append(anatomy.logout)
    found: list[dict[str, Any]] = [{"match": match_of(anatomy, number, base)} for number in numbers]
    if anatomy.nonce_step is not None and (fetch := _fetch(anatomy, anatomy.nonce_step, base, unseen)) is not None:
        numbers.append(anatomy.nonce_step)
        found.append({"match": fetch})
    for number, each in zip(numbers, found, strict=True):
        each["reply"] = reply_of(anatomy, number, names, base, unseen)
    return found


def _fetch(anatomy: Anatomy, number: int, base: str, unseen: list[str]) -> dict[str, Any] | str | None:
    """Return the match of the request that fetches a nonce; None if it cannot be told from others, or is data."""
    seen = anatomy.run.all[number]
    name = next(each.echo.place.name for each in anatomy.carried if each.nonce)
    if len(seen.answer_body or b"") > _LONGEST:
        unseen.append(f"how scripts get {name}: its answer is too long to be given here, and comes without it")
        return None
    asked = field_of(seen.fields, name)
    if asked and not _BRACES & set(asked):
        return {"method": seen.method, "path": place_of(seen.url, base), "header": {name: asked}}
    return match_of(anatomy, number, base) if _answerable(anatomy, number) else None


def _answerable(anatomy: Anatomy, number: int) -> bool:
    """Tell whether a step's answer can be given here: the login's is, and a small one that is no page."""
    seen = anatomy.run.all[number]
    if number == anatomy.login:
        return True
    page = "html" in field_of(seen.answer_fields, "content-type").lower()
    again = sum((each.method, each.path) == (seen.method, seen.path) for each in anatomy.run.all) > 1
    return not page and not again


def match_of(anatomy: Anatomy, number: int, base: str) -> dict[str, Any] | str:
    """Return what tells the request *number* from all others, as a match of a recipe."""
    seen = anatomy.run.all[number]
    path = place_of(seen.url, base)
    others = [
        each
        for other, each in enumerate(anatomy.run.all)
        if other != number and (each.method, each.path) == (seen.method, seen.path) and not _alike(each, seen)
    ]
    if not others:
        return f"{seen.method} {path}"
    match: dict[str, Any] = {"method": seen.method, "path": path}
    if (called := called_in(seen.body)) is not None:
        return match | called.match
    for value in anatomy.run.shown[number]:
        if value.kind in ("json", "form", "query", "header") and anatomy.run.is_secret(value):
            return match | {value.kind: {value.name: {"regex": "."}}}
    return match


class Called(NamedTuple):
    """What a request calls by a name in its body, where many have one address; *match*: how a recipe tells it."""

    name: str
    match: dict[str, Any]


def called_in(body: bytes | None) -> Called | None:
    """Return what *body* calls: in XML-RPC, SOAP (else the root), JSON-RPC and its kin; None: nothing is named."""
    if (root := element_of(body)) is not None:
        method = root.findtext("methodName")
        if local(root.tag) == "methodCall" and method:
            return Called(method, {"xml": {"methodName": method}})
        inside = next((child for child in root if local(child.tag) == "Body"), None)
        first = next(iter(inside), None) if inside is not None else None
        name = local((root if first is None else first).tag)
        return Called(name, {"body": rf"<([\w.-]+:)?{re.escape(name)}[\s/>]"})
    if isinstance(document := document_of(body), dict):
        for key in _CALLS:
            if isinstance(given := document.get(key), str) and given and not _BRACES & set(given):
                return Called(given, {"json": {f"/{key}": given}})
    return None


def _alike(one: Seen, other: Seen) -> bool:
    """Tell whether both ask for the same: repeated, or with other values of the same members."""
    calls = called_in(one.body), called_in(other.body)
    if calls[0] is not None and calls[1] is not None:
        return calls[0] == calls[1]
    return one.url == other.url and one.body == other.body


def reply_of(anatomy: Anatomy, number: int, names: Names, base: str, unseen: list[str]) -> dict[str, Any]:
    """Return the answer to the request *number* as a shim gives it: what shows a session is a placeholder in it.

    A body of which that cannot be told is left out, and *unseen* says so.
    """
    seen = anatomy.run.all[number]
    words = anatomy.words()
    used = {echo.origin.text for number in anatomy.ordinary for echo in anatomy.run.echoes[number]} - words
    paths = "\n".join(anatomy.run.all[number].url for number in anatomy.ordinary)

    def hidden(text: str, name: str) -> str:
        if text in words or text in names.secrets.values():
            # Some clients look into what they were given.
            return "{placeholder|jwt}" if _JWT.fullmatch(text) else PLACEHOLDER
        if any(word in text for word in words):
            for word in words:
                text = text.replace(word, PLACEHOLDER)
            return text
        likely = _RANDOM.fullmatch(text) or (_SENSITIVE.search(name) and not _HARMLESS.fullmatch(text))
        if likely and "://" not in text and text not in used and text not in paths:
            return PLACEHOLDER
        return "" if _BRACES & set(text) else names.masked(text)

    reply: dict[str, Any] = {}
    if seen.status != 200:  # noqa: PLR2004  the default of a reply
        reply["status"] = seen.status
    headers = _reply_headers(seen, words, base)
    if headers:
        reply["headers"] = headers
    if cookies := {name: PLACEHOLDER for name, _ in cookies_set(seen)}:
        reply["cookies"] = cookies
    if (given := _reply_body(seen, hidden)) is None:
        unseen.append(
            f"what {seen.method} {seen.path} is answered with: a text or page may hold secrets, and is left out"
        )
    reply |= given or {}
    asked, given = document_of(seen.body), reply.get("json")
    if isinstance(asked, dict) and isinstance(given, dict) and "id" in asked and given.get("id") == asked["id"]:
        given["id"] = "{request:/id}"  # JSON-RPC: clients look for their own
    return reply


def _reply_headers(seen: Seen, words: frozenset[str], base: str) -> dict[str, str]:
    found = {name: PLACEHOLDER for name, value in seen.answer_fields if value in words}
    location = field_of(seen.answer_fields, "location")
    if seen.status in _MOVED and location and not _BRACES & set(location):
        plain = without_parameters(location.partition("?")[0])
        found["Location"] = plain.replace(base.rstrip("/"), "{self}", 1) if plain.startswith(base) else plain
    return found


def _reply_body(seen: Seen, hidden: Any) -> dict[str, Any] | None:
    def leaf(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {name: leaf(each, name) for name, each in value.items() if not _BRACES & set(name)}
        if isinstance(value, list):
            return [leaf(each, name) for each in value[:100]]
        if isinstance(value, int) and not isinstance(value, bool) and hidden(str(value), "") == PLACEHOLDER:
            return PLACEHOLDER
        return hidden(value, name) if isinstance(value, str) else value

    body, kind = seen.answer_body or b"", field_of(seen.answer_fields, "content-type")
    if (document := document_of(body)) is not None:
        return {"json": leaf(document if len(body) <= _LONGEST else _top(document), "")}
    text = text_of(body)
    if not text.strip():
        return {}
    root = element_of(body)
    if (
        root is None
        or "html" in kind.lower()
        or local(root.tag).lower() == "html"
        or len(body) > _LONGEST
        or _BRACES & set(text)
    ):
        return None
    if any(hidden(value, local(name)) != value for each in root.iter() for name, value in each.attrib.items()):
        return None
    for value in told(seen):
        if value.kind == "xml" and (changed := hidden(value.text, value.last)) != value.text:
            before = text
            for spelled in in_xml(value.text):
                text = text.replace(f">{spelled}<", f">{changed}<")
            if text == before:
                return None
    return ({"type": kind} if kind else {}) | {"text": text}


def _top(document: Any) -> Any:
    """Return the scalars of a document that is too long to be repeated."""
    if not isinstance(document, dict):
        return []
    return {name: value for name, value in document.items() if not isinstance(value, dict | list)}
