"""The grammar of templates: text with `{name|filter}` in it. What a name means is no matter of theirs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FILTERS = frozenset({"md5", "sha256", "b64", "url", "xml", "lower", "jwt"})
BUILT_IN = frozenset({"base", "origin", "host", "self", "slot", "placeholder", "expires_in"})
REQUEST = "request:"
"""What a JSON pointer into a client's request begins with, where a name stands."""

_PART = re.compile(r"\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|request:(/[^{}|]*)?")


@dataclass(frozen=True, slots=True)
class Field:
    """A name whose value stands in its place, after *filters* in their order."""

    name: str
    filters: tuple[str, ...] = ()


Parts = tuple[str | Field, ...]


def parse(text: str) -> Parts:
    """Return the literals and fields of *text* in their order; ValueError says what is expected."""
    parts: list[str | Field] = []
    end = 0
    for found in _PART.finditer(text):
        if found.start() > end:
            parts.append(text[end : found.start()])
        if found[1] is None:
            raise ValueError("a brace that belongs to no {name}; expected {name} or {name|filter}")
        name, *filters = found[1].split("|")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{{{name}}} is no name; expected letters, digits and _, or {REQUEST}/pointer")
        for each in filters:
            if each not in FILTERS:
                raise ValueError(f"unknown filter {each}; expected one of {', '.join(sorted(FILTERS))}")
        parts.append(Field(name, tuple(filters)))
        end = found.end()
    if end < len(text):
        parts.append(text[end:])
    return tuple(parts)


def names_in(value: Any) -> Iterator[str]:
    """Yield the names that the templates in *value* use, in mappings and lists too, keys included."""
    if isinstance(value, str):
        yield from (part.name for part in parse(value) if isinstance(part, Field))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from names_in(key)
            yield from names_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from names_in(each)
