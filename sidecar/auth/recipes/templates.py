"""What templates mean: names looked up, filters applied. A name without a value takes its place with it."""

import hashlib
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from sidecar.secret import Secret
from sidecar.settings.template import Field, fields, parse

_FAR = 4102444800  # 2100-01-01


class Unset(Exception):
    """A name has no value."""


Lookup = Callable[[str], Any]
"""From a name to its value; raises Unset."""


def render(value: Any, lookup: Lookup) -> Any:
    """Return *value* with its templates replaced; one that is nothing but a template keeps the type of its value.

    Members and items that use a name without a value are left out. Raises Unset when there is nothing left.
    """
    if isinstance(value, str):
        return _text(value, lookup)
    if isinstance(value, Mapping):
        return {key: each for name, item in value.items() for key, each in _member(name, item, lookup)}
    if isinstance(value, list | tuple):
        return [each for item in value for _, each in _member("", item, lookup)]
    return value


def names_in(value: Any) -> Iterator[str]:
    """Yield the names that the templates in *value* use, in mappings and lists too, keys included."""
    if isinstance(value, str):
        yield from (field.name for field in fields(value))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from names_in(key)
            yield from names_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from names_in(each)


def text(value: Any) -> str:
    """Return *value* as it stands in a text: JSON's spelling for what is no text."""
    if isinstance(value, Secret):
        return value.reveal()
    if not isinstance(value, str | int | float | bool | dict | list | None):
        raise Unset  # the place of a secret, which is none
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def as_jwt(word: str) -> str:
    """Return *word* in an unsigned JWT that lasts, for clients that look into what they were given (RFC 7519)."""
    parts = ({"alg": "none", "typ": "JWT"}, {"sub": word, "exp": _FAR})
    return ".".join([*(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts), ""])


def _member(name: str, value: Any, lookup: Lookup) -> list[tuple[str, Any]]:
    try:
        return [(text(render(name, lookup)), render(value, lookup))]
    except Unset:
        return []


def _text(template: str, lookup: Lookup) -> Any:
    parts = parse(template)
    if len(parts) == 1 and isinstance(parts[0], Field):
        return _value(parts[0], lookup)
    return "".join(part if isinstance(part, str) else text(_value(part, lookup)) for part in parts)


def _value(field: Field, lookup: Lookup) -> Any:
    value = lookup(field.name)
    for name in field.filters:
        value = _FILTERS[name](text(value))
    return value


_FILTERS: Mapping[str, Callable[[str], str]] = {
    # What the vendors' own clients send; no security rests on it.
    "md5": lambda word: hashlib.md5(word.encode(), usedforsecurity=False).hexdigest(),
    "sha256": lambda word: hashlib.sha256(word.encode()).hexdigest(),
    "b64": lambda word: b64encode(word.encode()).decode(),
    "url": lambda word: quote(word, safe=""),
    "xml": lambda word: escape(word, {'"': "&quot;", "'": "&apos;"}),
    "lower": str.lower,
    "jwt": as_jwt,
}
