"""A request that was seen as a step of a recipe, and its answer as the reply of a shim."""

import re
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from sidecar.learn.course import Course
from sidecar.learn.names import Names
from sidecar.learn.seen import (
    Seen,
    Value,
    cookies_set,
    document_of,
    element_of,
    field_of,
    form_of,
    local,
    pointed,
    text_of,
    told,
    word_of,
)
from sidecar.learn.trace import Run

_LONGEST = 4096
"""Bytes of an answer that is repeated to scripts in full."""
_ENTITY = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"))
_MOVED = range(300, 400)
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[\w.+/=~!*|:-]{16,}")
_BRACES = frozenset("{}")
PLACEHOLDER = "{placeholder}"


def place_of(url: str, base: str) -> str:
    """Return *url* without its query as recipes write it."""
    plain = url.partition("?")[0]
    if plain == base or plain.startswith(base.rstrip("/") + "/"):
        return "{base}" + plain[len(base.rstrip("/")) :]
    parts = urlsplit(plain)
    return "{origin}" + parts.path


def step_of(course: Course, number: int, names: Names, base: str) -> dict[str, Any]:
    """Return the request *number* of *course* as a step; what it obtains is added when all requests are known."""
    run, seen = course.run, course.run.all[number]
    step: dict[str, Any] = {"request": f"{seen.method} {place_of(seen.url, base)}{_query(run, number, names)}"}
    headers = _headers(run, number, names)
    basic = [names.template(value, ()) for value in run.shown[number] if value.kind in ("user", "password")]
    body = body_of(run, number, names)
    if "text" in body and (kind := field_of(seen.fields, "content-type")):
        headers["Content-Type"] = kind
    if headers:
        step["headers"] = headers
    if basic:
        step["basic"] = basic
    return step | body


def body_of(run: Run, number: int, names: Names) -> dict[str, Any]:
    """Return the body of a request as the key of a step, none without one."""
    seen, uses = run.all[number], run.uses[number]

    def leaf(value: Any, pointer: str) -> Any:
        if isinstance(value, dict):
            return {name: leaf(each, pointed(pointer, name)) for name, each in value.items()}
        if isinstance(value, list):
            return [leaf(each, pointed(pointer, index)) for index, each in enumerate(value)]
        word = word_of(value)
        if word is None:
            return value
        place = Value("json", pointer, word)
        if isinstance(value, int):
            return names.number(place.last, value) if names.is_personal(place.last) else value
        return names.template(place, uses)

    if not seen.body:
        return {}
    if (pairs := form_of(seen.body, seen.fields)) is not None:
        return {"form": {name: names.template(Value("form", name, text), uses) for name, text in pairs}}
    if (document := document_of(seen.body)) is not None:
        return {"json": leaf(document, "")}
    return {"text": _text(run, number, names)}


def _text(run: Run, number: int, names: Names) -> str:
    text = text_of(run.all[number].body)
    for value in run.shown[number]:
        if value.kind == "xml" and value.text:
            template = names.template(value, run.uses[number])
            if template != value.text:
                written = escape(value.text)
                text = text.replace(f">{written}<", f">{template.replace('}', '|xml}')}<")
    return text


def _headers(run: Run, number: int, names: Names) -> dict[str, str]:
    return {
        value.name: names.template(value, run.uses[number])
        for value in run.shown[number]
        if value.kind == "header" and value.name.lower() != "cookie"
    }


def _query(run: Run, number: int, names: Names) -> str:
    query = urlsplit(run.all[number].url).query
    if not query:
        return ""
    for value in run.shown[number]:
        if value.kind == "query":
            template = names.template(value, run.uses[number])
            name, equals, text = next(
                (part.partition("=") for part in query.split("&") if part.partition("=")[0] == value.name), ("", "", "")
            )
            if template != value.text and text:
                query = query.replace(f"{name}{equals}{text}", f"{name}={template.replace('}', '|url}')}")
    return f"?{query}"


def source_of(origin: Value, answer: Seen) -> dict[str, Any]:
    """Return the source of a recipe that finds *origin* in *answer*."""
    if origin.kind == "html":
        name = re.escape(origin.name)
        return {"body": rf"""name=["']{name}["'][^>]*?(?:value|content)=["']([^"']+)["']"""}
    if origin.kind == "xml":
        last = origin.name.rpartition("/")[2]
        alike = [each for each in told(answer) if each.kind == "xml" and each.name.endswith(f"/{last}")]
        return {"xml": f".//{last}" if len(alike) == 1 else origin.name}
    return {origin.kind: origin.name}


