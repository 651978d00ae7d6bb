"""Hosts that are none of our business: bytes and requests reach them as they came, and nothing else is reached."""

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep

import pytest
import trustme

from sidecar.auth import tls
from sidecar.events import RequestDone, Trouble
from sidecar.exchange import passthrough as way
from sidecar.proxy import tunnel as tunnels
from tests.canary import canary
from tests.rig import (
    OK,
    TOKEN,
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
from tests.waiting import until

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
CLOSE = b"Connection: close\r\n\r\n"
MIB = 1 << 20
EVERY_BYTE = bytes(range(256))
THEIRS = canary("own-credential").encode()
SOON = 30.0
"""Seconds that everything takes which happens at once, on a slow machine."""

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Awaitable[None]]


@dataclass
class Host:
    """A server that is none of our business, and the connections that it has not closed."""

    port: int
    connections: int = 0
    open: set[Writer] = field(default_factory=set)


@contextlib.asynccontextmanager
async def host(serve: Serve, *, receive_buffer: int = 0) -> AsyncIterator[Host]:
    """Serve every connection with *serve*; a connection is closed when that returns."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listening.bind(("127.0.0.1", 0))
    state = Host(listening.getsockname()[1])

    async def take(reader: Reader, writer: Writer) -> None:
        state.connections += 1
        state.open.add(writer)
        try:
            await serve(reader, writer)
        except OSError:
            pass
        finally:
            state.open.discard(writer)
            writer.close()

    server = await asyncio.start_server(take, sock=listening)
    try:
        yield state
    finally:
        server.close()
        for writer in tuple(state.open):
            writer.transport.abort()


async def nothing(_: Reader, __: Writer) -> None:
    """Close at once."""


async def silent(_: Reader, __: Writer) -> None:
    """Say nothing, read nothing, and stay."""
    await asyncio.Event().wait()


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@pytest.fixture
async def rig(upstream: Recorder, tokens: TokenServer, tmp_path: Path) -> AsyncIterator[Rig]:
    base_url = f"http://localhost:{upstream.port}/api"
    async with sidecar(configuration(base_url, tokens.url, tmp_path), for_exec=True) as running:
        assert await soon(lambda: tokens.calls == 1)
        yield running


def connect_to(port: int, host: bytes = b"127.0.0.1") -> bytes:
    return b"CONNECT %b:%d HTTP/1.1\r\nHost: %b:%d\r\n\r\n" % (host, port, host, port)


@contextlib.asynccontextmanager
async def tunnel(rig: Rig, port: int, *, early: bytes = b"") -> AsyncIterator[tuple[Reader, Writer]]:
    """Return a connection after the proxy has said yes to CONNECT; *early* is sent with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    try:
        async with asyncio.timeout(SOON):
            writer.write(connect_to(port) + early)
            assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
        yield reader, writer
    finally:
        writer.close()


