"""The pool against upstreams that say odd things, say them early, late or in pieces, and that go away."""

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trustme

from sidecar.errors import UpstreamFailure
from sidecar.exchange import connection, upstream
from sidecar.exchange.answer import Answer
from sidecar.exchange.body import ClientGone, RequestBody
from sidecar.exchange.connection import UpstreamConnection
from sidecar.exchange.patience import Patience
from sidecar.exchange.spool import Spool
from sidecar.exchange.upstream import Pool
from sidecar.policy.routing import Origin
from tests.canary import WORD, canary
from tests.rig import OK, Recorder, Script, Seen, recorder

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
LONG = 30.0
MIB = 1 << 20


def _no_spool() -> Spool:
    raise OSError("no spool in this test")


def a_body(data: bytes | None = b"", length: int | None = 0) -> RequestBody:
    """Return a request body that is here already; with *data* None nothing of it is here yet."""
    body = RequestBody(length, open_spool=_no_spool, wanted=lambda: None)
    body.keep(4 * MIB, 0)
    if data is not None:
        body.feed(data)
        body.feed_end()
    return body


@dataclass
class Asking:
    """A pool, and requests on it."""

    pool: Pool
    upstream: Recorder

    async def ask(
        self, path: bytes = b"/x", method: bytes = b"GET", *fields: bytes, body: RequestBody | None = None
    ) -> Answer:
        """Return the answer, with its head only."""
        body = body or a_body()
        framing = [b"Transfer-Encoding: chunked"] if body.length is None else [b"Content-Length: %d" % body.length]
        lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: a", *fields, *framing, b"", b""]
        async with asyncio.timeout(LONG):
            return await self.pool.send(method, b"\r\n".join(lines), body)

    async def whole(self, path: bytes = b"/x", method: bytes = b"GET") -> tuple[int, bytes]:
        """Return status and body."""
        answer = await self.ask(path, method)
        return answer.status, await rest_of(answer)

    async def failure(
        self, path: bytes = b"/x", method: bytes = b"GET", body: RequestBody | None = None
    ) -> UpstreamFailure:
        """Return the failure to get the head of an answer."""
        with pytest.raises(UpstreamFailure) as caught:
            await self.ask(path, method, body=body)
        return caught.value


async def rest_of(answer: Answer) -> bytes:
    """Return the body of *answer*, however it comes."""
    parts = [answer.ready()]
    async with asyncio.timeout(LONG):
        while not answer.empty:
            parts.append(await answer.read())
    return b"".join(parts)


async def until_full(body: RequestBody) -> int:
    """Feed *body* until nobody takes any more of it, and return how much that was."""
    fed = 0
    async with asyncio.timeout(LONG):
        for _ in range(20):
            while not body.full:
                body.feed(bytes(64 << 10))
                fed += 64 << 10
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
    return fed


async def failing(answer: Answer) -> tuple[bytes, UpstreamFailure]:
    """Return what can be read of an answer that breaks off, and the failure."""
    got = b""
    async with asyncio.timeout(LONG):
        while True:
            try:
                got += await answer.read()
            except UpstreamFailure as failure:
                return got, failure


def pool_of(
    origin: Origin, *, context: ssl.SSLContext | None = None, first_byte: float = LONG, idle: float = LONG
) -> Pool:
    patience = Patience(connect=LONG, first_byte=first_byte, idle=idle)
    return Pool(origin, context=context, patience=patience, addresses=(), own_addresses=lambda: ())


@contextlib.asynccontextmanager
async def asking(
    script: Script | None = None,
    *,
    read_body: bool = True,
    first_byte: float = LONG,
    idle: float = LONG,
    tls: trustme.CA | None = None,
) -> AsyncIterator[Asking]:
    server = client = None
    if tls is not None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.issue_cert("localhost").configure_cert(server)
        client = ssl.create_default_context()
        tls.configure_trust(client)
    async with recorder(script, read_body=read_body, tls=server) as record:
        origin = Origin("https" if tls else "http", "localhost" if tls else "127.0.0.1", record.port)
        pool = pool_of(origin, context=client, first_byte=first_byte, idle=idle)
        try:
            yield Asking(pool, record)
        finally:
            await pool.aclose()


