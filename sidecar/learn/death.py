"""How a system says that a session is over: seen in the run, or provoked by a harmless request with a broken one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sidecar.learn.anatomy import Anatomy
from sidecar.learn.seen import Datum, Seen, field_of, told
from sidecar.learn.shims import called_in
from sidecar.learn.trace import Echo

_UNAUTHORIZED = 401
_GOOD = range(200, 300)
_MOVED = range(300, 400)
_CODES = re.compile(
    r"(code|errorcode|error_code|error|type|\.?qname|name|reason|faultcode|faultstring|exceptioncode|fault|exception)$",
    re.IGNORECASE,
)
_READS = re.compile(r"(get|load|find|list|search|query|describe|read|filter)", re.IGNORECASE)
_LONGEST = 200
_GET = "GET"


@dataclass(frozen=True, slots=True)
class Death:
    """How an answer tells that the session is over: *matches* of a recipe, and how that came to be known."""

    matches: list[dict[str, Any]]
    how: str


def seen_in(anatomy: Anatomy) -> Death | None:
    """Return the death that the run itself shows: a 401 to a request that showed the session; None if there is none."""
    for number in anatomy.ordinary:
        if anatomy.run.all[number].status == _UNAUTHORIZED and _session(anatomy, number):
            return Death([{"status": _UNAUTHORIZED}], "seen: a request with a session was answered 401")
    return None


def probe_of(anatomy: Anatomy) -> tuple[Seen, Seen] | None:
    """Return a harmless request of the run that succeeded, and the same with a broken session; None if there is none.

    Harmless is GET, or a request that is named for reading.
    """
    able = [number for number in anatomy.ordinary if _session(anatomy, number) and _is_good(anatomy.run.all[number])]
    reads = [number for number in able if anatomy.run.all[number].method == _GET]
    reads = reads or [number for number in able if _is_named_for_reading(anatomy.run.all[number])]
    reads.sort(key=lambda number: len(anatomy.run.all[number].answer_body or b""))
    if not reads:
        return None
    good = anatomy.run.all[reads[0]]
    words = sorted({echo.origin.text for echo in _session(anatomy, reads[0])}, key=len, reverse=True)
    return good, _broken(good, words)


def told_by(anatomy: Anatomy, good: Seen, answer: Seen, *, logged_out: bool = False) -> Death | None:
    """Return what *answer* says that *good* does not; None if nothing does.

    It is the answer to the same request, with a broken session, or with the one that was *logged_out*.
    """
    which = "with the session that was logged out" if logged_out else "with a broken session"
    how = f"provoked: {good.method} {good.path} {which} was answered {answer.status}"
    if answer.status == _UNAUTHORIZED:
        return Death([{"status": _UNAUTHORIZED}], how)
    if answer.status in _MOVED and (location := field_of(answer.answer_fields, "location")):
        place = re.sub(r"[{}]", "?", location.partition("?")[0])
        return Death([{"status": answer.status, "location": f"*{place}*"}], how)
    others = [each for each in anatomy.run.all if each.status == answer.status]
    known = {(value.kind, value.name, value.text) for each in others for value in told(each)}
    marks = [value for value in told(answer) if _is_mark(value) and (value.kind, value.name, value.text) not in known]
    called = called_in(good.body)
    match = _match(marks, called.name if called else "")
    if answer.status not in _GOOD and (match or not others):
        return Death([{"status": answer.status} | match], how)
    return Death([match], how) if match else None


def _is_named_for_reading(seen: Seen) -> bool:
    called = called_in(seen.body)
    name = seen.path.rpartition("/")[2] if called is None else called.name.rpartition(".")[2]
    return _READS.match(name) is not None


def _is_mark(value: Datum) -> bool:
    return (
        value.kind in ("json", "xml")
        and _CODES.search(value.last) is not None
        and len(value.text) <= _LONGEST
        and not set("{}") & set(value.text)
    )


def _match(marks: Sequence[Datum], called: str) -> dict[str, Any]:
    """Return a match of the first two of *marks* of one kind, none for none; what stands higher comes first.

    The name of what was *called* may be another.
    """
    if not marks:
        return {}
    kind = marks[0].kind
    chosen = sorted((value for value in marks if value.kind == kind), key=lambda value: value.name.count("/"))[:2]
    return {
        kind: {
            re.sub(r"/\d+(?=/|$)", "/*", value.name) if kind == "json" else value.name: _wanted(value.text, called)
            for value in chosen
        }
    }


def _wanted(text: str, called: str) -> Any:
    if not called or called not in text:
        return text
    return {"regex": f"^{'.*'.join(map(re.escape, text.split(called)))}$"}


def _session(anatomy: Anatomy, number: int) -> list[Echo]:
    """Return what the request shows of the session itself: what an answer to a request with a secret told."""
    run = anatomy.run
    echoes = [echo for echo in run.echoes[number] if echo.source in anatomy.steps]
    own = [echo for echo in echoes if echo.source == anatomy.login]
    return own or echoes


def _is_good(seen: Seen) -> bool:
    return seen.status in _GOOD and seen.answer_body is not None


def _broken(seen: Seen, words: Sequence[str]) -> Seen:
    url, fields, body = seen.url, seen.fields, seen.body
    for word in words:
        other = _turned(word)
        url = url.replace(word, other)
        fields = tuple((name, value.replace(word, other)) for name, value in fields)
        body = None if body is None else body.replace(word.encode(), other.encode())
    return replace(seen, url=url, fields=fields, body=body)


def _turned(word: str) -> str:
    """Return a text of the length and the letters of *word* that is another: what checks its form is content."""
    turned = "".join(
        chr((ord(char) - ord(first) + 1) % size + ord(first)) if first else char
        for char in word
        for first, size in [
            next(((a, n) for a, n in (("0", 10), ("a", 26), ("A", 26)) if _within(char, a, n)), ("", 1))
        ]
    )
    return turned if turned != word else word[::-1] + "x"


def _within(char: str, first: str, size: int) -> bool:
    return ord(first) <= ord(char) < ord(first) + size
