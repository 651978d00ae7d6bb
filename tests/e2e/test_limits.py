"""Clients that take and give nothing: others are served as ever, and memory stays where it is."""

import asyncio
import re
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.process import Running, start_sidecar
from tests.rig import OK, Recorder, configuration, problem_of, raw, recorder, status_of, token_server
from tests.waiting import PATIENCE, until

SLOW, IDLE, LIMIT = 500, 2000, 1000


@pytest.fixture(autouse=True)
def _descriptors() -> None:
    """Allow the clients of this file as many sockets as the system does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    async with recorder() as record:
        yield record


@pytest.fixture
async def running(upstream: Recorder, tmp_path: Path, outputs: Path) -> AsyncIterator[Running]:
    async with token_server() as issuer:
        data = configuration(upstream.url, issuer.url, tmp_path / "state")
        data["limits"] = {"header_timeout": "8s", "connections": LIMIT, "idle_connection": "60s"}
        async with start_sidecar(data, tmp_path, outputs / f"{tmp_path.name}.log") as process:
            assert await serves(process)
            yield process


async def serves(running: Running) -> bool:
    """Make a request on a connection of its own, and tell whether it was answered."""
    request = b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return status_of(await raw(running.port("plm"), request)) == 200


async def timed_out(running: Running) -> float:
    """Return how many clients were told that their head took too long."""
    page = await raw(running.port("admin"), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    [count] = re.findall(
        rb'^auth_sidecar_requests_total\{.*outcome="request_timeout".*\} (\S+)$', page, re.MULTILINE
    ) or [0]
    return float(count)


async def test_slow_heads_hold_nobody_up(running: Running) -> None:
    """Five hundred clients that send a byte a second get 408 after their time; others are served meanwhile."""
    memory = running.resident()
    begun: list[asyncio.StreamWriter] = []
    answers: list[bytes] = []

    async def slow() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port("plm"))
        begun.append(writer)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: localhost\r\nX: ")
        reading = asyncio.create_task(reader.read())
        while not (await asyncio.wait({reading}, timeout=1))[0]:
            writer.write(b"y")
        # Who wrote on after the end loses the answer to the reset.
        answers.append(b"" if isinstance(reading.exception(), ConnectionError) else reading.result())
        writer.close()

    clients = [asyncio.create_task(slow()) for _ in range(SLOW)]
    await until(lambda: len(begun) == SLOW, "the clients")
    served = [await serves(running) for _ in range(5)]
    waiting = SLOW - len(answers)
    held = running.resident() - memory
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*clients)
    told = [answer for answer in answers if answer]

    assert all(served)
    assert waiting > SLOW // 2
    assert held < 64
    assert await timed_out(running) == SLOW
    assert {(status_of(answer), problem_of(answer)["reason"]) for answer in told} == {(408, "request_timeout")}


@pytest.mark.parametrize(
    "fields",
    [b"X: " + b"y" * (1 << 20) + b"\r\n", b"".join(b"X-%d: y\r\n" % number for number in range(10_000))],
    ids=["1 MiB", "10,000 fields"],
)
async def test_huge_head_is_refused(running: Running, upstream: Recorder, fields: bytes) -> None:
    """With 431, and nothing of it goes on or is kept."""
    memory, seen = running.resident(), len(upstream.seen)
    for _ in range(20):
        answer = await raw(running.port("plm"), b"GET / HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n")
        assert not answer or problem_of(answer)["reason"] == "request_too_large"
        assert not answer or status_of(answer) == 431

    assert len(upstream.seen) == seen
    assert running.resident() - memory < 16


async def test_idle_connections_make_room(running: Running) -> None:
    """Beyond the limit the one that was idle longest is closed; whoever asks for something is served."""
    memory = running.resident()
    held = [await asyncio.open_connection("127.0.0.1", running.port("plm")) for _ in range(IDLE)]
    during = [await serves(running) for _ in range(5)]
    grown = running.resident() - memory
    descriptors = len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))
    reader, writer = held[-1]
    writer.write(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    late = await reader.readexactly(len(OK))
    closed = [await asyncio.wait_for(one.read(), PATIENCE) for one, _ in held[: IDLE - LIMIT]]
    for _, each in held:
        each.close()

    assert all(during)
    assert late == OK
    assert set(closed) == {b""}
    assert descriptors < LIMIT + 100
    assert grown < 150


async def test_busy_connections_are_not_taken_away(tmp_path: Path, outputs: Path) -> None:
    """When all are busy, who comes last is told so."""
    release = asyncio.Event()

    async def wait(_: object, __: object, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(OK)

    request = b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with recorder(wait) as upstream, token_server() as issuer:
        data = configuration(upstream.url, issuer.url, tmp_path / "state") | {"limits": {"connections": 5}}
        async with start_sidecar(data, tmp_path, outputs / "busy.log") as running:
            busy = [asyncio.create_task(raw(running.port("plm"), request)) for _ in range(5)]
            await until(lambda: len(upstream.seen) == 5, "the busy ones")
            refused = await raw(running.port("plm"), request)
            release.set()
            answers = await asyncio.gather(*busy)

    assert (status_of(refused), problem_of(refused)["reason"]) == (503, "too_many_connections")
    assert {status_of(answer) for answer in answers} == {200}
