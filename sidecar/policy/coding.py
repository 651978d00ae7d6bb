"""Content codings undone for a look (RFC 9110 section 8.4.1): what goes on is never touched."""

import zlib

from sidecar.policy.message import Fields

_GZIP_OR_ZLIB = zlib.MAX_WBITS + 32
_RAW = -zlib.MAX_WBITS
_FORMATS: dict[bytes, tuple[int, ...]] = {
    b"gzip": (_GZIP_OR_ZLIB,),
    b"x-gzip": (_GZIP_OR_ZLIB,),
    # RFC 1950, and what many servers send instead (RFC 1951).
    b"deflate": (_GZIP_OR_ZLIB, _RAW),
}


def decoded(data: bytes, fields: Fields, limit: int) -> bytes | None:
    """Return up to *limit* bytes of what *data* says, or begins to say, however much more that would be.

    A label that lies is survived: what is no gzip is taken as it is. None for a coding that we cannot read.
    """
    coding = b",".join(value for name, value in fields if name.lower() == b"content-encoding").strip().lower()
    if coding in (b"", b"identity"):
        return data[:limit]
    if coding not in _FORMATS:
        return None
    for window in _FORMATS[coding]:
        try:
            return zlib.decompressobj(window).decompress(data, limit)
        except zlib.error:
            continue
    return data[:limit]