def idle_ones(at: Asking) -> list[UpstreamConnection]:
    """Return the connections that wait for a request."""
    each = [protocol for idle in at.pool._connector._conns.values() for protocol, _ in idle]
    return [protocol for protocol in each if protocol.is_connected()]


async def until_nothing_idles(at: Asking) -> None:
    """Wait until no connection is kept for another request."""
    async with asyncio.timeout(LONG):
        while idle_ones(at):
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


# What every client takes, and what none should.

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
POISON = HEAD + b"Content-Length: 6\r\n\r\npoison"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
TAKEN: dict[str, tuple[bytes, bytes, bool]] = {
    "a length": (HEAD + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "none": (HEAD + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunks": (CHUNKED + CHUNKS, b"hello", True),
    "chunks with trailers": (CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n", b"hello", True),
    "until the end": (HEAD + b"\r\nhello", b"hello", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "HTTP/1.0 kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    "close": (HEAD + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "one length twice": (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    "one length in a list": (HEAD + b"Content-Length: 5, 5\r\n\r\nhello", b"hello", True),
    "chunks and a length": (CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n" + CHUNKS, b"hello", False),
    "identity": (HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    "line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", b"hello", True),
    "blank before the colon": (HEAD + b"X : y\r\nContent-Length : 5\r\n\r\nhello", b"hello", True),
    "folded": (HEAD + b"X: y\r\n z\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + HEAD + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "more than its length": (HEAD + b"Content-Length: 5\r\n\r\nhello" + POISON, b"hello", False),
    "more than its chunks": (CHUNKED + CHUNKS + POISON, b"hello", False),
    "a 204 with a body": (b"HTTP/1.1 204 No\r\nContent-Length: 6\r\n\r\npoison", b"", False),
    "a 204 in chunks": (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n", b"", False),
    "a 304 with a length": (b"HTTP/1.1 304 Not\r\nContent-Length: 6\r\n\r\n", b"", True),
}  # fmt: skip
ENDS = frozenset({"until the end"})
"""What has no other end than that of the connection."""


def piecemeal(size: int) -> Script:
    """Return a script that answers by target, in packets of *size*."""

    async def say(seen: Seen, _: Reader, writer: Writer) -> None:
        name = seen.line.split()[1].decode().strip("/").replace("-", " ")
        data = {**TAKEN, **REFUSED, **BROKEN}.get(name, (OK,))[0]
        for at in range(0, len(data), size):
            if writer.is_closing():
                raise ConnectionError
            writer.write(data[at : at + size])
            # Nagle is off: each write is a packet, as long as the other side reads in between.
            await writer.drain()
            await asyncio.sleep(0)
        if name in ENDS or name in CUT or seen.values(b"connection"):
            writer.close()
            raise ConnectionError

    return say


def path_of(name: str) -> bytes:
    return f"/{name.replace(' ', '-')}".encode()


@pytest.mark.parametrize("size", [1, 7, MIB], ids=["bytes", "pieces", "whole"])
async def test_what_every_client_takes_is_taken(size: int) -> None:
    """However it is cut into packets, and again; a connection that may not be used again is not, nothing is mixed."""
    for name, (_, body, kept) in TAKEN.items():
        async with asking(piecemeal(size)) as at:
            got = []
            for path in (path_of(name), b"/good", path_of(name)):
                got.append(await at.whole(path))
                if b"more-than" in path:
                    await until_nothing_idles(at)  # nobody can tell from an answer what is still on its way
        assert [content for _, content in got] == [body, b"ok", body], name
        assert at.upstream.connections == (1 if kept else 2), name


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is what it is held against")
async def test_curl_takes_what_is_taken() -> None:
    """Status and body are what curl makes of the same bytes."""
    async with asking(piecemeal(MIB)) as at:
        for name in TAKEN:
            url = f"{at.upstream.url}{path_of(name).decode()}"
            arguments = ("curl", "-q", "-s", "--max-time", "20", "-H", "Connection: close", "-w", "|%{http_code}", url)
            curl = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
            output, _ = await curl.communicate()
            status, body = await at.whole(path_of(name))
            assert (output, curl.returncode) == (b"%b|%d" % (body, status), 0), name


REFUSED: dict[str, tuple[bytes]] = {
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n",),
    "HTTP/2": (b"HTTP/2 200\r\n\r\n",),
    "099": (b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",),
    "1000": (b"HTTP/1.1 1000 Odd\r\nContent-Length: 0\r\n\r\n",),
    "101": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",),
    "control in the reason": (b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n",),
    "NUL in a value": (HEAD + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n",),
    "CR in a value": (HEAD + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",),
    "no token": (HEAD + b"X Y: a\r\nContent-Length: 0\r\n\r\n",),
    "no name": (HEAD + b": a\r\nContent-Length: 0\r\n\r\n",),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",),
    "plus": (HEAD + b"Content-Length: +5\r\n\r\nhello",),
    "gzip": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,),
    "identity last": (HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\nhello",),
    "interim for ever": (b"HTTP/1.1 102 Processing\r\n\r\n" * 21,),
    "many fields": (HEAD + b"X: y\r\n" * 1001 + b"\r\n",),
    "large": (HEAD + b"X: " + b"y" * (64 << 10) + b"\r\n\r\n",),
    "large without an end": (HEAD + b"X: " + b"y" * (64 << 10),),
}


@pytest.mark.parametrize("size", [1, 1000, MIB], ids=["bytes", "pieces", "whole"])
async def test_what_none_should_take_is_refused(size: int) -> None:
    """At once, as an answer that cannot be passed on, and the next request has a connection of its own."""
    async with asking(piecemeal(size)) as at:
        for name in REFUSED:
            if size == 1 and "large" in name:
                continue  # a packet for each of its bytes takes minutes
            failure = await at.failure(path_of(name))
            facts = (failure.sent, failure.invalid, failure.reused, failure.timeout, failure.prohibited)
            assert facts == (True, True, False, False, False), name
            said = f"127.0.0.1:{at.upstream.port} gave an answer that cannot be passed on: "
            assert str(failure).startswith(said), name
            assert await at.whole(b"/good") == (200, b"ok"), name


BROKEN: dict[str, tuple[bytes, bytes]] = {
    "short": (HEAD + b"Content-Length: 50\r\n\r\nhello", b"hello"),
    "cut chunks": (CHUNKED + b"5\r\nhello\r\n", b"hello"),
    "cut in a chunk": (CHUNKED + b"9\r\nhello", b"hello"),
    "no last line": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"hello"),
    "bad chunk": (CHUNKED + b"5\r\nhello\r\nZZ\r\n", b"hello"),
    "long chunk": (CHUNKED + b"5\r\nhelloworld\r\n0\r\n\r\n", b"hello"),
}
CUT = frozenset({"short", "cut chunks", "cut in a chunk", "no last line"})


@pytest.mark.parametrize("size", [1, MIB], ids=["bytes", "whole"])
async def test_body_that_breaks_off_breaks_off_for_the_reader(size: int) -> None:
    """What was good is read before, however it was cut, and it never ends; the failure says whose answer it was."""
    async with asking(piecemeal(size)) as at:
        for name, (_, good) in BROKEN.items():
            answer = await at.ask(path_of(name))
            got, failure = await failing(answer)
            assert got == good, name
            assert not answer.empty, name
            assert str(failure).startswith(f"127.0.0.1:{at.upstream.port} broke its answer off: "), name
            assert (failure.sent, failure.timeout, failure.invalid) == (True, False, False), name
            assert await at.whole(b"/good") == (200, b"ok"), name


async def test_answer_to_head_has_no_body() -> None:
    """Whatever its fields say, and the connection is used again."""

    async def say(seen: Seen, _: Reader, writer: Writer) -> None:
        framing = b"Transfer-Encoding: chunked" if b"/chunks" in seen.line else b"Content-Length: 5"
        writer.write(HEAD + framing + b"\r\n\r\n")

    async with asking(say) as at:
        got = [await at.whole(path, b"HEAD") for path in (b"/chunks", b"/length", b"/chunks")]

    assert got == [(200, b"")] * 3
    assert at.upstream.connections == 1


async def test_head_of_an_answer_is_as_the_upstream_wrote_it() -> None:
    """Spelling, order, duplicates and bytes beyond ASCII stay; a length that was said twice is said once."""
    fields = b"b: 1\r\nA:  2 \r\nb: 3\r\nX: \xdc\xff\r\nContent-Length: 1\r\nCONTENT-LENGTH: 1\r\n"

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 299 \xdcml\r\n" + fields + b"\r\nx")

    async with asking(say) as at:
        answer = await at.ask()

    assert (answer.status, answer.reason) == (299, b"\xdcml")
    assert answer.fields == ((b"b", b"1"), (b"A", b"2"), (b"b", b"3"), (b"X", b"\xdc\xff"), (b"Content-Length", b"1"))
    assert (answer.length, answer.chunked, answer.ready(), answer.empty) == (1, False, b"x", True)


# Which connection is used again.


async def test_what_comes_after_an_answer_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a packet of its own too: no request is answered with it, and none is sent where it came."""
    monkeypatch.setattr(upstream, "_KEEP_IDLE", 600.0)
    sent = asyncio.Event()

    async def say(_: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(OK)
        if at.upstream.connections == 1:
            await writer.drain()
            await sent.wait()
            writer.write(HEAD + b"Content-Length: 6\r\n\r\npoison")
            assert await reader.read() == b""
            raise ConnectionError

    async with asking(say) as at:
        first = await at.whole()
        sent.set()
        await until_nothing_idles(at)
        assert (first, await at.whole()) == ((200, b"ok"), (200, b"ok"))

    assert at.upstream.connections == 2


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("told", [False, True], ids=["buffers", "kernel"])
async def test_early_answer_ends_its_connection(
    authority: trustme.CA, secure: bool, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says keep-alive before it has the request closes all the same; it is here at once, and read whole.

    Where the kernel does not tell what is acknowledged, what waits in our own buffers does.
    """
    if not told:
        monkeypatch.setattr(connection, "unacknowledged", lambda _: 0)

    async def say(seen: Seen, reader: Reader, writer: Writer) -> None:
        if b"POST" not in seen.line:
            writer.write(OK)
            return
        await reader.readexactly(10)
        writer.transport.pause_reading()
        writer.write(b"HTTP/1.1 413 Large\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await over.wait()
        raise ConnectionError

    over = asyncio.Event()
    async with asking(say, read_body=False, tls=authority if secure else None) as at:
        size = 20 * MIB  # more than the kernels take
        unfinished = a_body(None, size)
        unfinished.feed(bytes(100))
        whole = a_body(bytes(size), size)
        whole.keep(size, 0)
        for body in (unfinished, whole):
            early = await at.ask(b"/x", b"POST", body=body)
            assert (early.status, await rest_of(early)) == (413, b"big")
        assert [await at.whole(), await at.whole()] == [(200, b"ok"), (200, b"ok")]
        over.set()

    assert at.upstream.connections == 3


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("length", [MIB, None], ids=["length", "chunks"])
async def test_connection_that_took_an_upload_is_used_again(
    authority: trustme.CA, secure: bool, length: int | None
) -> None:
    """Once all of it has left, be it in one piece or as it came, interim answers or not."""

    async def say(seen: Seen, _: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
        assert len(seen.body) in (0, MIB)

    async with asking(say, tls=authority if secure else None) as at:
        for _ in range(2):
            answer = await at.ask(b"/x", b"PUT", body=a_body(bytes(MIB), length))
            assert await rest_of(answer) == b"ok"
            body = a_body(None, length)
            asking_again = asyncio.create_task(at.ask(b"/x", b"PUT", body=body))
            for _part in range(4):
                body.feed(bytes(MIB // 4))
                await asyncio.sleep(0.01)
            body.feed_end()
            assert await rest_of(await asking_again) == b"ok"
        (idle,) = idle_ones(at)
        assert idle.transport is not None
        assert idle.transport.get_write_buffer_limits()[1] >= 64 << 10
        assert await at.whole() == (200, b"ok")

    assert at.upstream.connections == 1


async def test_interim_answer_in_mid_upload_is_not_early() -> None:
    """`100 Continue`, which some servers say unasked, does not cost the connection."""

    async def say(seen: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        told.set()
        await reader.readexactly(int((seen.values(b"content-length") or [b"0"])[0]))
        writer.write(OK)

    told = asyncio.Event()
    async with asking(say, read_body=False) as at:
        body = a_body(None, 4)
        waiting = asyncio.create_task(at.ask(b"/x", b"PUT", body=body))
        await told.wait()
        await asyncio.sleep(0.05)
        body.feed(b"1234")
        body.feed_end()
        assert await rest_of(await waiting) == b"ok"
        assert await at.whole() == (200, b"ok")

    assert at.upstream.connections == 1


@pytest.mark.parametrize(("said", "reused"), [(b"", True), (b"H", False), (b"HTTP/1.1 100 Continue\r\n\r\n", False)])
async def test_pooled_connection_that_had_ended(said: bytes, reused: bool) -> None:
    """It is told from one that broke off in mid-answer: only then nobody can have seen the request."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        if len(at.upstream.seen) == 1:
            writer.write(OK)
            return
        writer.write(said)
        await writer.drain()
        raise ConnectionError

    async with asking(say) as at:
        await at.whole()
        failure = await at.failure()
        new = await at.failure()

    assert (failure.sent, failure.reused, failure.invalid, failure.timeout) == (True, reused, False, False)
    assert (new.sent, new.reused) == (True, False)


async def test_fresh_is_a_new_connection() -> None:
    """Also where one is idle, which is given up."""
    async with asking() as at:
        await at.whole()
        async with asyncio.timeout(LONG):
            answer = await at.pool.send(b"GET", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", a_body(), fresh=True)
        await rest_of(answer)
        await at.whole()

    assert at.upstream.connections == 2


async def test_given_up_answer_ends_its_connection() -> None:
    """The upstream sees the end, reading on is an error, and giving up what has ended does no harm."""
    gone = asyncio.Event()

    async def say(seen: Seen, reader: Reader, writer: Writer) -> None:
        if b"/long" not in seen.line:
            writer.write(OK)
            return
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\nx")
        await writer.drain()
        await reader.read()
        gone.set()
        raise ConnectionError

    async with asking(say) as at:
        answer = await at.ask(b"/long")
        answer.close()
        answer.close()
        async with asyncio.timeout(LONG):
            await gone.wait()
        assert (await failing(answer))[0] == b"x"
        ended = await at.ask()
        ended.close()
        assert (await rest_of(ended), await at.whole()) == (b"ok", (200, b"ok"))

    assert at.upstream.connections == 2


async def test_cancelled_request_ends_its_connection() -> None:
    """The upstream sees the end, and no later request gets that answer."""
    gone, asked = asyncio.Event(), asyncio.Event()

    async def say(seen: Seen, reader: Reader, writer: Writer) -> None:
        if b"/never" in seen.line:
            asked.set()
            await reader.read()
            gone.set()
            raise ConnectionError
        writer.write(OK)

    async with asking(say) as at:
        waiting = asyncio.create_task(at.ask(b"/never"))
        await asked.wait()
        waiting.cancel()
        async with asyncio.timeout(LONG):
            await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await at.whole() == (200, b"ok")


async def test_request_that_does_not_leave_does_not_hold_a_connection() -> None:
    """Given up, its connection is reset: closing it would wait for an upstream that reads nothing."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.transport.pause_reading()
        await over.wait()
        raise ConnectionError

    over = asyncio.Event()
    async with asking(say, read_body=False) as at:
        body = a_body(None, 1 << 40)
        waiting = asyncio.create_task(at.ask(b"/x", b"PUT", body=body))
        await until_full(body)
        (busy,) = at.pool._connector._acquired
        used = busy.transport.get_extra_info("socket")
        waiting.cancel()
        async with asyncio.timeout(LONG):
            while used.fileno() != -1:
                await asyncio.sleep(0.001)
        over.set()
        assert busy.transport is None


async def test_request_that_is_not_acknowledged_has_not_been_taken() -> None:
    """Also when it has left for the kernel: an answer that comes meanwhile is early."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connections = 0

    async def serve(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        if b"PUT" in head:
            writer.transport.pause_reading()
        writer.write(OK)
        await over.wait()
        writer.close()

    over = asyncio.Event()
    async with await asyncio.start_server(serve, sock=listening, limit=1024):
        at = Asking(pool_of(Origin("http", *listening.getsockname())), Recorder())
        assert await rest_of(await at.ask(b"/x", b"PUT", body=a_body(bytes(40 << 10), 40 << 10))) == b"ok"
        assert await at.whole() == (200, b"ok")
        over.set()
        await at.pool.aclose()

    assert connections == 2


# Whose time runs.


async def test_silent_upstream_is_given_up() -> None:
    """After `first_byte`, which interim answers do not prolong; the request was sent, and nobody else's is told."""

    async def say(_: Seen, reader: Reader, writer: Writer) -> None:
        for _number in range(3):
            writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.15)
        await reader.read()
        raise ConnectionError

    async with asking(say, first_byte=0.3) as at:
        loop = asyncio.get_running_loop()
        began = loop.time()
        failure = await at.failure()
        took = loop.time() - began

    assert (failure.sent, failure.timeout, failure.reused, failure.invalid) == (True, True, False, False)
    assert str(failure) == f"127.0.0.1:{at.upstream.port} gave no answer: nothing came in time"
    assert 0.3 <= took < LONG / 2


async def test_each_request_on_a_connection_has_its_own_time() -> None:
    """What is left of an earlier one is not counted, and what passes between them is not either."""

    async def say(seen: Seen, reader: Reader, writer: Writer) -> None:
        if b"/never" in seen.line:
            await reader.read()
            raise ConnectionError
        writer.write(OK)

    async with asking(say, first_byte=1.0) as at:
        loop = asyncio.get_running_loop()
        for _ in range(6):
            assert await at.whole() == (200, b"ok")
            await asyncio.sleep(0.25)
        began = loop.time()
        assert (await at.failure(b"/never")).timeout
        took = loop.time() - began

    assert at.upstream.connections == 1
    assert 1.0 <= took < LONG / 2


async def test_no_time_of_the_upstream_runs_while_the_client_is_waited_for() -> None:
    """A client that pauses in its upload, longer than any limit, gets its answer."""
    async with asking(first_byte=1.5, idle=0.3) as at:
        body = a_body(None, 9)
        waiting = asyncio.create_task(at.ask(b"/x", b"PUT", body=body))
        for part in (b"one", b"two", b"end"):
            await asyncio.sleep(0.7)
            body.feed(part)
        body.feed_end()
        assert await rest_of(await waiting) == b"ok"

    assert at.upstream.seen[0].body == b"onetwoend"


async def test_pause_of_the_client_after_one_of_the_upstream() -> None:
    """The time that was given to the upstream to take more is over once it has."""

    async def say(seen: Seen, reader: Reader, writer: Writer) -> None:
        await go_on.wait()
        await reader.readexactly(int(seen.values(b"content-length")[0]))
        writer.write(OK)

    go_on = asyncio.Event()
    async with asking(say, read_body=False, idle=1.5) as at:
        size = 64 * MIB
        body = a_body(None, size)
        waiting = asyncio.create_task(at.ask(b"/x", b"PUT", body=body))
        fed = await until_full(body)
        go_on.set()
        async with asyncio.timeout(LONG):
            while body._live_size:
                await asyncio.sleep(0.001)
        await asyncio.sleep(3.5)
        while fed < size:
            body.feed(bytes(min(MIB, size - fed)))
            fed += min(MIB, size - fed)
        body.feed_end()
        assert await rest_of(await waiting) == b"ok"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kept", [False, True], ids=["as-it-comes", "in-one-piece"])
async def test_upstream_that_takes_no_more_is_given_up(authority: trustme.CA, secure: bool, kept: bool) -> None:
    """After `idle`, while `first_byte` has not begun."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.transport.pause_reading()
        await over.wait()
        raise ConnectionError

    over = asyncio.Event()
    async with asking(say, read_body=False, first_byte=0.01, idle=0.4, tls=authority if secure else None) as at:
        size = 40 * MIB
        body = a_body(bytes(size) if kept else None, size)
        body.keep(size, 0)
        waiting = asyncio.create_task(at.failure(b"/x", b"PUT", body=body))
        while not kept and not waiting.done():
            if not body.full:
                body.feed(bytes(64 << 10))
            await asyncio.sleep(0.001)
        failure = await waiting
        over.set()

    assert (failure.sent, failure.timeout) == (True, True)
    assert str(failure).endswith("gave no answer: it took no more of the request in time")


async def test_slow_upstream_is_not_a_silent_one() -> None:
    """As long as it takes some of the upload now and then, no time passes; its answer is due when it has all."""

    async def say(seen: Seen, reader: Reader, writer: Writer) -> None:
        left = int((seen.values(b"content-length") or [b"0"])[0])
        while left:
            left -= len(await reader.read(256 << 10))
            await asyncio.sleep(0.05)
        writer.write(OK)

    async with asking(say, read_body=False, first_byte=3, idle=1.5) as at:
        loop = asyncio.get_running_loop()
        began = loop.time()
        size = 24 * MIB
        body = a_body(bytes(size), size)
        body.keep(size, 0)
        assert await rest_of(await at.ask(b"/x", b"PUT", body=body)) == b"ok"
        took = loop.time() - began
        assert await at.whole() == (200, b"ok")

    assert took > 4
    assert at.upstream.connections == 1


async def test_answer_that_stalls_is_given_up() -> None:
    """After `idle`, once somebody waits for it."""

    async def say(_: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(HEAD + b"Content-Length: 10\r\n\r\nhalf")
        await writer.drain()
        await reader.read()
        raise ConnectionError

    async with asking(say, idle=0.3) as at:
        answer = await at.ask()
        assert await answer.read() == b"half"
        await asyncio.sleep(0.6)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(UpstreamFailure) as caught:
            await answer.read()
        took = loop.time() - began

    assert caught.value.timeout
    assert 0.3 <= took < LONG / 2


async def test_no_time_of_the_upstream_runs_while_nobody_reads() -> None:
    """A client that takes nothing of its answer for long does not make the upstream a silent one."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (8 * MIB))
        writer.write(bytes(8 * MIB))

    async with asking(say, idle=0.3) as at:
        answer = await at.ask()
        size = len(await answer.read())
        await asyncio.sleep(1)
        while not answer.empty:
            size += len(await answer.read())
            if size > 4 * MIB > size - 400_000:
                await asyncio.sleep(0.5)

    assert size == 8 * MIB


async def test_body_has_no_time_for_its_first_byte() -> None:
    """Once the head is here, `first_byte` is over."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(HEAD + b"Content-Length: 5\r\n\r\nhe")
        await writer.drain()
        await go_on.wait()
        writer.write(b"llo")

    go_on = asyncio.Event()
    async with asking(say, first_byte=1) as at:
        answer = await at.ask()
        await asyncio.sleep(1.5)
        go_on.set()
        assert await rest_of(answer) == b"hello"


@pytest.mark.parametrize("kind", [b"text/event-stream", b"Text/Event-Stream; charset=utf-8"])
async def test_events_may_be_far_apart(kind: bytes) -> None:
    """`idle` is not for them."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(HEAD + b"Content-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" % kind)
        await writer.drain()
        await asyncio.sleep(0.6)
        writer.write(b"0\r\n\r\n")

    async with asking(say, idle=0.2) as at:
        assert await at.whole() == (200, b"hello")


# What ends a request from the client's side.


class Stalled(Exception):
    """What a body may raise; nothing of it is known here."""


@pytest.mark.parametrize("when", ["before", "after-a-part"])
async def test_what_the_body_raises_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """At once, also while the answer is waited for; the connection ends with it."""
    gone = asyncio.Event()

    async def say(_: Seen, reader: Reader, __: Writer) -> None:
        await reader.read()
        gone.set()
        raise ConnectionError

    error: Exception
    for error in (Stalled(canary("stalled")), RuntimeError("the spool"), OSError("the disk"), ConnectionResetError()):
        gone.clear()

        async def chunks(raised: Exception = error) -> AsyncIterator[bytes]:
            if when == "after-a-part":
                yield b"abc"
                await asyncio.sleep(0.05)
            raise raised

        body = a_body(None, 10)
        monkeypatch.setattr(body, "chunks", chunks)
        async with asking(say, read_body=False) as at:
            with pytest.raises(type(error)) as caught:
                await at.ask(b"/x", b"PUT", body=body)
            assert caught.value is error
            async with asyncio.timeout(LONG):
                await gone.wait()


async def test_client_that_leaves_in_mid_upload_ends_the_request() -> None:
    """ClientGone comes out while the upstream still waits for the rest."""
    async with asking(read_body=True) as at:
        body = a_body(None, 10)
        waiting = asyncio.create_task(at.ask(b"/x", b"PUT", body=body))
        body.feed(b"abc")
        await asyncio.sleep(0.05)
        body.fail()
        with pytest.raises(ClientGone):
            await waiting


# What is in memory meanwhile.


async def test_unread_answer_holds_the_upstream_back() -> None:
    """A few hundred KiB are here, the rest stays there, and comes when it is read."""
    sent = 0

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        nonlocal sent
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (64 * MIB))
        while sent < 64 * MIB:
            writer.write(bytes(MIB))
            sent += MIB
            await writer.drain()

    async with asking(say) as at:
        answer = await at.ask()
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.3)
        held, waiting = sent, answer.waiting
        size = 0
        while not answer.empty:
            size += len(await answer.read())

    assert held < 48 * MIB
    assert waiting <= (128 + 256) << 10
    assert size == 64 * MIB


async def test_settled_answer_leaves_its_connection_to_others() -> None:
    """A small body comes into memory, however it comes; a large one stays, and all of it is read in the end."""

    async def say(seen: Seen, _: Reader, writer: Writer) -> None:
        size = 1000 if b"/small" in seen.line else 3 * MIB
        writer.write(b"HTTP/1.1 503 Down\r\nContent-Length: %d\r\n\r\n" % size)
        for start in range(0, size, 1 << 16):
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(b"x" * min(size - start, 1 << 16))

    async with asking(say) as at:
        small = await at.ask(b"/small")
        await small.settle()
        await small.settle()
        assert await at.whole(b"/small") == (503, b"x" * 1000)
        assert at.upstream.connections == 1
        large = await at.ask(b"/large")
        await large.settle()
        assert await at.whole(b"/small") == (503, b"x" * 1000)
        assert at.upstream.connections == 2
        assert (await rest_of(small), await rest_of(large)) == (b"x" * 1000, b"x" * 3 * MIB)


async def test_settling_does_not_wait_for_a_slow_body() -> None:
    """After a second it is left where it is."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 503 Down\r\nContent-Length: 2\r\n\r\nx")
        await writer.drain()
        await go_on.wait()
        writer.write(b"y")

    go_on = asyncio.Event()
    async with asking(say) as at:
        answer = await at.ask()
        async with asyncio.timeout(LONG):
            await answer.settle()
        assert not answer.empty
        go_on.set()
        assert await rest_of(answer) == b"xy"


async def test_settled_answer_has_stopped_its_upload() -> None:
    """What an upstream refused is not sent on to it while we wait."""

    async def say(_: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 5\r\n\r\nn")
        while await reader.read(MIB):
            pass
        raise ConnectionError

    async with asking(say, read_body=False) as at:
        body = a_body(None, 1 << 40)
        answer = await at.ask(b"/x", b"PUT", body=body)
        body.feed(bytes(100))
        async with asyncio.timeout(LONG):
            while body._live_size:
                await asyncio.sleep(0.001)
        await answer.settle()
        body.feed(bytes(100))
        await asyncio.sleep(0.05)
        assert body._live_size == 100
        answer.close()


# Peers that are gone without a word.


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_dead_peers_are_looked_for(authority: trustme.CA, secure: bool) -> None:
    """As the kernel tells: probes when nothing comes, a bound for what is not acknowledged, except in an upload."""
    async with asking(tls=authority if secure else None) as at:
        await at.whole()
        (idle,) = idle_ones(at)
        option = idle.transport.get_extra_info("socket").getsockopt
        found = [option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
        found += [option(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
        found += [option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT), option(socket.IPPROTO_TCP, socket.TCP_NODELAY)]
        small = option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        await rest_of(await at.ask(b"/x", b"PUT", body=a_body(bytes(17 << 10), 17 << 10)))
        large = option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert found == [1, 30, 10, 3, 1]
    assert (small, large) == (60_000, 0)
    assert at.upstream.connections == 1


async def test_failures_quote_nothing() -> None:
    """What an upstream sends instead of an answer may be a secret; a failure ends up in logs."""
    secret = canary("upstream").encode()

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + secret + b"\r\n\r\n")

    async with asking(say) as at:
        assert WORD not in str(await at.failure())
