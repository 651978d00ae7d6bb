"""Events as log lines on standard error: JSON, or text for a person. A line never carries a secret."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO

import structlog

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
    StoreTrouble,
    Trouble,
    WorkerReplaced,
)

_NAMES: dict[type[Event], str] = {
    Ready: "ready",
    Renewal: "renewal",
    LifetimeDiffers: "lifetime_differs",
    RequestDone: "request",
    Trouble: "trouble",
    StoreTrouble: "trouble",
    BreakerChanged: "breaker",
    Drain: "drain",
    Reload: "reload",
    WorkerReplaced: "worker_replaced",
    ForcedRenewals: "forced_renewals",
    IdleLimit: "idle_limit",
}


def make_emit(log_format: str, level: str, stream: TextIO | None = None) -> Emit:
    """Return a function that writes events; call it once per process, it also quiets other libraries."""
    target = stream or sys.stderr
    render: Callable[..., Any] = (
        structlog.processors.JSONRenderer(default=str)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=target.isatty())
    )
    logger = structlog.wrap_logger(
        structlog.WriteLogger(target),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), render],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    ).bind()  # once, not for each line
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("mitmproxy").setLevel(logging.ERROR)

    def emit(event: Event) -> None:
        write = getattr(logger, _level(event))
        # A full disk or a reader that is gone must not stop what the line is about.
        with contextlib.suppress(OSError):
            write(_NAMES[type(event)], **_plain(event))

    return emit


def ready_line(event: Ready) -> str:
    """Return the one line that `run` prints when it serves."""
    rendered = structlog.processors.JSONRenderer()(None, "info", {"event": "ready", **_plain(event)})
    return rendered if isinstance(rendered, str) else rendered.decode()


def _plain(event: Event) -> dict[str, Any]:
    values = ((field.name, getattr(event, field.name)) for field in dataclasses.fields(event))
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values}


def _level(event: Event) -> str:
    match event:
        case Renewal(result="ok") | Ready() | ForcedRenewals(stopped=False):
            return "info"
        case Renewal(result="rejected"):
            return "error"
        case BreakerChanged(state="closed" | "half_open") | RequestDone() | Drain() | Reload(result="ok" | "unchanged"):
            return "info"
        case Reload():
            return "error"
        case _:
            return "warning"
