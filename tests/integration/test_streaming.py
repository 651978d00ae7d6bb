"""Bodies of any size: flat memory with slow peers, and a replay from a spool that nobody can read."""

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.emulator import Emulator, Switches, sha256_of_bytes
from tests.process import Running, start_sidecar
from tests.rig import (
    Recorder,
    Rig,
    Script,
    Seen,
    TokenServer,
    configuration,
    raw,
    recorder,
    sidecar,
    status_of,
    token_server,
)
from tests.waiting import PATIENCE, until

GIB = 1 << 30
ALLOWED_GROWTH = 48.0
BLOCK = os.urandom(1 << 16)
WINDOWS = [BLOCK[start : start + 16] for start in range(0, len(BLOCK), 2048)]
"""What must not be readable: the body repeats its block, so that 2 KiB of it in clear hold one of these."""


@pytest.fixture
async def plm() -> AsyncIterator[Emulator]:
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as emulator:
        yield emulator


@pytest.fixture
async def running(
    plm: Emulator, tmp_path: Path, outputs: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Running]:
    log = outputs / f"{request.node.name}.log"
    async with start_sidecar(_configuration(plm, tmp_path / "state"), tmp_path, log) as process:
        yield process


@contextlib.asynccontextmanager
async def _rig(tmp_path: Path, script: Script, *, read_body: bool = True) -> AsyncIterator[tuple[Rig, Recorder]]:
    async with (
        recorder(script, read_body=read_body) as upstream,
        token_server() as issuer,
        sidecar(configuration(upstream.url, issuer.url, tmp_path)) as rig,
    ):
        yield rig, upstream


def _configuration(plm: Emulator, state: Path) -> dict[str, object]:
    oauth2 = {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}}
    return configuration(plm.base_url, plm.token_url, state, tls={"ca": str(plm.ca_path)}, oauth2=oauth2)


def _target(plm: Emulator, path: str) -> bytes:
    return plm.base_url.replace("https://", "http://", 1).encode() + path.encode()


async def _upload(port: int, head: bytes, size: int, halfway: asyncio.Event | None = None) -> tuple[bytes, str]:
    """Send *size* bytes of body and return the whole answer and the hash of what was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head)
        digest = hashlib.sha256()
        for number in range(size // len(BLOCK)):
            writer.write(BLOCK)
            digest.update(BLOCK)
            await writer.drain()
            if halfway is not None and number == size // len(BLOCK) // 2:
                halfway.set()
                await asyncio.sleep(0.3)
        async with asyncio.timeout(60):
            return await reader.read(), digest.hexdigest()
    finally:
        writer.close()


async def test_gigabyte_down_to_a_slow_client(plm: Emulator, running: Running) -> None:
    """A client that pauses does not make memory grow, and gets every byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port(), limit=1 << 20)
    async with running.peak() as samples:
        writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % _target(plm, f"/bytes/{GIB}"))
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(2)
        digest, size = hashlib.sha256(), 0
        while data := await reader.read(1 << 20):
            digest.update(data)
            size += len(data)
    writer.close()

    assert (size, digest.hexdigest()) == (GIB, sha256_of_bytes(GIB))
    assert max(samples) - samples[0] < ALLOWED_GROWTH


async def test_gigabyte_up_to_a_slow_upstream(tmp_path: Path, outputs: Path) -> None:
    """An upstream that pauses holds the client back; memory stays flat and the body arrives whole."""
    got = hashlib.sha256()

    async def read_slowly(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2)
        left = int(seen.values(b"content-length")[0])
        while left:
            data = await reader.read(1 << 20)
            got.update(data)
            left -= len(data)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    async with recorder(read_slowly, read_body=False) as upstream, token_server() as issuer:
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        async with start_sidecar(data, tmp_path, outputs / "slow-upstream.log") as running, running.peak() as samples:
            head = b"POST %b/up HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            answer, sent = await _upload(running.port(), head % (upstream.url.encode(), GIB), GIB)

    assert status_of(answer) == 201
    assert got.hexdigest() == sent
    assert max(samples) - samples[0] < ALLOWED_GROWTH


async def test_refused_upload_is_replayed_from_a_sealed_spool(plm: Emulator, running: Running, tmp_path: Path) -> None:
    """100 MB answered 401 are sent again whole; meanwhile no descriptor shows them, afterwards nothing is left."""
    size = 100 << 20
    await raw(running.port(), b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % _target(plm, "/echo/warm"))
    plm.revoke_all()
    halfway = asyncio.Event()
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (
        _target(plm, "/echo/up"),
        size,
    )
    upload = asyncio.create_task(_upload(running.port(), head, size, halfway))
    async with running.peak() as samples:
        await halfway.wait()
        spooled = _readable_through_descriptors(running)
        answer, sent = await upload

    assert status_of(answer) == 200
    assert sent.encode() in answer
    assert plm.counters.sent[401] == 1
    assert plm.counters.executed["POST /echo/up"] == 1
    assert spooled
    assert not any(window in data for data in spooled for window in WINDOWS)
    assert list((tmp_path / "state/spool").iterdir()) == []
    assert max(samples) - samples[0] < ALLOWED_GROWTH


def _readable_through_descriptors(running: Running) -> list[bytes]:
    """Return the content of every deleted file that the process holds open."""
    links = Path(f"/proc/{running.process.pid}/fd").iterdir()
    return [content for link in links if "(deleted)" in str(link.readlink()) and (content := link.read_bytes())]


