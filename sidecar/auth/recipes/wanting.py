"""What an answer of a login says, and what it lacks of what a recipe expects: names, kinds, never what it holds."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sidecar.auth.recipes.matches import Message, compile_match
from sidecar.auth.recipes.templates import Lookup
from sidecar.settings.recipe import Match, Pattern, Value

_WORD = re.compile(r"[\w. -]{1,60}")
_MOST = 4
"""Of alternatives, and of what one lacks, so many are told."""


def said(answer: Message) -> str:
    """Return the vendor's code, where one stands in the usual places; no other part of a body is told."""
    for pointer in ("/errors/*/code", "/errors/*/type", "/error", "/code", "/.QName"):
        for value in answer.document.json(pointer):
            if isinstance(value, int | str) and _WORD.fullmatch(str(value)):
                return f" ({value})"
    return ""


def lacking(matches: Sequence[Match], answer: Message, lookup: Lookup) -> str:
    """Return what *answer* lacks so that one of *matches* holds: what the recipe says, and what kind of thing came."""
    ways = [" and ".join(list(_lacks(match, answer, lookup))[:_MOST]) for match in matches]
    return ", or ".join(dict.fromkeys(way for way in ways[:_MOST] if way))


def _lacks(match: Match, answer: Message, lookup: Lookup) -> Iterator[str]:
    for key, part in _parts(match):
        if compile_match(part, lookup).holds(answer, lookup):
            continue
        if key == "status":
            yield f"status {' or '.join(map(str, part.status))}"
        elif key == "json":
            pointer, wanted = next(iter(part.json_.items()))
            yield f"{pointer} in JSON to be {_wanted(wanted)}, {_came(answer.document.json(pointer))}"
        elif key == "xml":
            path, wanted = next(iter(part.xml.items()))
            yield f"{path} in XML to be {_wanted(wanted)}, {_came(answer.document.xml(path))}"
        elif key == "header":
            name, wanted = next(iter(part.header.items()))
            yield f"the field {name} to be {_wanted(wanted)}, {_came(answer.header(name))}"
        else:
            yield "nothing of what its `not` names" if key == "not" else f"another {key}"


def _parts(match: Match) -> Iterator[tuple[str, Match]]:
    """Yield each key of *match*, of a mapping each member, as a match of its own."""
    for key, value in match.model_dump(by_alias=True, exclude_unset=True).items():
        if key in ("json", "xml", "header"):
            for name, wanted in value.items():
                yield key, Match.model_validate({key: {name: wanted}})
        else:
            yield key, Match.model_validate({key: value})


def _wanted(value: Value) -> str:
    if isinstance(value, tuple):
        return " or ".join(map(_wanted, value[:_MOST]))
    return f"like {value.regex}" if isinstance(value, Pattern) else json.dumps(value)


def _came(found: Sequence[Any]) -> str:
    if not found:
        return "which is not there"
    kinds = {bool: "another truth value", int: "another number", float: "another number", str: "another text"}
    kinds |= {list: "a list", dict: "an object", type(None): "null"}
    return f"which is {kinds.get(type(found[0]), 'something else')}"
