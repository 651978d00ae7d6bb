"""The two names of an upstream on the wire: on a reverse port with a base path, and where http:// is upgraded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Recorder, Rig, Seen, TokenServer, configuration, raw, recorder, sidecar

pytestmark = pytest.mark.usefixtures("both_modes")

CLOSE = b"Connection: close\r\n\r\n"
LINKS = {"rewrite": ["application/json", "TEXT/XML"]}


@contextlib.asynccontextmanager
async def serving(upstream: Recorder, tokens: TokenServer, folder: Path, **more: Any) -> AsyncIterator[Rig]:
    """Run a sidecar before *upstream*, whose base path is /plm/api."""
    async with sidecar(configuration(upstream.url + "/plm/api", tokens.url, folder, **more)) as rig:
        yield rig


def answers(upstream: Recorder, *parts: bytes) -> None:
    """Let *upstream* answer with *parts* one after the other, HEAD with the first; `@` stands for its base URL."""

    async def say(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts[:1] if seen.line.startswith(b"HEAD ") else parts:
            writer.write(part.replace(b"@", upstream.url.encode() + b"/plm/api"))
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    upstream.script = say


def answer(*fields: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", body])


async def ask(rig: Rig, *fields: bytes, line: bytes = b"GET /items?a HTTP/1.1") -> tuple[bytes, list[bytes], bytes]:
    """Return status line, fields and body of what the reverse port answers."""
    head, _, body = (await raw(rig.port("plm"), b"\r\n".join([line, *fields, CLOSE]))).partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, lines, body


def here(rig: Rig) -> bytes:
    return b"127.0.0.1:%d" % rig.port("plm")


async def test_fields_of_an_answer_name_the_reverse_port(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """What the upstream calls itself becomes the Host that the client sent; other fields and the body stay."""
    fields = (
        b"Location: @/new",
        b"link: <@/p?2>; rel=next, </plm/api/p?1>",
        b"Set-Cookie: sid=1; Path=/plm/api; HttpOnly",
        b"X-Url: @/new",
        b"Content-Length: 4",
    )
    answers(upstream, answer(*fields, body=b"/plm", status=b"302 Found"))
    async with serving(upstream, tokens, tmp_path) as rig:
        status, lines, body = await ask(rig, b"Host: " + here(rig))
        base = b"http://" + here(rig)

    assert status == b"HTTP/1.1 302 Found"
    assert lines == [
        b"Location: %b/new" % base,
        b"link: <%b/p?2>; rel=next, </p?1>" % base,
        b"Set-Cookie: sid=1; Path=/; HttpOnly",
        b"X-Url: %b/plm/api/new" % upstream.url.encode(),
        b"Content-Length: 4",
        b"Connection: close",
    ]
    assert body == b"/plm"


async def test_fields_of_a_request_name_the_upstream(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """A WebDAV COPY and a page of the reverse port speak of the upstream by its own name."""
    async with serving(upstream, tokens, tmp_path) as rig:
        base = b"http://" + here(rig)
        sent = (
            b"Destination: %b/b" % base,
            b"If: <%b/b> (<urn:x>)" % base,
            b"Referer: %b/a" % base,
            b"Origin: " + base,
        )
        await ask(rig, b"Host: " + here(rig), *sent, line=b"COPY /a HTTP/1.1")

    (seen,) = upstream.seen
    root = upstream.url.encode()
    assert seen.line == b"COPY /plm/api/a HTTP/1.1"
    assert seen.fields[1:5] == [
        b"Destination: %b/plm/api/b" % root,
        b"If: <%b/plm/api/b> (<urn:x>)" % root,
        b"Referer: %b/plm/api/a" % root,
        b"Origin: " + root,
    ]


WSDL = b'<definitions><import location="@/svc?xsd=1"/><soap:address location="@/svc"/><x>@evil</x></definitions>'


async def test_wsdl_leads_its_client_back(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """Each place in it where the base URL stands, at whatever byte the answer is cut; it goes out in chunks."""
    fields = (b"Content-Type: text/xml; charset=utf-8", b"Content-Length: %d", b'ETag: "7"', b"Accept-Ranges: bytes")
    whole = WSDL.replace(b"@", upstream.url.encode() + b"/plm/api")
    head = answer(*fields) % len(whole)
    answers(upstream, head, *(whole[start : start + 5] for start in range(0, len(whole), 5)))
    async with serving(upstream, tokens, tmp_path, links=LINKS) as rig:
        _, lines, body = await ask(rig, b"Host: " + here(rig), b"Accept-Encoding: gzip", line=b"GET /svc?wsdl HTTP/1.1")
        _, old_lines, old = await ask(rig, line=b"GET /svc?wsdl HTTP/1.0")
        _, head_lines, nothing = await ask(rig, b"Host: " + here(rig), line=b"HEAD /svc?wsdl HTTP/1.1")
        base = b"http://" + here(rig)

    kept = [fields[0], fields[2]]
    wanted = WSDL.replace(b"@evil", upstream.url.encode() + b"/plm/apievil")
    assert upstream.seen[0].values(b"accept-encoding") == [b"identity"]
    assert lines == [*kept, b"Transfer-Encoding: chunked", b"Connection: close"]
    assert unchunked(body) == wanted.replace(b"@", base)
    assert old_lines == head_lines == [*kept, b"Connection: close"]
    assert old == wanted.replace(b"@", b"http://localhost")
    assert nothing == b""


def unchunked(data: bytes) -> bytes:
    """Return the body of chunks that are complete."""
    body = b""
    while data != b"0\r\n\r\n":
        size, _, rest = data.partition(b"\r\n")
        body += rest[: int(size, 16)]
        assert int(size, 16) > 0
        data = rest[int(size, 16) + 2 :]
    return body


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (b"206 Partial Content", [b"Content-Type: application/json", b"Content-Range: bytes 0-4/9"]),
        (b"200 OK", [b"Content-Type: application/json", b"Content-Encoding: gzip"]),
        (b"200 OK", [b"Content-Type: application/octet-stream", b"Accept-Ranges: bytes"]),
    ],
)
async def test_other_bodies_stay(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path, status: bytes, fields: list[bytes]
) -> None:
    """A part, a compressed body and another media type come byte for byte, with their length."""
    body = b'"%b/plm/api/a"' % upstream.url.encode()
    lines = [*fields, b"Content-Length: %d" % len(body)]
    answers(upstream, answer(*lines, status=status, body=body))
    async with serving(upstream, tokens, tmp_path, links=LINKS) as rig:
        assert await ask(rig, b"Host: localhost") == (b"HTTP/1.1 " + status, [*lines, b"Connection: close"], body)


async def test_proxy_port_rewrites_no_body(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """There the name of the upstream is the client's own, and compressed answers are asked for as the client does."""
    body = b'"%b/plm/api/a"' % upstream.url.encode()
    answers(upstream, answer(b"Content-Type: application/json", b"Content-Length: %d" % len(body), body=body))
    async with serving(upstream, tokens, tmp_path, links=LINKS | {"forwarded": True}) as rig:
        url = upstream.url.encode() + b"/plm/api/x"
        got = await raw(rig.port(), b"GET %b HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n%b" % (url, CLOSE))

    assert got.endswith(body)
    assert upstream.seen[0].values(b"accept-encoding") == [b"gzip"]
    assert upstream.seen[0].values(b"x-forwarded-host") == []


