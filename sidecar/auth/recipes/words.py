"""What an answer to a login says or lacks, in words; of its body no more than a code, or what a recipe asks for."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.matches import Message, compile_match
from sidecar.auth.recipes.templates import Lookup, Unset, names_in, render, text
from sidecar.settings.recipe import Match, Pattern

_CONSTANT = re.compile(r"[A-Z][A-Z_]*|-?[0-9]{1,9}")
_PIECE = re.compile(r"[A-Za-z]{0,11}[0-9]{0,2}|[0-9]{1,5}")
_LONGEST = 120
_WORD = re.compile(r"[\w. -]{1,60}")
_CODES = ("/errors/*/code", "/errors/*/type", "/error", "/code", "/.QName")
_FOUND: Mapping[str, Callable[[Message, str], Sequence[Any]]] = MappingProxyType(
    {
        "json": lambda message, where: message.document.json(where),
        "xml": lambda message, where: message.document.xml(where),
        "header": Message.header,
    }
)
_PUBLIC = frozenset({"base", "host", "origin"})
_FIELDS: Mapping[str, str] = MappingProxyType({"json": "json_"})


def parts(match: Match) -> Iterator[tuple[str, Match]]:
    """Yield each thing that *match* asks for, by its key, as a match of its own."""
    blank = {name: field.get_default() for name, field in Match.model_fields.items()}
    for name in Match.model_fields:
        value = getattr(match, name)
        if value == blank[name]:
            continue
        key = name.rstrip("_")
        if isinstance(value, Mapping):
            for each, wanted in value.items():
                yield f"{key} {each}", match.model_copy(update=blank | {name: {each: wanted}})
        else:
            yield key, match.model_copy(update=blank | {name: value})


def unmet(matches: Sequence[Match], message: Message, lookup: Lookup) -> str:
    """Return what the answer *message* lacks of the one of *matches* that is nearest to it; "" if one holds."""
    found = [[each for each in parts(match) if not _holds(each[1], message, lookup)] for match in matches]
    least = min(found, key=len, default=[])
    return "; ".join(f"{key}: {_expected(key, match, message, lookup)}" for key, match in least)


def _holds(match: Match, message: Message, lookup: Lookup) -> bool:
    try:
        return compile_match(match, lookup).holds(message, lookup)
    except Unset:
        return False


def _expected(key: str, match: Match, message: Message, lookup: Lookup) -> str:
    kind = key.partition(" ")[0]
    if kind == "status":
        return f"expected {', '.join(map(str, match.status))}, got {message.status}"
    if kind == "not" and match.not_ is not None:
        return "expected none with " + " and ".join(
            f"status {', '.join(map(str, each.status))}" if each.status else name for name, each in parts(match.not_)
        )
    if kind not in _FOUND:
        return f"expected {getattr(match, kind)}"
    places: Mapping[str, Any] = getattr(match, _FIELDS.get(kind, kind))
    ((where, wanted),) = places.items()
    got = _FOUND[kind](message, where)
    if isinstance(wanted, Pattern):
        return f"expected what matches {wanted.regex}, got {'another value' if got else 'nothing'}"
    choices = wanted if isinstance(wanted, tuple) else (wanted,)
    return f"expected {' or '.join(_wanted(each, lookup) for each in choices)}, got {_got(got)}"


def _wanted(value: Any, lookup: Lookup) -> str:
    if isinstance(value, Pattern):
        return f"what matches {value.regex}"
    if not isinstance(value, str) or not _PUBLIC.issuperset(names_in(value)):
        return value if isinstance(value, str) else text(value)  # as it is written: its names may be secret
    return text(render(value, lookup))


def _got(values: Sequence[Any]) -> str:
    """Return what an answer has where a recipe names a literal: a word of the vendor's, no secret."""
    if not values:
        return "nothing"
    shown = [text(value) if isinstance(value, str | int | float | bool | None) else "something" for value in values[:3]]
    return " and ".join(each if is_plain(each) else "another value" for each in shown)


def is_plain(text: str) -> bool:
    """Tell whether *text* is a word that can be read, a constant, a number or an address: no session, no token."""
    if _CONSTANT.fullmatch(text):
        return True
    pieces = re.split(r"[/.:_-]+|(?<=[a-z])(?=[A-Z])", text)
    return len(text) <= _LONGEST and all(_PIECE.fullmatch(piece) for piece in pieces)


def said(answer: Message, bound: Bound) -> str:
    """Return in brackets the vendor's code, where one stands in the usual places, else "".

    A code in which a secret of *bound* stands is none.
    """
    for pointer in _CODES:
        for value in answer.document.json(pointer):
            if isinstance(value, int | str) and _WORD.fullmatch(code := str(value)) and not bound.is_kept(code):
                return f" ({code})"
    return ""


def path_of(answer: Message) -> str:
    """Return the path that was asked for."""
    url = answer.request.url if answer.request else ""
    return "/" + url.partition("://")[2].partition("/")[2]
