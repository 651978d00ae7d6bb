"""Bodies of any size: an echo that tells what arrived, and bytes that need not be stored to be checked."""

import hashlib
from functools import cache

from aiohttp import HttpVersion11, web

from sidecar.clock import Clock
from sidecar.emulator.answers import error

_BLOCK = 1 << 20
_SLICE = 1 << 16
_QUERY = frozenset({"chunked", "cut", "pause"})


@cache
def _block() -> bytes:
    """Return the block that `/bytes/` repeats: pseudo-random, so that compression cannot flatter a measurement."""
    return hashlib.shake_256(b"sidecar emulator").digest(_BLOCK)


def sha256_of_bytes(count: int) -> str:
    """Return the hex SHA-256 of the body of `/bytes/{count}`."""
    digest = hashlib.sha256()
    for _ in range(count // _BLOCK):
        digest.update(_block())
    digest.update(_block()[: count % _BLOCK])
    return digest.hexdigest()


async def echo(request: web.BaseRequest) -> web.Response:
    """Answer method, raw target, raw fields, SHA-256 and length of the body, which is never held in memory.

    The value of Authorization reads `Bearer ***`: it is a live token, and answers end up in logs.
    """
    digest, length = hashlib.sha256(), 0
    async for chunk in request.content.iter_any():
        digest.update(chunk)
        length += len(chunk)
    headers = [
        [name.decode("latin-1"), "Bearer ***" if name.lower() == b"authorization" else value.decode("latin-1")]
        for name, value in request.raw_headers
    ]
    target = request.raw_path.encode("utf-8", "surrogateescape").decode("latin-1")
    return web.json_response(
        {
            "method": request.method,
            "target": target,
            "headers": headers,
            "sha256": digest.hexdigest(),
            "length": length,
        }
    )


async def serve_bytes(request: web.BaseRequest, clock: Clock, extra: dict[str, str]) -> web.StreamResponse:
    """Stream the n bytes of `/bytes/{n}`, with *extra* fields in the head.

    `?chunked=1`: without Content-Length. `?cut=k`: the connection is closed after k bytes. `?pause=s`: so many
    seconds between slices of 64 KiB.
    """
    query = request.rel_url.query
    try:
        total = int(request.rel_url.raw_path.removeprefix("/bytes/"))
        stop = min(total, int(query.get("cut", total)))
        pause = float(query.get("pause", "0"))
    except ValueError:
        total = stop = -1
        pause = 0.0
    if min(total, stop, pause) < 0 or not _QUERY.issuperset(query):
        return error(400, "Expected /bytes/{n} with chunked, cut or pause.")
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", **extra})
    if query.get("chunked", "0") == "0":
        response.content_length = total
    elif request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    view = memoryview(_block())
    sent = 0
    while sent < stop:
        start = sent % _BLOCK
        chunk = view[start : start + min(_SLICE, stop - sent)]
        await response.write(chunk)
        sent += len(chunk)
        if pause:
            await clock.sleep(pause)
    if stop < total and request.transport is not None:
        # Not a reset: that could overtake bytes already written, and k would be a guess.
        request.transport.close()
    return response
