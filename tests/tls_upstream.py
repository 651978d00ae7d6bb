"""An upstream over TLS with a CA of its own: it records every request and answers with what clients stumble over."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import re
import ssl
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from tests.canary import canary
from tests.rig import Seen

TOKEN = canary("clients-token")
CLIENT_ID = "clients"
CLIENT_SECRET = canary("clients-secret")
NAMES = ("localhost", "plm.test")
"""The second is a name that only the sidecar can resolve."""

_BODY = json.dumps({"name": "bolt M4", "note": "Größe", "parts": list(range(40))}).encode()
_LARGE = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(3 << 15))
_COMMIT = b"7c3f9d3c0f1d2b6a5e4f8a9b0c1d2e3f4a5b6c7d"
_COMMON = (b"Date: Sun, 22 Nov 2026 09:00:00 GMT", b"Server: PLM/9 (odd; server)", b"Keep-Alive: timeout=5")


@dataclass
class Upstream:
    """What was asked since the list was last emptied; calls of the token endpoint are counted only."""

    port: int = 0
    plain_port: int = 0
    seen: list[Seen] = field(default_factory=list)
    tokens_issued: int = 0


@contextlib.asynccontextmanager
async def serving(ca: Path) -> AsyncIterator[Upstream]:
    """Serve an Upstream on loopback for NAMES, and without TLS; write the CA that signed its certificate to *ca*."""
    authority = trustme.CA(organization_name="clients")
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    authority.issue_cert(*NAMES).configure_cert(context)
    upstream = Upstream()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            closing = False
            while not closing:
                seen = await _read(reader)
                writer.write(_answer(upstream, seen))
                await writer.drain()
                closing = any(b"close" in value for value in seen.values(b"Connection"))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20, ssl=context) as server,
        await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20) as plain,
    ):
        upstream.port, upstream.plain_port = (each.sockets[0].getsockname()[1] for each in (server, plain))
        yield upstream


async def _read(reader: asyncio.StreamReader) -> Seen:
    seen = Seen(await reader.readuntil(b"\r\n\r\n"))
    if length := seen.values(b"Content-Length"):
        seen.body = await reader.readexactly(int(length[0]))
    elif seen.values(b"Transfer-Encoding"):
        while size := int(await reader.readline(), 16):
            seen.body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return seen


def _answer(upstream: Upstream, seen: Seen) -> bytes:
    method, target, _ = seen.line.split(b" ")
    if target == b"/token":
        upstream.tokens_issued += 1
        granted = {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600}
        return _message(b"200 OK", b"Content-Type: application/json", body=json.dumps(granted).encode())
    upstream.seen.append(seen)
    if seen.values(b"Authorization") not in _ACCEPTED:
        return _message(b"401 Unauthorized", b'WWW-Authenticate: Bearer realm="plm"', body=b"who are you?\n")
    if method == b"POST":
        lines = (b"Location: /items/7", b"Content-Type: application/json", b"X-Length: %d" % len(seen.body))
        return _message(b"201 Created", *lines, body=seen.body)
    path = target.partition(b"?")[0]
    answer = _ANSWERS.get(path.decode(), _MISSING)
    return re.sub(rb"(?s)(\r\n\r\n).*", rb"\1", answer, count=1) if method == b"HEAD" else answer


def _message(status: bytes, *lines: bytes, body: bytes) -> bytes:
    framing = () if b"Transfer-Encoding: chunked" in lines else (b"Content-Length: %d" % len(body),)
    return b"\r\n".join([b"HTTP/1.1 " + status, *_COMMON, *lines, *framing, b"", body])


def _chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def _wheel() -> bytes:
    """Return a package as small as pip accepts, the same for every call."""
    files = {
        "tiny_part.py": "SIZE = 4\n",
        "tiny_part-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-part\nVersion: 1.0\n",
        "tiny_part-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_part-1.0.dist-info/RECORD": "",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return data.getvalue()


_MISSING = _message(b"404 No Such Part", b"Content-Type: text/plain", body=b"no such part\n")
_ACCEPTED = (
    [b"Bearer " + TOKEN.encode()],
    # pip knows no other scheme.
    [b"Basic " + base64.b64encode(b"__token__:" + TOKEN.encode())],
)
_ANSWERS = {
    "/json": _message(
        b"200 Fine",
        b"content-TYPE: application/json; charset=utf-8",
        b"Set-Cookie: theme=dark; Path=/; Expires=Wed, 21 Oct 2037 07:28:00 GMT",
        b"set-cookie: seen=1; Path=/",
        b"SET-COOKIE: odd=a=b; Path=/; HttpOnly",
        b"X-Dup: 2",
        b"X-Between: a,  b",
        b"x-dup: 1",
        b"X-Empty:",
        b"X_Odd-name: yes",
        b'ETag: W/"7"',
        body=_BODY,
    ),
    "/gzip": _message(
        b"200 OK",
        b"Content-Type: application/json",
        b"Content-Encoding: gzip",
        b"Vary: Accept-Encoding",
        body=gzip.compress(_BODY, mtime=0),
    ),
    "/moved": _message(b"302 Found", b"Location: /json?from=moved", body=b"over there\n"),
    "/chunked": _message(
        b"200 OK",
        b"Content-Type: text/plain",
        b"Transfer-Encoding: chunked",
        body=_chunked(b"one\n", b"two\n" * 5000, b"three\n"),
    ),
    "/large": _message(b"200 OK", b"Content-Type: application/octet-stream", body=_LARGE),
    "/parts.git/info/refs": _message(b"200 OK", b"Content-Type: text/plain", body=_COMMIT + b"\trefs/heads/main\n"),
    "/parts.git/HEAD": _message(b"200 OK", b"Content-Type: text/plain", body=b"ref: refs/heads/main\n"),
    "/simple/tiny-part/": _message(
        b"200 OK",
        b"Content-Type: text/html",
        body=b'<!DOCTYPE html><a href="/files/tiny_part-1.0-py3-none-any.whl">tiny_part-1.0-py3-none-any.whl</a>',
    ),
    "/files/tiny_part-1.0-py3-none-any.whl": _message(b"200 OK", b"Content-Type: application/zip", body=_wheel()),
}