async def soon(condition: Callable[[], bool]) -> bool:
    """Wait until *condition* holds, and tell whether it did in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SOON):
            while not condition():
                await asyncio.sleep(0.01)
    return condition()


def reset(writer: Writer) -> None:
    """Close so that the other end gets RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def done(rig: Rig) -> list[tuple[str, str, int, str]]:
    return [(e.method, e.path, e.status, e.outcome) for e in rig.events if isinstance(e, RequestDone)]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_tunnel_carries_every_byte_both_ways(rig: Rig) -> None:
    """3 MiB of all values go each way at the same time, and arrive as they were."""
    up, down = (EVERY_BYTE * (3 * MIB // 256), EVERY_BYTE[::-1] * (3 * MIB // 256))
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write(down)
        got.put_nowait(await reader.readexactly(len(up)))
        await writer.drain()

    async with host(serve) as there, tunnel(rig, there.port) as (reader, writer):
        writer.write(up)
        async with asyncio.timeout(30):
            received = await reader.readexactly(len(down))
            sent = await got.get()

    assert hashlib.sha256(received).digest() == hashlib.sha256(down).digest()
    assert hashlib.sha256(sent).digest() == hashlib.sha256(up).digest()
    assert there.connections == 1


@pytest.mark.parametrize("size", [1, 517, 300_000])
async def test_bytes_that_come_with_connect_are_not_lost(rig: Rig, size: int) -> None:
    """A client that does not wait for the answer to CONNECT has its first bytes carried too, once and in order."""
    early = (EVERY_BYTE * (size // 256 + 1))[:size]
    async with host(echo) as there, tunnel(rig, there.port, early=early) as (reader, writer):
        writer.write(b"and more")
        async with asyncio.timeout(SOON):
            assert await reader.readexactly(size + 8) == early + b"and more"


async def test_tunnel_is_silent_until_the_host_has_answered(rig: Rig) -> None:
    """The host speaks first in some protocols: its first bytes come after the 200, and none of ours go to it."""
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def greet(reader: Reader, writer: Writer) -> None:
        writer.write(b"220 ready\r\n")
        got.put_nowait(await reader.read())

    async with host(greet) as there, tunnel(rig, there.port) as (reader, writer):
        assert await reader.readline() == b"220 ready\r\n"
        writer.write_eof()
        assert await got.get() == b""


async def test_client_may_end_first(rig: Rig) -> None:
    """The end of what the client says reaches the host, whose answer still comes."""

    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write(b"got " + await reader.read())

    async with host(serve) as there, tunnel(rig, there.port) as (reader, writer):
        writer.write(b"all of it")
        writer.write_eof()
        async with asyncio.timeout(SOON):
            assert await reader.read() == b"got all of it"


async def test_client_may_end_with_connect(rig: Rig) -> None:
    """All that the client has to say, and its end, may come before the host was dialled."""

    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write(b"got " + await reader.read())

    async with host(serve) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        writer.write(connect_to(there.port) + b"early")
        writer.write_eof()
        async with asyncio.timeout(SOON):
            assert await reader.read() == ESTABLISHED + b"got early"
        writer.close()


async def test_client_may_end_before_the_host_is_found(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the name is looked up nothing is lost: neither the bytes that come meanwhile nor their end."""
    real = socket.getaddrinfo

    def slow(*arguments: object, **options: object) -> list[object]:
        sleep(0.3)
        return real(*arguments, **options)

    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write(b"got " + await reader.read())

    async with host(serve) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        writer.write(connect_to(there.port))
        await asyncio.sleep(0.1)
        writer.write(b"early")
        writer.write_eof()
        async with asyncio.timeout(SOON):
            assert await reader.read() == ESTABLISHED + b"got early"
        writer.close()


async def test_last_of_an_upload_reaches_a_slow_host(rig: Rig) -> None:
    """When both have said all, what is still on its way arrives before the tunnel is closed."""
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write_eof()
        writer.transport.pause_reading()
        await asyncio.sleep(0.7)
        writer.transport.resume_reading()
        got.put_nowait(await reader.read())

    async with host(serve, receive_buffer=32 << 10) as there, tunnel(rig, there.port) as (reader, writer):
        async with asyncio.timeout(SOON):
            assert await reader.read() == b""
            writer.write(EVERY_BYTE * 1024)
            writer.write_eof()
            assert await got.get() == EVERY_BYTE * 1024


async def test_host_may_end_first(rig: Rig) -> None:
    """The end of what the host says reaches the client, which may go on."""
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write(b"bye")
        writer.write_eof()
        got.put_nowait(await reader.read())

    async with host(serve) as there, tunnel(rig, there.port) as (reader, writer):
        async with asyncio.timeout(SOON):
            assert await reader.read() == b"bye"
            for _ in range(3):
                writer.write(b"still here ")
                await asyncio.sleep(0.05)
            assert got.empty()
            writer.write_eof()
            assert await got.get() == b"still here " * 3


async def test_tunnel_is_reported_once_when_it_ends(rig: Rig) -> None:
    """One event with the target, without a credential of ours being made or used."""
    async with host(nothing) as there, tunnel(rig, there.port) as (reader, _):
        async with asyncio.timeout(SOON):
            assert await reader.read() == b""
    target = f"127.0.0.1:{there.port}"

    assert await soon(lambda: bool(done(rig)))
    assert done(rig) == [("CONNECT", target, 200, "passed")]


@pytest.mark.parametrize("name", [b"127.0.0.1", b"nowhere.invalid"])
async def test_host_that_cannot_be_reached_is_a_502(rig: Rig, name: bytes) -> None:
    """No connection, or no such name: one answer of our own that says so, and a closed connection."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        answer = await raw(rig.port(), connect_to(port, name) + b"early bytes")
        plain = await raw(rig.port(), b"GET http://%b:%d/ HTTP/1.1\r\nHost: a\r\n" % (name, port) + CLOSE)

    for each in (answer, plain):
        assert status_of(each) == 502
        assert each.count(b"HTTP/1.1 ") == 1
        assert problem_of(each)["reason"] == "upstream_unreachable"
    assert [(method, status, why) for method, _, status, why in done(rig)] == [
        ("CONNECT", 502, "upstream_unreachable"),
        ("GET", 502, "upstream_unreachable"),
    ]


@pytest.mark.parametrize("size", [300_000, 3 * MIB])
async def test_refusal_reaches_a_client_that_says_much_at_once(rig: Rig, size: int) -> None:
    """Bytes that come with CONNECT and go nowhere do not make the answer that says so disappear."""
    answers = []
    for target in (connect_to(rig.port()), connect_to(1)):
        with contextlib.suppress(ConnectionError):
            answers.append(await raw(rig.port(), target + bytes(size)))

    assert [answer.split(b" ")[1] for answer in answers if answer] == [b"403", b"502"]


async def test_host_that_does_not_answer_is_a_504(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is not established in time is given up, whoever it is for."""
    monkeypatch.setattr(way, "_CONNECT_SECONDS", 0.3)
    with socket.socket() as full, contextlib.ExitStack() as fillers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # a full backlog: further connections are not answered
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        await asyncio.sleep(0.1)
        answer = await raw(rig.port(), connect_to(full.getsockname()[1]))
        plain = await raw(
            rig.port(), b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\n" % full.getsockname()[1] + CLOSE
        )

    assert (status_of(answer), problem_of(answer)["reason"]) == (504, "upstream_timeout")
    assert (status_of(plain), problem_of(plain)["reason"]) == (504, "upstream_timeout")


async def test_reset_by_the_host_reaches_the_client_as_one(rig: Rig) -> None:
    """What was cut off must not look like an end: the client gets RST, not FIN."""
    go = asyncio.Event()

    async def serve(_: Reader, writer: Writer) -> None:
        writer.write(b"half of")
        await writer.drain()
        await go.wait()
        reset(writer)

    async with host(serve) as there, tunnel(rig, there.port) as (reader, _):
        async with asyncio.timeout(SOON):
            assert await reader.readexactly(7) == b"half of"
            go.set()
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_client_that_closes_ends_the_hosts_side(rig: Rig) -> None:
    """The host hears that the client has left, and nothing stays open after it has closed too."""
    ended: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: Reader, _: Writer) -> None:
        ended.put_nowait(await reader.read())

    async with host(serve) as there:
        async with tunnel(rig, there.port) as (_, writer):
            writer.write(b"last words")
        async with asyncio.timeout(SOON):
            assert await ended.get() == b"last words"
        assert await soon(lambda: not there.open)
        assert await soon(lambda: bool(done(rig)))


@pytest.mark.parametrize("serve", [silent, echo], ids=["host reads nothing", "host reads"])
async def test_reset_by_the_client_closes_the_hosts_side(rig: Rig, serve: Serve) -> None:
    """A client that is gone for good has nothing open for it a moment later, whatever the host does."""
    async with host(serve) as there:
        before = descriptors()
        async with tunnel(rig, there.port) as (_, writer):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)
            reset(writer)
        # The host's end of the connection is in this process as well, and `silent` keeps it.
        kept = 1 if serve is silent else 0
        assert await soon(lambda: descriptors() <= before + kept)
        assert await soon(lambda: bool(done(rig)))


@pytest.mark.parametrize("early", [b"", EVERY_BYTE], ids=["nothing", "bytes"])
async def test_end_that_came_before_the_tunnel_reaches_its_host(rig: Rig, other: Recorder, early: bytes) -> None:
    """A client may have said all, and ended, while it still waits for the answer to the request before CONNECT."""
    async with host(echo) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        first = b"GET http://127.0.0.1:%d/p HTTP/1.1\r\nHost: a\r\n\r\n" % other.port
        writer.write(first + connect_to(there.port) + early)
        writer.write_eof()
        async with asyncio.timeout(SOON):
            answers = await reader.read()
        writer.close()

    assert answers.startswith(b"HTTP/1.1 200 OK")
    assert answers.endswith(b"ok" + ESTABLISHED + early)


async def test_upload_does_not_go_on_into_nothing(rig: Rig) -> None:
    """A host that has closed altogether resets what is still sent to it; so does the tunnel."""
    async with host(nothing) as there, tunnel(rig, there.port) as (reader, writer):
        async with asyncio.timeout(SOON):
            assert await reader.read() == b""
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(EVERY_BYTE)
                    await writer.drain()
                    await asyncio.sleep(0.01)


async def _offer(port: int, head: bytes, size: int) -> int:
    """Send *head* and then up to *size* bytes; return how many were taken: nothing was for half a second."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, head)
        assert await loop.sock_recv(client, 1 << 10) == ESTABLISHED
        taken, block = 0, bytes(64 << 10)
        while taken < size:
            try:
                async with asyncio.timeout(0.5):
                    while True:
                        try:
                            taken += client.send(block)
                            break
                        except BlockingIOError:
                            await asyncio.sleep(0.005)
            except (TimeoutError, ConnectionResetError):
                break
        return taken


async def test_host_that_does_not_read_holds_the_client_back(rig: Rig) -> None:
    """What a client may send ahead is what sockets hold; the rest waits at the client, not in our memory."""
    async with host(silent, receive_buffer=64 << 10) as there:
        taken = await _offer(rig.port(), connect_to(there.port), 64 * MIB)

    assert taken < 16 * MIB


async def test_client_that_does_not_read_holds_the_host_back(rig: Rig) -> None:
    """What a host may send ahead is what sockets hold; the rest waits at the host, not in our memory."""
    sent = 0

    async def pour(_: Reader, writer: Writer) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        while sent < 64 * MIB:
            writer.write(bytes(64 << 10))
            await writer.drain()
            sent += 64 << 10

    async with host(pour) as there:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", rig.port()))
            await loop.sock_sendall(client, connect_to(there.port))
            assert await loop.sock_recv(client, len(ESTABLISHED)) == ESTABLISHED
            before = -1
            while sent > before:
                before = sent
                await asyncio.sleep(0.5)

    assert 0 < sent < 16 * MIB


async def test_many_tunnels_leave_nothing_behind(rig: Rig) -> None:
    """Neither a task nor a descriptor of ended tunnels remains, however they ended."""

    async def once(there: Host, ending: int) -> None:
        async with tunnel(rig, there.port) as (reader, writer):
            writer.write(b"hello")
            async with asyncio.timeout(SOON):
                assert await reader.readexactly(5) == b"hello"
                if ending == 0:
                    writer.write_eof()
                    assert await reader.read() == b""
                elif ending == 1:
                    reset(writer)

    async with host(echo) as there:
        await once(there, 0)
        await raw(rig.port(), connect_to(1))
        await asyncio.sleep(0.2)
        tasks, open_before = len(asyncio.all_tasks()), descriptors()
        for number in range(60):
            await once(there, number % 3)
        for _ in range(5):
            assert status_of(await raw(rig.port(), connect_to(1))) == 502

        assert await soon(lambda: len(asyncio.all_tasks()) <= tasks)
        assert await soon(lambda: descriptors() <= open_before)
    assert there.connections == 61
    assert not [event for event in rig.events if isinstance(event, Trouble) and "bug" in event.detail]


async def test_shutdown_does_not_wait_for_a_quiet_tunnel(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooled connection may be idle for an hour; it is closed at once, to both sides, and leaves no task."""
    monkeypatch.setattr(tunnels, "_QUIET_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    # Called by its name, so that other ports of this machine belong to another host: its address.
    data = configuration(f"http://localhost:{upstream.port}", tokens.url, tmp_path)
    ended: asyncio.Queue[None] = asyncio.Queue()

    async def stay(reader: Reader, writer: Writer) -> None:
        await reader.read(1)
        with contextlib.suppress(OSError):
            await reader.read()
        ended.put_nowait(None)
        await asyncio.Event().wait()

    async with host(stay) as there:
        async with sidecar(data, for_exec=True) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
            writer.write(connect_to(there.port) + b"x")
            assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
            await asyncio.sleep(0.3)
            started = loop.time()
        took = loop.time() - started
        async with asyncio.timeout(SOON):
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
            await ended.get()
        writer.close()
        names = [task.get_name() for task in asyncio.all_tasks() - before]
        left = [name for name in names if "client" in name or "hook" in name]

    assert took < 15
    assert left == []


async def test_shutdown_waits_for_a_tunnel_in_which_something_moves(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that goes on is not cut off by a stop."""
    monkeypatch.setattr(tunnels, "_QUIET_SECONDS", 1.0)
    data = configuration(f"http://localhost:{upstream.port}", tokens.url, tmp_path)
    stopping = asyncio.Event()

    async def drip(_: Reader, writer: Writer) -> None:
        writer.write(b"0")
        await stopping.wait()
        for number in range(1, 10):
            await asyncio.sleep(0.15)
            writer.write(b"%d" % number)
            await writer.drain()

    async with host(drip) as there:
        async with sidecar(data, for_exec=True) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
            writer.write(connect_to(there.port))
            assert await reader.readuntil(b"\r\n\r\n0") == ESTABLISHED + b"0"
            stopping.set()
        async with asyncio.timeout(SOON):
            assert await reader.read() == b"123456789"
        writer.close()


async def test_stuck_tunnel_does_not_outlive_the_sidecar(
    upstream: Recorder, tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tunnel that waits for a host which does not read is given up like any other: no task and no descriptor."""
    monkeypatch.setattr(tunnels, "_QUIET_SECONDS", 0.1)
    data = configuration(f"http://localhost:{upstream.port}", tokens.url, tmp_path)
    before = asyncio.all_tasks()
    async with host(silent, receive_buffer=64 << 10) as there:
        open_before = descriptors()
        async with sidecar(data, for_exec=True) as rig:
            assert await _offer(rig.port(), connect_to(there.port), 64 * MIB) < 64 * MIB
        names = [task.get_name() for task in asyncio.all_tasks() - before]
        # The host's own end is in this process too.
        assert [name for name in names if "client" in name or "hook" in name] == []
        assert await soon(lambda: descriptors() <= open_before + 1)


async def test_idle_tunnel_ends_in_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel in which nothing moves for its time is reset; what moves puts that off."""
    monkeypatch.setattr(tunnels, "_IDLE_SECONDS", 1.5)
    loop = asyncio.get_running_loop()
    async with host(echo) as there, tunnel(rig, there.port) as (reader, writer):
        started = loop.time()
        for _ in range(6):
            await asyncio.sleep(0.3)
            writer.write(b"x")
            async with asyncio.timeout(SOON):
                assert await reader.readexactly(1) == b"x"
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(SOON):
                assert await reader.read() == b""
        took = loop.time() - started
        assert await soon(lambda: not there.open)

    assert took > 3.1


async def test_idle_tunnel_to_a_host_that_does_not_read_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What still waits to be sent when a tunnel is given up is given up too."""
    monkeypatch.setattr(tunnels, "_IDLE_SECONDS", 1.0)
    async with host(silent, receive_buffer=64 << 10) as there:
        before = descriptors()
        assert await _offer(rig.port(), connect_to(there.port), 64 * MIB) < 64 * MIB
        # The host's own end is in this process too.
        assert await soon(lambda: descriptors() <= before + 1)


@pytest.mark.parametrize("first", ["client", "host"])
async def test_half_closed_tunnel_has_less_time(rig: Rig, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """After one side said its last, the other has less time without a byte, which each of its bytes starts anew."""
    monkeypatch.setattr(tunnels, "_HALF_CLOSED_SECONDS", 1.5)
    loop = asyncio.get_running_loop()
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: Reader, writer: Writer) -> None:
        if first == "host":
            writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                while data := await reader.read(10):
                    got.put_nowait(data)
            got.put_nowait(b"")
            return
        assert await reader.read() == b""
        for _ in range(6):
            await asyncio.sleep(0.3)
            writer.write(b"x")
        await asyncio.Event().wait()

    async with host(serve) as there, tunnel(rig, there.port) as (reader, writer):
        started = loop.time()
        if first == "client":
            writer.write_eof()
            async with asyncio.timeout(SOON):
                assert await reader.readexactly(6) == b"xxxxxx"
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
        else:
            assert await reader.read() == b""
            for _ in range(6):
                await asyncio.sleep(0.3)
                writer.write(b"x")
            async with asyncio.timeout(SOON):
                assert [await got.get() for _ in range(7)] == [b"x"] * 6 + [b""]
        took = loop.time() - started

    assert took > 3.1


@pytest.fixture
async def dialled(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Return the list of every address that a socket of this process was told to connect to, once there is a token."""
    await until(lambda: rig.app.brokers["plm"].status().usable, "the first token")
    seen: list[tuple[object, ...]] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: tuple[object, ...]) -> None:
        seen.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


async def _asked(port: int, request: bytes, dialled: list[tuple[object, ...]]) -> tuple[str, list[tuple[object, ...]]]:
    """Return why *request* was refused, and what was dialled after the connection that it came on."""
    before = len(dialled)
    answer = await raw(port, request)
    first, *others = dialled[before:]
    assert first == ("127.0.0.1", port)
    return problem_of(answer)["reason"], others


LOOPBACK = (
    b"127.0.0.1",
    b"[::1]",
    b"[::ffff:127.0.0.1]",
    b"[::ffff:7f00:1]",
    b"[0:0:0:0:0:0:0:1]",
    b"[64:ff9b::127.0.0.1]",
    b"2130706433",
    b"0x7f000001",
    b"0X7F.1",
    b"017700000001",
    b"127.1",
    b"127.0.0.2",
    b"127.0.0.1.",
)


@pytest.mark.parametrize("form", [b"CONNECT %b:%d HTTP/1.1\r\n", b"GET http://%b:%d/ HTTP/1.1\r\n"])
async def test_no_way_into_our_own_ports(
    rig: Rig, tmp_path: Path, dialled: list[tuple[object, ...]], form: bytes
) -> None:
    """Whatever a client calls this machine, its own ports are refused by address, and nothing is dialled."""
    token = (tmp_path / "admin.token").read_bytes()
    post = b"POST /exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % token + CLOSE
    assert status_of(await raw(rig.port("admin"), post)) == 200
    answer = await raw(rig.port("admin"), post)
    ports = [rig.port("proxy"), rig.port("admin"), rig.port("plm"), int(answer.rpartition(b":")[2].strip(b'"}'))]
    assert len(set(ports)) == 4

    wrong = {}
    for name in LOOPBACK:
        for port in ports:
            asked = await _asked(rig.port(), form % (name, port) + b"Host: a\r\n" + CLOSE, dialled)
            if asked != ("no_route", []):
                wrong[name, port] = asked

    assert wrong == {}


@pytest.mark.parametrize("form", [b"CONNECT %b:80 HTTP/1.1\r\n", b"GET http://%b/ HTTP/1.1\r\n"])
@pytest.mark.parametrize(
    "name",
    [
        b"169.254.169.254",
        b"[::ffff:169.254.169.254]",
        b"[64:ff9b::a9fe:a9fe]",
        b"2852039166",
        b"0xa9fea9fe",
        b"169.254.43518",
        b"[fe80::1]",
        b"[fd00:ec2::254]",
        b"168.63.129.16",
        b"0.0.0.0",
        b"0",
        b"[::]",
        b"224.0.0.1",
    ],
)
async def test_no_way_to_metadata(rig: Rig, dialled: list[tuple[object, ...]], form: bytes, name: bytes) -> None:
    """Link-local and metadata addresses, and what is no host, are refused where every other host is passed through."""
    assert await _asked(rig.port(), form % name + b"Host: a\r\n" + CLOSE, dialled) == ("no_route", [])


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of addresses that `two.example` resolves to; the test fills it."""
    found: list[str] = []
    real = socket.getaddrinfo

    def lookup(name: str, *arguments: object, **options: object) -> list[object]:
        names = found if name == "two.example" else [name]
        return [info for each in names for info in real(each, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return found


@pytest.mark.parametrize("form", [b"CONNECT %b:%d HTTP/1.1\r\n", b"GET http://%b:%d/ HTTP/1.1\r\n"])
@pytest.mark.parametrize("bad", ["169.254.169.254", "fe80::1", "0.0.0.0"])
async def test_one_bad_address_of_a_name_is_enough(
    rig: Rig, other: Recorder, dialled: list[tuple[object, ...]], addresses: list[str], form: bytes, bad: str
) -> None:
    """A name that leads to a good address and to a prohibited one is not dialled at all."""
    addresses += ["127.0.0.1", bad]

    asked = await _asked(rig.port(), form % (b"two.example", other.port) + b"Host: a\r\n" + CLOSE, dialled)

    assert asked == ("no_route", [])
    assert other.connections == 0


async def test_name_that_changes_its_mind_is_not_dialled(
    rig: Rig, dialled: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may lead elsewhere when it is looked up again: the address that is dialled is the one that is checked."""
    real = socket.getaddrinfo
    answers = ["127.0.0.1"]

    def lookup(name: str, *arguments: object, **options: object) -> list[object]:
        if name == "two.example":
            name = answers.pop() if answers else "169.254.169.254"
        return real(name, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    before = len(dialled)
    answer = await raw(rig.port(), b"GET http://two.example:80/ HTTP/1.1\r\nHost: a\r\n" + CLOSE)

    assert status_of(answer) in (403, 502)
    assert dialled[before:] == [("127.0.0.1", rig.port())]
    assert answers == []


async def test_any_good_address_of_a_name_is_enough(rig: Rig, addresses: list[str]) -> None:
    """The next address is tried when one does not answer; all of them are what the name stands for."""
    addresses += ["127.0.0.2", "127.0.0.1"]
    async with host(echo) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        writer.write(connect_to(there.port, b"two.example") + b"hello")
        async with asyncio.timeout(SOON):
            assert await reader.readexactly(len(ESTABLISHED) + 5) == ESTABLISHED + b"hello"
        writer.close()


async def test_only_the_configured_hosts_are_passed_through(
    upstream: Recorder, other: Recorder, tokens: TokenServer, tmp_path: Path, dialled: list[tuple[object, ...]]
) -> None:
    """Without `exec` a host has to be named in `passthrough`; all others are refused, and nothing is dialled."""
    data = configuration(f"http://localhost:{upstream.port}", tokens.url, tmp_path)
    forms = (b"CONNECT %b:%d HTTP/1.1\r\n", b"GET http://%b:%d/ HTTP/1.1\r\n")
    async with sidecar(data) as rig:
        for form in forms:
            request = form % (b"127.0.0.1", other.port) + b"Host: a\r\n" + CLOSE
            assert await _asked(rig.port(), request, dialled) == ("no_route", [])
    async with sidecar(data | {"passthrough": ["127.0.0.1"]}) as rig:
        for form in forms:
            request = form % (b"127.0.0.2", other.port) + b"Host: 127.0.0.1\r\n" + CLOSE
            assert await _asked(rig.port(), request, dialled) == ("no_route", [])
        assert other.connections == 0
        get = b"GET http://127.0.0.1:%d/x HTTP/1.1\r\nHost: a\r\n" % other.port + CLOSE
        assert (await raw(rig.port(), get)).endswith(b"ok")
        async with tunnel(rig, other.port) as (reader, writer):
            writer.write(b"GET /y HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await reader.readuntil(b"ok") == OK

    assert [seen.line for seen in other.seen] == [b"GET /x HTTP/1.1", b"GET /y HTTP/1.1"]


@pytest.mark.parametrize(
    "target",
    [
        b"GET http://localhost:%d/elsewhere HTTP/1.1",
        b"GET http://localhost:%d/api/../elsewhere HTTP/1.1",
        b"GET http://LOCALHOST.:%d/elsewhere HTTP/1.1",
        b"GET https://localhost:%d/api/x HTTP/1.1",
    ],
)
async def test_path_outside_of_an_upstream_is_not_passed_through(rig: Rig, upstream: Recorder, target: bytes) -> None:
    """What would go past the credential of an upstream is a mistake, and refused."""
    answer = await raw(rig.port(), target % upstream.port + b"\r\nHost: a\r\n" + CLOSE)

    assert problem_of(answer)["reason"] == "no_route"
    assert upstream.bytes_in == 0


@pytest.mark.parametrize("form", [b"CONNECT localhost:%d HTTP/1.1\r\n", b"GET http://LocalHost:%d/ HTTP/1.1\r\n"])
async def test_other_port_of_an_upstreams_host_is_not_passed_through(rig: Rig, other: Recorder, form: bytes) -> None:
    """Not by CONNECT and not in absolute-form, even where every other host is."""
    answer = await raw(rig.port(), form % other.port + b"Host: a\r\n" + CLOSE)

    assert problem_of(answer)["reason"] == "no_route"
    assert other.connections == 0


def forwarded(other: Recorder, line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """Return a request that closes; `@` in *line* stands for the other host."""
    line = line.replace(b"@", b"http://127.0.0.1:%d" % other.port)
    return b"\r\n".join([line, b"Host: elsewhere.example", *fields, b"Connection: close", b"", b""]) + body


async def test_own_credentials_stay_in_a_forwarded_request(rig: Rig, other: Recorder, tokens: TokenServer) -> None:
    """Everything arrives as it was sent, in order, but for what is between two neighbours; ours is not there."""
    fields = [
        b"authorization: Bearer " + THEIRS,
        b"X-Dup: 1",
        b"Cookie: session=" + THEIRS,
        b"X-Api-Key: " + THEIRS,
        b"x_api_key: " + THEIRS,
        b"x-dup: \xe9",
    ]
    gone = [
        b"Proxy-Authorization: Basic Z29uZQ==",
        b"proxy_authorization: gone",
        b"Proxy-Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"TE: trailers",
        b"Upgrade: h2c",
        b"Connection: x-hop",
        b"X-Hop: gone",
    ]
    calls = tokens.calls
    answer = await raw(
        rig.port(), forwarded(other, b"GET @/p?access_token=%b&a=%%41? HTTP/1.1" % THEIRS, *fields, *gone)
    )

    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + CLOSE + b"ok"
    (seen,) = other.seen
    first, *rest, hop = seen.fields
    assert seen.line == b"GET /p?access_token=%b&a=%%41? HTTP/1.1" % THEIRS
    assert first == b"Host: 127.0.0.1:%d" % other.port
    assert rest == fields
    assert hop.startswith(b"Auth-Sidecar-Hop: ")
    assert TOKEN.encode() not in seen.head
    assert tokens.calls == calls


@pytest.mark.parametrize("closes", [b"close", b"keep-alive"])
async def test_forwarded_request_is_reported_once(rig: Rig, other: Recorder, closes: bytes) -> None:
    """One event without the query, and no client is said to have left that has its whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    url = b"http://127.0.0.1:%d/p?access_token=%b" % (other.port, THEIRS)
    writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: %b\r\n\r\n" % (url, closes))
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    assert await soon(lambda: bool(done(rig)))
    writer.close()

    assert done(rig) == [("GET", "/p", 200, "passed")]


async def test_no_credential_is_added_to_a_forwarded_request(rig: Rig, other: Recorder) -> None:
    """A request without a credential has none there either, and Via stays as it was."""
    await raw(rig.port(), forwarded(other, b"GET @/ HTTP/1.1", b"Via: 1.0 fred"))

    assert other.seen[0].values(b"authorization") == []
    assert other.seen[0].values(b"via") == [b"1.0 fred"]


async def test_forwarded_request_that_comes_back_is_a_loop(rig: Rig, other: Recorder) -> None:
    """Our own Auth-Sidecar-Hop is refused for hosts that are passed through too."""
    await raw(rig.port(), forwarded(other, b"GET @/ HTTP/1.1"))
    hop = other.seen[0].values(b"auth-sidecar-hop")[0]
    answer = await raw(rig.port(), forwarded(other, b"GET @/ HTTP/1.1", b"Auth-Sidecar-Hop: " + hop))

    assert problem_of(answer)["reason"] == "no_route"
    assert len(other.seen) == 1


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (b"Content-Length: 300000", EVERY_BYTE * 1171 + bytes(224)),
        (b"Transfer-Encoding: chunked", b"3;x=y\r\nabc\r\n%x\r\n%b\r\n0\r\n\r\n" % (256, EVERY_BYTE)),
        (b"Content-Length: 0", b""),
    ],
    ids=["sized", "chunked", "empty"],
)
async def test_body_of_a_forwarded_request_arrives(rig: Rig, other: Recorder, framing: bytes, wire: bytes) -> None:
    """It keeps its framing and every byte."""
    assert status_of(await raw(rig.port(), forwarded(other, b"POST @/up HTTP/1.1", framing, body=wire))) == 200

    (seen,) = other.seen
    assert seen.body == (wire if framing.startswith(b"Content") else b"abc" + EVERY_BYTE)
    assert framing in seen.fields


async def test_client_that_expects_continue_gets_it(rig: Rig, other: Recorder) -> None:
    """100 Continue comes from us, the field does not go on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(forwarded(other, b"PUT @/ HTTP/1.1", b"Content-Length: 4", b"Expect: 100-continue"))
    async with asyncio.timeout(SOON):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert status_of(await reader.read()) == 200
    writer.close()

    assert (other.seen[0].body, other.seen[0].values(b"expect")) == (b"body", [])


async def test_head_has_no_body(rig: Rig, other: Recorder) -> None:
    """The length that HEAD announces is not waited for, and the connection stays in order."""

    async def head(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

    other.script = head
    url = b"http://127.0.0.1:%d/" % other.port
    answer = await raw(
        rig.port(), b"HEAD %b HTTP/1.1\r\nHost: a\r\n\r\n" % url + b"HEAD %b HTTP/1.1\r\nHost: a\r\n" % url + CLOSE
    )

    first = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n"
    assert answer == first + b"\r\n" + first + CLOSE


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize(
    "status", [b"401 Unauthorized", b"503 Service Unavailable", b"429 Too Many Requests", b"407 Proxy Authentication"]
)
async def test_answer_of_any_status_is_passed_on_at_once(
    rig: Rig, other: Recorder, tokens: TokenServer, status: bytes, method: bytes
) -> None:
    """There is one attempt and no renewal: the script's own credential is the script's own business."""

    async def say(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(
            b"HTTP/1.1 %b\r\nWWW-Authenticate: Bearer\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\nno" % status
        )

    other.script = say
    calls, started = tokens.calls, asyncio.get_running_loop().time()
    answer = await raw(rig.port(), forwarded(other, b"%b @/x HTTP/1.1" % method, b"Content-Length: 1", body=b"b"))

    expected = b"HTTP/1.1 %b\r\nWWW-Authenticate: Bearer\r\nRetry-After: 1\r\nContent-Length: 2\r\n" % status
    assert answer == expected + CLOSE + b"no"
    assert len(other.seen) == 1
    assert tokens.calls == calls
    assert asyncio.get_running_loop().time() - started < 1


async def test_connection_that_breaks_before_an_answer_is_not_tried_again(rig: Rig, other: Recorder) -> None:
    """A GET that got no answer is a 502, and was sent once."""

    async def leave(_: Seen, __: Reader, writer: Writer) -> None:
        writer.close()

    other.script = leave
    answer = await raw(rig.port(), forwarded(other, b"GET @/x HTTP/1.1"))

    assert (status_of(answer), problem_of(answer)["reason"]) == (502, "upstream_unreachable")
    assert len(other.seen) == 1


async def cut(_: Seen, __: Reader, writer: Writer) -> None:
    """Answer with a part of a body."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()


async def test_answer_that_breaks_off_is_cut_off(rig: Rig, other: Recorder) -> None:
    """What the client has must not look whole: there is no last chunk."""
    other.script = cut
    answer = await raw(rig.port(), forwarded(other, b"GET @/x HTTP/1.1"))

    assert answer.endswith(b"3\r\nabc\r\n")


async def test_answer_that_breaks_off_is_reset_where_its_end_is_that_of_the_stream(rig: Rig, other: Recorder) -> None:
    """A client of HTTP/1.0 takes FIN for the end of the answer."""
    other.script = cut
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(b"GET http://127.0.0.1:%d/x HTTP/1.0\r\n\r\n" % other.port)
    async with asyncio.timeout(SOON):
        await reader.readuntil(b"abc")
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


@pytest.mark.parametrize("method", [b"TRACE", b"trace", b"TRACK", b"debug"])
async def test_trace_is_not_forwarded(rig: Rig, other: Recorder, method: bytes) -> None:
    """It would send the script's own credential back to whoever asked."""
    answer = await raw(rig.port(), forwarded(other, b"%b @/ HTTP/1.1" % method))

    assert problem_of(answer)["reason"] == "method_refused"
    assert other.connections == 0


async def test_large_answer_reaches_a_slow_client(rig: Rig, other: Recorder) -> None:
    """It is passed on as it comes: the first bytes before the last are there, and no more than sockets hold ahead."""
    size, sent = 48 * MIB, 0
    block = EVERY_BYTE * 256

    async def pour(_: Seen, __: Reader, writer: Writer) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(block)
            await writer.drain()
            sent += len(block)

    other.script = pour
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
    writer.write(forwarded(other, b"GET @/large HTTP/1.1"))
    async with asyncio.timeout(60):
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(1)
        ahead = sent
        digest, got = hashlib.sha256(), 0
        while data := await reader.read(1 << 20):
            digest.update(data)
            got += len(data)
    writer.close()

    assert 0 < ahead < 24 * MIB
    assert (got, digest.digest()) == (size, hashlib.sha256(block * (size // len(block))).digest())


async def test_forwarded_requests_leave_nothing_behind(rig: Rig, other: Recorder) -> None:
    """Each has a connection of its own, which is closed with it, also when the client leaves in the middle."""

    async def slow(seen: Seen, _: Reader, writer: Writer) -> None:
        if b"/slow" in seen.line:
            await asyncio.sleep(0.5)
        writer.write(OK)

    other.script = slow
    await raw(rig.port(), forwarded(other, b"GET @/ HTTP/1.1"))
    await asyncio.sleep(0.2)
    tasks, before = len(asyncio.all_tasks()), descriptors()
    for _ in range(10):
        await raw(rig.port(), forwarded(other, b"GET @/ HTTP/1.1"))
        _, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        writer.write(forwarded(other, b"GET @/slow HTTP/1.1"))
        await asyncio.sleep(0.05)
        writer.transport.abort()

    assert await soon(lambda: len(asyncio.all_tasks()) <= tasks)
    assert await soon(lambda: descriptors() <= before)


async def test_https_in_absolute_form_is_verified(
    rig: Rig, upstream: Recorder, tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that leaves TLS to its proxy gets a verified connection, or none at all."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "public.pem")
    async with recorder(tls=context) as secure:
        request = b"GET https://127.0.0.1:%d/x HTTP/1.1\r\nHost: a\r\nAuthorization: %b\r\n" % (secure.port, THEIRS)
        strange = await raw(rig.port(), request + CLOSE)
        seen_by_a_stranger = secure.bytes_in
        monkeypatch.setattr(tls.certifi, "where", lambda: str(tmp_path / "public.pem"))
        data = configuration(f"http://localhost:{upstream.port}", tokens.url, tmp_path / "state")
        async with sidecar(data, for_exec=True) as trusting:
            known = await raw(trusting.port(), request + CLOSE)

    assert (status_of(strange), problem_of(strange)["reason"]) == (502, "upstream_unreachable")
    assert seen_by_a_stranger == 0
    assert known.endswith(b"ok")
    assert secure.seen[0].values(b"authorization") == [THEIRS]
