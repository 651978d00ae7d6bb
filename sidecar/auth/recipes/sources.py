"""Where a value is in an answer: sources tried in order, what was found cut out and converted."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sidecar.auth.recipes.matches import Message, pattern
from sidecar.auth.recipes.templates import Lookup, Unset, render
from sidecar.settings.recipe import Source

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}

Cookie = Callable[[str], str | None]
"""From the name of a cookie to its value."""


def find(sources: Sequence[Source], message: Message | None, cookie: Cookie, lookup: Lookup) -> Any:
    """Return the first value that *sources* give; *message* None: only what they say `else`. Raises Unset."""
    for source in sources:
        found = _found(source, message, cookie)
        if found is None and source.else_ is not None:
            try:
                return render(source.else_, lookup)
            except Unset:
                continue
        if found is not None and (value := _converted(source, found)) is not None:
            return value
    raise Unset


def number(sources: Sequence[Source], message: Message) -> float | None:
    """Return what *sources* give as a number, None if it is none, endless, or not there."""
    try:
        found = float(find(sources, message, lambda _: None, _nothing))
    except (Unset, TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _nothing(_: str) -> Any:
    raise Unset


def _found(source: Source, message: Message | None, cookie: Cookie) -> Any:
    if message is None:
        return None
    found: Sequence[Any] = ()
    if source.json_ is not None:
        found = message.document.json(source.json_)
    elif source.xml is not None:
        found = message.document.xml(source.xml)
    elif source.header is not None:
        found = message.header(source.header)
    elif source.cookie is not None:
        found = [cookie(source.cookie)]
    elif source.body is not None and message.document.text is not None:
        found = [match.group(1) if (match := pattern(source.body).search(message.document.text)) else None]
    return next((value for value in found if value is not None), None)


def _converted(source: Source, found: Any) -> Any:
    if source.regex is not None:
        match = pattern(source.regex).search(found if isinstance(found, str) else str(found))
        if match is None:
            return None
        found = match.group(1)
    if source.time is not None:
        try:
            moment = datetime.strptime(str(found).strip(), source.time)  # noqa: DTZ007  the format may name a zone
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if source.unit != "s":
        try:
            return float(found) * _UNITS[source.unit]
        except (TypeError, ValueError):
            return None
    return found
