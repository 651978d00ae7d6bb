"""Reads the templates of recipes: text with `{name}` or `{name|filter|filter}` in it (docs/recipes.md)."""

import re
from functools import cache
from typing import NamedTuple

FILTERS = frozenset({"md5", "sha256", "b64", "url", "xml", "lower", "jwt"})
BUILT_IN = frozenset({"base", "origin", "host", "self", "slot", "placeholder"})
"""Names that every template may use. `expires_in` is extracted, and `request:/pointer` stands in replies only."""
EXPIRES_IN = "expires_in"
REQUEST = "request:"

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_POINTER = re.compile(r"request:(/[^{}|]*)?")


class Field(NamedTuple):
    """A name between braces, and the filters that its value goes through, first to last."""

    name: str
    filters: tuple[str, ...] = ()


@cache
def parse(text: str) -> tuple[str | Field, ...]:
    """Return the parts of *text*, literal ones as text; () for empty text.

    There is no escape: a brace that encloses no name is an error. Raises ValueError with a sentence.
    """
    parts: list[str | Field] = []
    rest = text
    while rest:
        literal, opened, rest = rest.partition("{")
        if "}" in literal:
            raise ValueError("a template has a } without its {")
        if literal:
            parts.append(literal)
        if opened:
            inside, closed, rest = rest.partition("}")
            if not closed:
                raise ValueError("a template has a { without its }")
            parts.append(_field(inside))
    return tuple(parts)


def fields(text: str) -> tuple[Field, ...]:
    """Return what stands between the braces of *text*; ValueError as `parse`."""
    return tuple(part for part in parse(text) if isinstance(part, Field))


def _field(inside: str) -> Field:
    name, *filters = inside.split("|")
    if not (NAME.fullmatch(name) or _POINTER.fullmatch(name)):
        raise ValueError(f"{{{inside}}} in a template is no name: expected {{name}} or {{name|filter}}")
    for chosen in filters:
        if chosen not in FILTERS:
            known = ", ".join(sorted(FILTERS))
            raise ValueError(f"{{{inside}}} has the unknown filter {chosen!r}: expected {known}")
    return Field(name, tuple(filters))
