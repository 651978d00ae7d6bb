"""The small values of the configuration: durations, sizes, addresses. Knows nothing of the model."""

import math
import os
import re
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?")
_DURATION_UNITS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB)?")
_SIZE_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]*)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")
_MAX_PORT = 65535
_MAX_SOCKET_PATH = 100
"""What every system takes: sun_path holds 104 bytes on macOS, 108 on Linux."""


def parse_duration(value: Any) -> float:
    """Return seconds for `90s`, `15m`, `2h`, `100ms`, or a number of seconds; never negative, never endless."""
    match = None if isinstance(value, bool) else _DURATION.fullmatch(str(value).strip())
    seconds = float(match[1]) * _DURATION_UNITS[match[2]] if match else math.inf
    if math.isinf(seconds):
        raise ValueError("expected a duration such as 90s, 15m, 2h, or seconds")
    return seconds


def parse_size(value: Any) -> int:
    """Return bytes for `64KiB`, `1MiB`, or a number of bytes; never negative."""
    match = None if isinstance(value, bool) else _SIZE.fullmatch(str(value).strip())
    if not match:
        raise ValueError("expected a size such as 64KiB, 1MiB, or bytes")
    return int(match[1]) * _SIZE_UNITS[match[2]]


class Margin(NamedTuple):
    """A share of a lifetime, or seconds; exactly one of the two is set."""

    share: float | None
    seconds: float | None

    def of(self, lifetime: float) -> float:
        """Return the margin in seconds, never more than half of *lifetime*."""
        wanted = lifetime * self.share if self.share is not None else (self.seconds or 0.0)
        return min(wanted, lifetime / 2)


def parse_margin(value: Any) -> Margin:
    """Return a margin for `20%` or a duration."""
    if isinstance(value, Margin):
        return value
    if match := _PERCENT.fullmatch(str(value).strip()):
        return Margin(float(match[1]) / 100, None)
    try:
        return Margin(None, parse_duration(value))
    except ValueError:
        raise ValueError("expected a share such as 20% or a duration such as 5m") from None


def parse_share(value: Any) -> float:
    """Return a number from 0 to 1 for `0%` to `100%`; a plain number is refused, since 1 could mean either."""
    match = _PERCENT.fullmatch(str(value).strip())
    share = float(match[1]) / 100 if match else math.inf
    if share > 1:
        raise ValueError("expected a share such as 20%, at most 100%")
    return share


class HostPort(NamedTuple):
    """An address to listen on; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class SocketPath(NamedTuple):
    """A unix socket to listen on."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


ListenAddress = HostPort | SocketPath


def parse_address(value: Any) -> ListenAddress:
    """Return the address of `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/sidecar/proxy.sock`."""
    if isinstance(value, HostPort | SocketPath):
        return value
    text = str(value)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or not path.isprintable() or len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise ValueError(f"expected unix: and an absolute path of at most {_MAX_SOCKET_PATH} bytes")
        return SocketPath(path)
    match = _HOST_PORT.fullmatch(text)
    if not match or int(match[3]) > _MAX_PORT:
        raise ValueError("expected host:port such as 127.0.0.1:8080, or unix:/path")
    return HostPort((match[1] or match[2]).lower(), int(match[3]))


EMBEDDED = frozenset({"sqlite", "memory"})
_REDIS = re.compile(r"(?:redis|rediss)(?:\+(?:sentinel|cluster))?://[^\s]+")


def parse_store_url(value: Any) -> str:
    """Return `sqlite`, `memory` or the URL of a Redis as it is; whether one can be reached is not looked at."""
    if not isinstance(value, str) or (value not in EMBEDDED and not _REDIS.fullmatch(value)):
        raise ValueError(
            "expected sqlite, memory, or a URL that begins with redis://, rediss://, redis+sentinel:// or redis+cluster://"
        )
    return value


def without_password(url: str) -> str:
    """Return *url* as it may be shown."""
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}:***@{place}" if at and ":" in user else url


StoreUrl = Annotated[
    str,
    BeforeValidator(parse_store_url),
    PlainSerializer(without_password),
    WithJsonSchema({"type": "string", "examples": ["sqlite", "memory", "rediss://redis.example.com:6379/0"]}),
    Field(repr=False),
]
Duration = Annotated[
    float, BeforeValidator(parse_duration), WithJsonSchema({"type": ["string", "number"], "examples": ["90s", "15m"]})
]
Size = Annotated[
    int, BeforeValidator(parse_size), WithJsonSchema({"type": ["string", "integer"], "examples": ["64KiB", "1MiB"]})
]
MarginValue = Annotated[
    Margin,
    BeforeValidator(parse_margin),
    PlainSerializer(lambda margin: f"{margin.share * 100:g}%" if margin.share is not None else margin.seconds),
    WithJsonSchema({"type": ["string", "number"], "examples": ["20%", "5m"]}),
]
Share = Annotated[
    float,
    BeforeValidator(parse_share),
    PlainSerializer(lambda share: f"{share * 100:g}%"),
    WithJsonSchema({"type": "string", "examples": ["20%"]}),
]
Address = Annotated[
    ListenAddress,
    BeforeValidator(parse_address),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["127.0.0.1:8080", "unix:/run/auth-sidecar/proxy.sock"]}),
]
