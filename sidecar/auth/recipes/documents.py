"""Bodies looked into as JSON, XML or a form, within bounds; what cannot be read holds nothing. Paths and pointers."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from jsonpointer import unescape

MAX_BODY = 1 << 20
_DEEPEST = 64
_PIECES = re.compile(r"/((?:\[[^\]]*\]|[^/\[]|\[)*)")
_EQUALS = re.compile(r"\[([^=\]]+)=(/[^\]]*)\]")
_STEP = re.compile(r"(\{[^}]*\}[\w.-]+|[\w.-]*[\w-][\w.-]*)")


class Document:
    """A body, decoded already; None: there is none to look into. Each reading of it is made once, when asked for."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data if data is not None and len(data) <= MAX_BODY else None

    @cached_property
    def text(self) -> str | None:
        """The body as text, None without one; what is not UTF-8 is replaced."""
        return None if self.data is None else self.data.decode("utf-8", "replace")

    @cached_property
    def _json(self) -> list[Any]:
        try:
            return [json.loads(self.data)] if self.data else []
        except (ValueError, RecursionError):
            return []

    @cached_property
    def _xml(self) -> Element | None:
        try:
            return fromstring(self.data, forbid_dtd=True) if self.data else None
        except (ParseError, DefusedXmlException, ValueError, RecursionError, LookupError):
            return None

    @cached_property
    def form(self) -> dict[str, list[str]]:
        """The parameters of a form by name (WHATWG URL, application/x-www-form-urlencoded)."""
        found: dict[str, list[str]] = {}
        try:
            for name, value in parse_qsl(self.text or "", keep_blank_values=True, max_num_fields=1000):
                found.setdefault(name, []).append(value)
        except ValueError:
            return {}
        return found

    def json(self, pointer: str) -> list[Any]:
        """Return all values at *pointer*: RFC 6901 with `*` for any element and `[key=/pointer]`."""
        return [value for document in self._json for value in _resolve(document, _tokens(pointer), document)]

    def xml(self, path: str) -> list[str]:
        """Return the texts of the elements at *path*, as ElementTree reads it, names in any namespace."""
        if self._xml is None:
            return []
        try:
            return [(element.text or "").strip() for element in self._xml.findall(any_namespace(path))]
        except (SyntaxError, KeyError):
            return []


def any_namespace(path: str) -> str:
    """Return *path* with every name that has no `{namespace}` in any namespace."""
    return "/".join(_anywhere(step) for step in re.split(r"/(?![^{]*\})", path))


def set_at(document: Any, pointer: str, value: Any) -> None:
    """Put *value* at *pointer* in *document*, making the objects on the way; nothing is done where that cannot be."""
    *way, last = _tokens(pointer) or [""]
    for token in way:
        if not isinstance(document, dict):
            return
        document = document.setdefault(token, {})
    if isinstance(document, dict) and last:
        document[last] = value


def _anywhere(step: str) -> str:
    found = _STEP.match(step)
    return f"{{*}}{step}" if found and not step.startswith(("{", ".", "*", "@")) else step


def _tokens(pointer: str) -> list[str]:
    if not pointer:
        return []
    return [unescape(token) for token in _PIECES.findall(pointer)][:_DEEPEST]


def _resolve(value: Any, tokens: list[str], document: Any) -> Iterator[Any]:
    if not tokens:
        yield value
        return
    token, *rest = tokens
    if token == "*":  # noqa: S105  the wildcard
        for each in _elements(value):
            yield from _resolve(each, rest, document)
    elif equals := _EQUALS.fullmatch(token):
        wanted = [str(each) for each in _resolve(document, _tokens(equals[2]), document)]
        for each in _elements(value):
            if isinstance(each, dict) and equals[1] in each and str(each[equals[1]]) in wanted:
                yield from _resolve(each, rest, document)
    elif isinstance(value, dict) and token in value:
        yield from _resolve(value[token], rest, document)
    elif isinstance(value, list) and token.isascii() and token.isdigit() and int(token) < len(value):
        yield from _resolve(value[int(token)], rest, document)


def _elements(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
