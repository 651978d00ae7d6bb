"""The request as plain values: what the client said, before anybody decided anything."""

from dataclasses import dataclass

Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields in order, spelling and duplicates kept, values without surrounding space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request head as a client sent it.

    *target* is the origin-form (path and query) byte for byte; *host* is what would really be connected to,
    never the Host field of an absolute-form request. *upstream* is the name of the upstream whose reverse
    port took it, None on the proxy port; then *scheme*, *host* and *port* are those of its base URL.
    *length* is the body's length, None when it is chunked, 0 when there is none.
    """

    method: bytes
    scheme: str
    host: str
    port: int
    target: bytes
    fields: Fields
    length: int | None
    upstream: str | None = None
    http10: bool = False


def value_of(fields: Fields, name: bytes) -> bytes | None:
    """Return the value of the first field called *name* (lower case), None if there is none."""
    return next((value for key, value in fields if key.lower() == name), None)