async def test_nothing_readable_is_left_after_a_kill(plm: Emulator, running: Running, tmp_path: Path) -> None:
    """SIGKILL in the middle of a spooled upload leaves no file of the body."""
    plm.change(api_delay=30)
    _, writer = await asyncio.open_connection("127.0.0.1", running.port())
    writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (_target(plm, "/echo/up"), 64 << 20))
    for _ in range((32 << 20) // len(BLOCK)):
        writer.write(BLOCK)
        try:
            async with asyncio.timeout(0.2):
                await writer.drain()
        except TimeoutError:
            break
    running.process.send_signal(signal.SIGKILL)
    await running.process.wait()
    writer.close()

    state = tmp_path / "state"
    left = [path for path in state.rglob("*") if path.is_file() and path.parent != state / "ca"]
    assert {path.name for path in left} <= {
        "store.db",
        "store.db-wal",
        "store.db-shm",
        "store.key",
        "admin.token",
        "run.json",
    }
    assert not any(window in path.read_bytes() for path in left for window in WINDOWS)


@pytest.mark.parametrize("size", [3 << 20, 12 << 20])
@pytest.mark.usefixtures("both_modes")
async def test_body_beyond_the_spool_is_not_replayed(tmp_path: Path, size: int) -> None:
    """A body that was not kept is not sent again: the 401 is passed on, and the next request has a new token."""

    async def refuse_first(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        old = seen.values(b"authorization")[0].endswith(b"-1")
        status = b"401 Unauthorized\r\nWWW-Authenticate: Bearer" if old else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    async with recorder(refuse_first) as upstream, token_server() as issuer:
        replay = {"memory": "64KiB", "spool": "4MiB"}
        async with sidecar(configuration(upstream.url, issuer.url, tmp_path, replay=replay)) as rig:
            head = b"POST %b/up HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            answer, _ = await _upload(rig.port(), head % (upstream.url.encode(), size), size)

    kept = size < 4 << 20
    assert status_of(answer) == (200 if kept else 401)
    assert [len(seen.body) for seen in upstream.seen] == ([size, size] if kept else [size])


@pytest.mark.usefixtures("both_modes")
async def test_401_in_mid_upload_is_replayed_with_the_rest(tmp_path: Path) -> None:
    """An upstream that answers 401 and closes before it has the body gets all of it with the new token."""
    size = 8 << 20
    received: list[int] = []

    async def refuse_early(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.values(b"authorization")[0].endswith(b"-1"):
            await reader.readexactly(1 << 20)
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
            return
        received.append(len(await reader.readexactly(size)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with _rig(tmp_path, refuse_early, read_body=False) as (rig, upstream):
        head = b"POST %b/up HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        answer, _ = await _upload(rig.port(), head % (upstream.url.encode(), size), size)

    assert status_of(answer) == 200
    assert received == [size]


@pytest.mark.usefixtures("both_modes")
async def test_early_final_answer_reaches_a_client_that_still_uploads(tmp_path: Path) -> None:
    """A 413 in mid-upload, chunked, is complete for the client before it has sent everything."""

    async def refuse(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbig\r\n0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    async with _rig(tmp_path, refuse, read_body=False) as (rig, upstream):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        writer.write(b"POST %b/up HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" % upstream.url.encode())
        writer.write(BLOCK)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.readuntil(b"0\r\n\r\n")
        writer.close()

    assert status_of(answer) == 413
    assert answer.endswith(b"3\r\nbig\r\n0\r\n\r\n")


@pytest.mark.usefixtures("both_modes")
async def test_events_arrive_as_they_are_sent(tmp_path: Path) -> None:
    """A stream of events is not held back until it ends."""
    arrived = [asyncio.Event() for _ in range(3)]

    async def stream(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            writer.write(b"8\r\ndata: %d\n\r\n" % number)
            await writer.drain()
            await arrived[number].wait()
        writer.write(b"0\r\n\r\n")

    async with _rig(tmp_path, stream) as (rig, upstream):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port())
        writer.write(b"GET %b/events HTTP/1.1\r\nHost: a\r\n\r\n" % upstream.url.encode())
        async with asyncio.timeout(PATIENCE):
            for number in range(3):
                await reader.readuntil(b"data: %d\n" % number)
                arrived[number].set()
        writer.close()


async def test_upstream_stops_when_the_client_leaves(plm: Emulator, running: Running) -> None:
    """A client that leaves in mid-download ends the attempt: the upstream's connection is closed, memory is freed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port())
    writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % _target(plm, f"/bytes/{GIB}"))
    await reader.readexactly(1 << 20)
    writer.transport.abort()

    await until(lambda: running.log_events("request"), "the end of the attempt")
    assert running.log_events("request")[0]["outcome"] == "client_gone"


@pytest.mark.usefixtures("both_modes")
async def test_upload_waits_while_its_token_is_renewed(tokens: TokenServer, upstream: Recorder, tmp_path: Path) -> None:
    """What a client sends meanwhile stays with it, but for a few buffers; then all of it goes on."""
    size, sent, tokens.delay = 64 << 20, 0, 4.0
    async with sidecar(configuration(upstream.url, tokens.url, tmp_path)) as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port("plm"))

        async def send() -> None:
            nonlocal sent
            writer.write(
                b"PUT /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
            )
            while sent < size:
                writer.write(bytes(1 << 20))
                await writer.drain()
                sent += 1 << 20

        sending = asyncio.create_task(send())
        await asyncio.sleep(2)
        taken_while_waiting, upstream_while_waiting = sent, upstream.bytes_in
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        await sending
        writer.close()

    assert upstream_while_waiting == 0
    assert taken_while_waiting < size / 2
    assert status_of(answer) == 200
    assert len(upstream.seen[0].body) == size