def match_of(course: Course, number: int, base: str) -> dict[str, Any] | str:
    """Return what tells the request *number* from all others, as a match of a recipe."""
    seen = course.run.all[number]
    path = place_of(seen.url, base)
    others = [
        each
        for other, each in enumerate(course.run.all)
        if other != number and (each.method, each.path) == (seen.method, seen.path) and not _alike(each, seen)
    ]
    if not others:
        return f"{seen.method} {path}"
    match: dict[str, Any] = {"method": seen.method, "path": path}
    if (root := element_of(seen.body)) is not None:
        return match | {"body": rf"<([\w.-]+:)?{re.escape(operation(root))}[\s/>]"}
    for value in course.run.shown[number]:
        if value.kind in ("json", "form", "query", "header") and course.run.is_secret(value):
            return match | {value.kind: {value.name: {"regex": "."}}}
    return match


def operation(root: Any) -> str:
    """Return the name of what an XML request asks for: the first element of a SOAP body, else the root."""
    body = next((child for child in root if local(child.tag) == "Body"), None)
    first = next(iter(body), None) if body is not None else None
    return local((root if first is None else first).tag)


def _alike(one: Seen, other: Seen) -> bool:
    """Tell whether both ask for the same: repeated, or with other values of the same members."""
    roots = element_of(one.body), element_of(other.body)
    if roots[0] is not None and roots[1] is not None:
        return operation(roots[0]) == operation(roots[1])
    return one.url == other.url and one.body == other.body


def reply_of(course: Course, number: int, names: Names, base: str) -> dict[str, Any]:
    """Return the answer to the request *number* as a shim gives it: what shows a session is a placeholder in it."""
    seen = course.run.all[number]
    words = course.words()
    used = {use.origin.text for number in course.ordinary for use in course.run.uses[number]} - words
    paths = "\n".join(course.run.all[number].url for number in course.ordinary)

    def hidden(text: str) -> str:
        if text in words or text in names.secrets.values():
            return PLACEHOLDER
        if any(word in text for word in words):
            for word in words:
                text = text.replace(word, PLACEHOLDER)
            return text
        if _RANDOM.fullmatch(text) and "://" not in text and text not in used and text not in paths:
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
    return reply | _reply_body(seen, hidden)


def _reply_headers(seen: Seen, words: frozenset[str], base: str) -> dict[str, str]:
    found = {name: PLACEHOLDER for name, value in seen.answer_fields if value in words}
    location = field_of(seen.answer_fields, "location")
    if seen.status in _MOVED and location and not _BRACES & set(location):
        plain = location.partition("?")[0]
        found["Location"] = plain.replace(base.rstrip("/"), "{self}", 1) if plain.startswith(base) else plain
    return found


def _reply_body(seen: Seen, hidden: Any) -> dict[str, Any]:
    def leaf(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: leaf(each) for name, each in value.items() if not _BRACES & set(name)}
        if isinstance(value, list):
            return [leaf(each) for each in value[:100]]
        return hidden(value) if isinstance(value, str) else value

    body, kind = seen.answer_body or b"", field_of(seen.answer_fields, "content-type")
    if (document := document_of(body)) is not None:
        return {"json": leaf(document if len(body) <= _LONGEST else _top(document))}
    text = text_of(body)
    if not text.strip() or len(body) > _LONGEST or _BRACES & set(text):
        return {}
    for value in told(seen):
        if value.kind in ("xml", "html") and (changed := hidden(value.text)) != value.text:
            text = _within(text, value, changed)
    return ({"type": kind} if kind else {}) | {"text": text}


def _within(text: str, value: Value, changed: str) -> str:
    written = value.text
    for sign, entity in _ENTITY:
        written = written.replace(sign, entity)
    return text.replace(written, changed)


def _top(document: Any) -> Any:
    """Return the scalars of a document that is too long to be repeated."""
    if not isinstance(document, dict):
        return []
    return {name: value for name, value in document.items() if not isinstance(value, dict | list)}


def obtained(course: Course, number: int, names: Names) -> dict[str, Any]:
    """Return what the step *number* obtains, by name, with its sources."""
    answer = course.run.all[number]
    return {
        name: source_of(Value(kind, where, ""), answer)  # type: ignore[arg-type]
        for (source, kind, where), name in names.obtained.items()
        if source == number
    }
