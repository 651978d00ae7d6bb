"""Events as log lines on standard error: JSON, or text for a person. A line never carries a secret."""

import contextlib
import dataclasses
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from sidecar.clock import Clock, SystemClock
from sidecar.events import (
    BreakerChanged,
    Drain,
    Emit,
    Event,
    ForcedRenewals,
    IdleLimit,
    LifetimeDiffers,
    Ready,
    Reload,
    Renewal,
    RequestDone,
    ScopeNarrower,
    SeatContested,
    StoreTrouble,
    Trouble,
    WorkerReplaced,
)

_LEVELS = ("debug", "info", "warning", "error")
_NAMES: dict[type[Event], str] = {
    Ready: "ready",
    Renewal: "renewal",
    LifetimeDiffers: "lifetime_differs",
    ScopeNarrower: "scope_narrower",
    RequestDone: "request",
    Trouble: "trouble",
    StoreTrouble: "trouble",
    BreakerChanged: "breaker",
    Drain: "drain",
    Reload: "reload",
    WorkerReplaced: "worker_replaced",
    ForcedRenewals: "forced_renewals",
    IdleLimit: "idle_limit",
    SeatContested: "seat_contested",
}
_FIELDS = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _NAMES}
_encode = json.JSONEncoder(default=str).encode


def make_emit(log_format: str, level: str, stream: TextIO | None = None, clock: Clock | None = None) -> Emit:
    """Return a function that writes events; call it once per process, it also quiets other libraries."""
    target, clock = stream or sys.stderr, clock or SystemClock()
    shown = _LEVELS[_LEVELS.index(level) :]
    render = _json if log_format == "json" else _text
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("mitmproxy").setLevel(logging.ERROR)

    def emit(event: Event) -> None:
        at = _level(event)
        # A full disk or a reader that is gone must not stop what the line is about.
        if at in shown:
            with contextlib.suppress(OSError):
                target.write(render(event, at, clock.now()))
                target.flush()

    return emit


def ready_line(event: Ready) -> str:
    """Return the one line that `run` prints when it serves."""
    return json.dumps({**_plain(event), "event": "ready"})


def _json(event: Event, level: str, now: float) -> str:
    told = {"event": _NAMES[type(event)], "level": level, "timestamp": _moment(now)}
    return _encode({**_plain(event), **told}) + "\n"


def _text(event: Event, level: str, now: float) -> str:
    told = " ".join(f"{name}={_word(value)}" for name, value in _plain(event).items())
    return f"{_moment(now)} {level:7} {_NAMES[type(event)]} {told}\n"


def _moment(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _word(value: object) -> str:
    """Return *value* so that a line stays one, and where it ends can be seen."""
    text = str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)


def _plain(event: Event) -> dict[str, Any]:
    values = ((name, getattr(event, name)) for name in _FIELDS[type(event)])
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values}


def _level(event: Event) -> str:
    match event:
        case Renewal(result="ok") | Ready() | ForcedRenewals(stopped=False) | SeatContested(taken=0):
            return "info"
        case Renewal(result="rejected"):
            return "error"
        case BreakerChanged(state="closed" | "half_open") | RequestDone() | Drain() | Reload(result="ok" | "unchanged"):
            return "info"
        case Reload():
            return "error"
        case _:
            return "warning"