async def test_rewritten_answer_that_breaks_off_is_cut_off(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """It cannot look whole, and what was held back of it is not told."""
    answers(upstream, answer(b"Content-Type: application/json", b"Content-Length: 500", body=b'"@/a", "http'))
    async with serving(upstream, tokens, tmp_path, links=LINKS) as rig:
        _, _, body = await ask(rig, b"Host: localhost")

    assert not body.endswith(b"0\r\n\r\n")
    assert b"http://localhost/a" in body
    assert not body.rstrip(b"\r\n").endswith(b'"http')


async def test_forwarded_tells_the_name_of_the_reverse_port(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """The upstream hears by which name it is known, instead of what a script may claim."""
    async with serving(upstream, tokens, tmp_path, links={"forwarded": True}) as rig:
        await ask(rig, b"Host: " + here(rig), b"X-Forwarded-Host: evil.example", b"X-Forwarded-For: 10.0.0.1")
        name = here(rig)

    assert upstream.seen[0].fields[1:-2] == [
        b"X-Forwarded-For: 10.0.0.1",
        b"X-Forwarded-Host: " + name,
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Prefix: /",
    ]


async def test_event_stream_is_rewritten_as_it_comes(tokens: TokenServer, tmp_path: Path) -> None:
    """An event is with the client before the next is made."""
    taken = asyncio.Event()

    async def stream(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"Content-Type: text/event-stream", body=b"data: %b/plm/api/1\n\n" % up.url.encode()))
        await taken.wait()
        writer.close()

    async with recorder(stream) as up, serving(up, tokens, tmp_path, links={"rewrite": ["text/event-stream"]}) as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(20):
            assert await reader.readuntil(b"data: http://localhost/1\n\n")
            taken.set()
            assert await reader.readuntil(b"0\r\n\r\n")
        writer.close()
