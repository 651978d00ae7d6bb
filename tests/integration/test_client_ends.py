"""A client that says its last: it is answered all the same, and noticed when it is really gone."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme

from sidecar.events import RequestDone
from sidecar.proxy.wire import reset
from tests.rig import OK, Recorder, Rig, Seen, TokenServer, configuration, recorder, sidecar, status_of

pytestmark = pytest.mark.usefixtures("both_modes")

GET = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /up HTTP/1.1\r\nHost: localhost\r\n"


class World:
    """An upstream that answers when it may, and tells whether somebody still waits for it."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def script(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer, or notice that the other end has gone."""
        del seen
        self.asked.set()
        waiting = asyncio.create_task(self.may_answer.wait())
        leaving = asyncio.create_task(reader.read(1))
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            leaving.cancel()
            writer.write(OK)
        else:
            waiting.cancel()
            self.left.set()
            writer.close()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def upstream(world: World) -> AsyncIterator[Recorder]:
    async with recorder(world.script) as record:
        yield record


@pytest.fixture
async def rig(both_modes: str, upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> AsyncIterator[Rig]:
    del both_modes
    async with sidecar(configuration(upstream.url, tokens.url, tmp_path)) as running:
        yield running


async def soon(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.01)


def outcomes(rig: Rig) -> list[str]:
    return [event.outcome for event in rig.events if isinstance(event, RequestDone)]


async def ended(rig: Rig, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection that has sent *data* and its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(data)
    writer.write_eof()
    return reader, writer


@pytest.mark.parametrize("requests", [1, 3])
async def test_client_that_ended_is_answered(rig: Rig, world: World, upstream: Recorder, requests: int) -> None:
    """RFC 9112 section 9.6: all that it has asked for, in order, then the connection ends."""
    reader, writer = await ended(rig, b"".join(GET % number for number in range(requests)))
    async with asyncio.timeout(10):
        await world.asked.wait()
        world.may_answer.set()
        answers = await reader.read()
    writer.close()

    assert answers == OK * requests
    assert [seen.line.split()[1] for seen in upstream.seen] == [b"/%d" % number for number in range(requests)]
    await soon(lambda: outcomes(rig) == ["passed"] * requests)


async def test_end_of_a_kept_connection_closes_it(rig: Rig, world: World) -> None:
    """After an answer, with nothing more asked for."""
    world.may_answer.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(GET % 1)
    async with asyncio.timeout(10):
        assert await reader.readexactly(len(OK)) == OK
        writer.write_eof()
        assert await reader.read() == b""
    writer.close()


async def test_end_in_a_head_closes(rig: Rig, upstream: Recorder) -> None:
    """Half a request is none."""
    reader, writer = await ended(rig, (GET % 1)[:-2])
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()

    assert upstream.bytes_in == 0


@pytest.mark.parametrize(
    "sent",
    [b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"],
    ids=["length", "chunked"],
)
async def test_end_in_a_body_is_told_and_is_no_end_of_the_body(
    world: World, tokens: TokenServer, tmp_path: Path, sent: bytes
) -> None:
    """The client may still read, so it gets 400; the upstream sees a request that breaks off."""
    rest: list[bytes] = []

    async def listen(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.asked.set()
        with contextlib.suppress(ConnectionError):
            rest.append(await reader.read())
        world.left.set()
        writer.close()

    async with recorder(listen, read_body=False) as record:
        async with sidecar(configuration(record.url, tokens.url, tmp_path)) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
            writer.write(POST + sent)
            async with asyncio.timeout(10):
                await world.asked.wait()
                writer.write_eof()
                answer = await reader.read()
                await world.left.wait()
            writer.close()
            await soon(lambda: outcomes(rig) == ["client_gone"])

    assert status_of(answer) == 400
    assert not any(part.endswith(b"0\r\n\r\n") for part in rest)


async def test_reset_after_the_end_is_noticed_at_once(rig: Rig, world: World) -> None:
    """The upstream is let go, though nothing is read from that client any more."""
    _, writer = await ended(rig, GET % 1)
    async with asyncio.timeout(10):
        await world.asked.wait()
        reset(writer)
        await world.left.wait()
    await soon(lambda: outcomes(rig) == ["client_gone"])


async def test_client_that_closed_leaves_nothing_behind(rig: Rig, world: World) -> None:
    """It looks like one that still reads; its request ends when the upstream has answered, and all is given back."""

    def held() -> tuple[int, int]:
        return len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))

    world.may_answer.set()
    reader, writer = await ended(rig, GET % 0)
    assert await reader.read() == OK
    writer.close()
    await soon(lambda: outcomes(rig) == ["passed"])
    before = held()
    world.may_answer.clear()
    world.asked.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))
    writer.write(GET % 1)
    async with asyncio.timeout(10):
        await world.asked.wait()
    writer.close()
    await writer.wait_closed()
    world.may_answer.set()
    await soon(lambda: len(outcomes(rig)) == 2 and rig.app.busy == 0)

    await soon(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


@pytest.mark.parametrize("says_goodbye", [True, False], ids=["close_notify", "FIN"])
async def test_client_that_ended_inside_tls_is_answered(
    world: World, tokens: TokenServer, tmp_path: Path, says_goodbye: bool
) -> None:
    """With close_notify, or with the end of the connection under it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "upstream.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with recorder(world.script, tls=context) as record:
        data = configuration(record.url, tokens.url, tmp_path / "state", tls={"ca": str(tmp_path / "upstream.pem")})
        async with sidecar(data) as rig, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
            writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n\r\n" % record.port)
            await reader.readuntil(b"\r\n\r\n")
            client = _Tls(reader, writer, tmp_path / "state/ca/roots.pem")
            await client.handshake()
            await client.write(GET % 1)
            if says_goodbye:
                await client.goodbye()
            else:
                writer.write_eof()
            await world.asked.wait()
            world.may_answer.set()
            answer = await client.read()
            writer.close()

    assert answer == OK


class _Tls:
    """A client's TLS by hand: the standard library's closes both directions at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, roots: Path) -> None:
        self._reader, self._writer = reader, writer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(roots))
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    async def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._in.write(await self._reader.read(65536))
            else:
                self._flush()
                return

    async def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()
        await self._writer.drain()

    async def goodbye(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._flush()
        await self._writer.drain()

    async def read(self) -> bytes:
        """Return all until the end."""
        data = b""
        while True:
            try:
                if not (part := self._tls.read(65536)):
                    return data
                data += part
            except ssl.SSLWantReadError:
                if not (more := await self._reader.read(65536)):
                    return data
                self._in.write(more)
            except ssl.SSLZeroReturnError:
                return data

    def _flush(self) -> None:
        self._writer.write(self._out.read())
