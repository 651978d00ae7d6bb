"""What a client's connection goes through between requests: early answers, late bodies, late heads, unread answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.events import RequestDone
from sidecar.proxy import http1
from sidecar.proxy.wire import reset
from tests.rig import (
    Recorder,
    Rig,
    Seen,
    TokenServer,
    configuration,
    problem_of,
    raw,
    recorder,
    sidecar,
    status_of,
)

pytestmark = pytest.mark.usefixtures("both_modes")

POST = b"POST /up HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n"
GET = b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LARGE = 32 << 10


async def _answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuse an upload at once, whatever is still to come; answer all else with its path or much."""
    del reader
    path = seen.head.split(b" ")[1]
    if path == b"/up":
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
        writer.close()
    else:
        body = bytes(LARGE) if path == b"/large" else path
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    async with recorder(_answer, read_body=False) as record:
        yield record


@pytest.fixture
async def rig(both_modes: str, upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> AsyncIterator[Rig]:
    del both_modes
    data = configuration(upstream.url, tokens.url, tmp_path)
    data["limits"] = {"header_timeout": "500ms"}
    async with sidecar(data) as running:
        yield running


async def _early(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection whose upload has its answer, and is not over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(POST)
    async with asyncio.timeout(20):
        assert (await reader.readuntil(b"large")).startswith(b"HTTP/1.1 413")
    return reader, writer


async def test_request_after_a_late_body_is_served(rig: Rig) -> None:
    """The rest of an upload that was answered already may come in one piece with the next request."""
    reader, writer = await _early(rig)
    writer.write(b"4\r\nmore\r\n0\r\n\r\n" + LAST)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"/last")


async def test_broken_rest_of_an_answered_upload_gets_no_second_answer(rig: Rig) -> None:
    """What a client sees after a whole answer must not be taken for that to its next request."""
    reader, writer = await _early(rig)
    writer.write(b"no chunk\r\n")
    async with asyncio.timeout(20):
        rest = await reader.read()
    writer.close()

    assert rest == b""


async def test_answered_upload_that_never_ends_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client has a few seconds to stop, no more."""
    monkeypatch.setattr(http1, "_LINGER_SECONDS", 0.2)
    reader, writer = await _early(rig)
    async with asyncio.timeout(20):
        try:
            rest = await reader.read()
        except ConnectionResetError:
            rest = b""
    writer.close()

    assert rest == b""


async def test_late_head_on_a_connection_in_use_is_told(rig: Rig) -> None:
    """A second request that stops in its head gets 408, as a first one does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(GET)
    async with asyncio.timeout(20):
        await reader.readuntil(b"/next")
        writer.write(GET[:20])
        rest = await reader.read()
    writer.close()

    assert status_of(rest) == 408


async def test_client_that_reads_nothing_gets_no_more(rig: Rig, upstream: Recorder) -> None:
    """Answers that nobody reads are not piled up: its further requests wait."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"), limit=1 << 12)
    writer.write(GET.replace(b"/next", b"/large") * 2000)
    async with asyncio.timeout(20):
        before = 0
        while not before or before != len(upstream.seen):
            before = len(upstream.seen)
            await asyncio.sleep(0.5)
    writer.transport.abort()
    del reader

    assert before * LARGE < 32 << 20


async def test_refused_request_leaves_nothing_under_way(rig: Rig) -> None:
    """An exchange that is over before its task has begun to wait is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(b"GET http://nobody.example/ HTTP/1.1\r\nHost: nobody.example\r\n\r\n")
    async with asyncio.timeout(20):
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 403
        while rig.app.busy:
            await asyncio.sleep(0.01)
    writer.close()


async def test_broken_upload_is_told_and_ends_its_exchange(rig: Rig, upstream: Recorder) -> None:
    """Chunks that are none: 400 for the client, and the upstream gets no end that it could take for a whole body."""
    answer = await raw(rig.port("plm"), POST.replace(b"/up", b"/next").replace(b"4\r\nbody", b"zz\r\nbody"))

    assert status_of(answer) == 400
    assert all(not seen.body.endswith(b"0\r\n\r\n") for seen in upstream.seen)


@pytest.mark.parametrize(
    "endless", [b"3;" + b"a" * 300_000, b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 50_000], ids=["extension", "trailers"]
)
async def test_chunk_line_or_trailers_without_end_are_refused(rig: Rig, endless: bytes) -> None:
    """They are dropped, so they need not be long; who sends them without end gets 400, though it is still sending."""
    answer = await raw(rig.port("plm"), POST.replace(b"/up", b"/next").removesuffix(b"4\r\nbody\r\n") + endless)

    assert status_of(answer) == 400
    assert problem_of(answer)["reason"] == "bad_request"


async def test_refused_client_that_still_sends_gets_the_answer(rig: Rig) -> None:
    """A connection that is closed with bytes unread is reset, and the answer would be lost with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(b"GET / HTTP/9.9\r\n\r\n")
    async with asyncio.timeout(20):
        for _ in range(64):
            writer.write(bytes(64 << 10))
            await writer.drain()
        answer = await reader.read()
    writer.close()

    assert status_of(answer) == 400


async def test_client_that_was_not_asked_for_its_body_is_closed(rig: Rig) -> None:
    """Nobody knows whether the body comes after all: the next request could be taken for it, or it for a request."""
    head = b"TRACE /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    answer = await raw(rig.port("plm"), head + GET)

    assert status_of(answer) == 405
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_client_that_takes_nothing_is_gone_after_its_time(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """`timeout.idle` is the upstream's; who reads again within it loses nothing."""
    size = 64 << 20

    async def much(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        with contextlib.suppress(ConnectionError):
            for _ in range(size >> 16):
                writer.write(bytes(1 << 16))
                await writer.drain()

    upstream.script = much
    data = configuration(upstream.url, tokens.url, tmp_path, timeout={"idle": "1s"})
    async with sidecar(data) as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"), limit=1 << 14)
        writer.write(GET)
        async with asyncio.timeout(30):
            while not (done := [event for event in rig.events if isinstance(event, RequestDone)]):
                await asyncio.sleep(0.05)
            taken = 0
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 20):
                    taken += len(data)
        writer.close()

    assert [event.outcome for event in done] == ["client_gone"]
    assert taken < size


async def test_refused_connection_is_told_why(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> None:
    """And its request, which was sent already, does not cost it the answer."""
    busy, over = asyncio.Event(), asyncio.Event()

    async def wait(_: Seen, __: asyncio.StreamReader, ___: asyncio.StreamWriter) -> None:
        busy.set()
        await over.wait()

    upstream.script = wait
    data = configuration(upstream.url, tokens.url, tmp_path)
    data["limits"] = {"connections": 1}
    async with sidecar(data) as rig:
        _, first = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
        first.write(GET)
        async with asyncio.timeout(20):
            await busy.wait()
        answer = await raw(rig.port("plm"), LAST)
        reset(first)
        over.set()

    assert problem_of(answer)["reason"] == "too_many_connections"
