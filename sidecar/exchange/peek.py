"""Looking at the beginning of an answer's body before it goes out; it goes out as it came."""

import zlib

from sidecar.exchange.answer import Answer
from sidecar.policy.message import Fields, value_of

_MOST = 64 << 10
_GZIP_OR_ZLIB = zlib.MAX_WBITS + 32
_RAW = -zlib.MAX_WBITS
_FORMATS: dict[bytes, tuple[int, ...]] = {
    b"gzip": (_GZIP_OR_ZLIB,),
    b"x-gzip": (_GZIP_OR_ZLIB,),
    # RFC 1950, and what many servers send instead (RFC 1951).
    b"deflate": (_GZIP_OR_ZLIB, _RAW),
}


async def peek(answer: Answer, limit: int) -> bytes | None:
    """Return up to *limit* bytes of the beginning of the body, decoded, at most 64 KiB; waits for a second at most.

    None for a body that is meant for a file (RFC 6266), is broken off, or is in a coding that we cannot read.
    """
    fields = answer.fields
    if _for_a_file(fields):
        return None
    limit = min(limit, _MOST)
    held = await answer.peek(limit)
    return None if held is None else _decoded(held, fields, limit)


def _for_a_file(fields: Fields) -> bool:
    said = value_of(fields, b"content-disposition")
    return said is not None and said.partition(b";")[0].strip().lower() != b"inline"


def _decoded(data: bytes, fields: Fields, limit: int) -> bytes | None:
    """Return up to *limit* bytes of what *data* says, or begins to say, however much more that would be."""
    coding = b",".join(value for name, value in fields if name.lower() == b"content-encoding").strip().lower()
    if coding in (b"", b"identity"):
        return data
    for window in _FORMATS.get(coding, ()):
        try:
            return zlib.decompressobj(window).decompress(data, limit)
        except zlib.error:
            continue
    return None
