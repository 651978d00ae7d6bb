"""Several processes on the same sockets: they share the work and the token, and the end of one is its own."""

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.process import Running, start_sidecar
from tests.rig import OK, Recorder, Seen, TokenServer, configuration, raw, recorder, status_of, token_server
from tests.waiting import PATIENCE, eventually, until

HOP = re.compile(rb"Auth-Sidecar-Hop: ([0-9a-f]+)")


class Gate:
    """An upstream that answers `/slow` when it is told to, and everything else at once."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def script(self, seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/slow" in seen.line:
            await self.open.wait()
        writer.write(OK)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def upstream(gate: Gate) -> AsyncIterator[Recorder]:
    async with recorder(gate.script) as record:
        yield record


@pytest.fixture
async def tokens() -> AsyncIterator[TokenServer]:
    async with token_server() as state:
        yield state


@pytest.fixture
async def running(upstream: Recorder, tokens: TokenServer, tmp_path: Path, outputs: Path) -> AsyncIterator[Running]:
    data = configuration(upstream.url, tokens.url, tmp_path / "state") | {"workers": 2}
    async with start_sidecar(data, tmp_path, outputs / f"{tmp_path.name}.log") as process:
        yield process


def workers(running: Running) -> list[int]:
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(*pids: int) -> None:
    await until(lambda: not any(alive(pid) for pid in pids), "their end")


async def get(running: Running, path: bytes = b"/x") -> bytes:
    request = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path
    return await raw(running.port("plm"), request, wait=60)


async def counted(running: Running) -> float:
    """Return how many requests `/metrics` says were passed, by all processes that ever were."""
    page = await raw(running.port("admin"), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    values = re.findall(rb'^auth_sidecar_requests_total\{[^}]*outcome="passed"[^}]*\} ([0-9.e+]+)', page, re.MULTILINE)
    return sum(map(float, values))


def served(upstream: Recorder) -> Counter[bytes]:
    """Return how many requests each process has served: each has an id of its own in Auth-Sidecar-Hop."""
    return Counter(match[1] for seen in upstream.seen if (match := HOP.search(seen.head)))


async def test_connections_are_shared_out(running: Running, upstream: Recorder, tokens: TokenServer) -> None:
    """Of a thousand, eight at a time, each process serves 30 to 70 %; there is one token for both."""
    left = iter(range(1000))

    async def client() -> None:
        for _ in left:
            assert status_of(await get(running)) == 200

    await asyncio.gather(*(client() for _ in range(8)))
    shares = served(upstream)

    assert len(shares) == 2
    assert all(300 <= number <= 700 for number in shares.values()), shares
    assert tokens.calls == 1


async def test_end_of_one_is_its_own(running: Running, upstream: Recorder, tokens: TokenServer, gate: Gate) -> None:
    """SIGKILL takes the requests of that process with it and no others; another one takes its place."""
    before = workers(running)
    for _ in range(20):
        await get(running)
    await eventually(lambda: counted(running), 20)
    upstream.seen.clear()
    slow = [asyncio.create_task(get(running, b"/slow")) for _ in range(20)]
    await until(lambda: len(upstream.seen) == 20, "the requests")
    os.kill(before[0], signal.SIGKILL)
    await gone(before[0])
    during = [status_of(await get(running)) for _ in range(50)]
    await eventually(lambda: counted(running), 70)
    gate.open.set()
    answers = await asyncio.gather(*slow)
    lost = answers.count(b"")
    await until(lambda: len(workers(running)) == 2, "another worker")
    after = [status_of(await get(running)) for _ in range(20)]
    await eventually(lambda: counted(running), 70 + (20 - lost) + 20)

    assert set(during) == set(after) == {200}
    assert lost in served_slow(upstream)
    assert all(status_of(answer) == 200 for answer in answers if answer)
    assert tokens.calls == 1
    assert [event["code"] for event in running.log_events("worker_replaced")] == [-signal.SIGKILL]


def served_slow(upstream: Recorder) -> set[int]:
    slow = (HOP.search(seen.head) for seen in upstream.seen if b"/slow" in seen.line)
    return {0, *Counter(match[1] for match in slow if match).values()}


async def test_sigterm_ends_all(running: Running, upstream: Recorder, gate: Gate) -> None:
    """Requests in flight are answered, nothing new is taken, and nobody is left; exit code 0."""
    pids = workers(running)
    slow = [asyncio.create_task(get(running, b"/slow")) for _ in range(10)]
    await until(lambda: len(upstream.seen) == 10, "the requests")
    running.process.terminate()
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", running.port())
            except ConnectionRefusedError:
                break
            writer.close()
            await asyncio.sleep(0.02)
    gate.open.set()
    answers = await asyncio.gather(*slow)
    code = await asyncio.wait_for(running.process.wait(), PATIENCE)
    await gone(*pids)

    assert {status_of(answer) for answer in answers} == {200}
    assert code == 0


async def test_second_sigterm_ends_at_once(running: Running, upstream: Recorder, gate: Gate) -> None:
    """Whatever is in flight."""
    pids = workers(running)
    slow = asyncio.create_task(get(running, b"/slow"))
    await until(lambda: upstream.seen, "the request")
    running.process.terminate()
    await until(lambda: len(running.log_events("drain")) >= 2, "the first one is heard")
    running.process.terminate()
    await asyncio.wait_for(running.process.wait(), 20)  # of the 25 that the first one leaves
    await gone(*pids)
    gate.open.set()

    assert await slow == b""


async def test_workers_end_with_their_supervisor(running: Running) -> None:
    """Even if it was killed: nobody would replace or stop them."""
    pids = workers(running)
    running.process.kill()
    await running.process.wait()
    await gone(*pids)


async def test_admin_port_speaks_for_all(
    running: Running, upstream: Recorder, tokens: TokenServer, tmp_path: Path
) -> None:
    """Who is found is the supervisor; a renewal through one process is used by the other at once."""
    async with asyncio.timeout(PATIENCE):
        while len(served(upstream)) < 2:  # until each has its token
            await asyncio.gather(*(get(running) for _ in range(8)))
    run_file = json.loads((tmp_path / "state/run.json").read_text())
    livez = await raw(running.port("admin"), b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    proof = (tmp_path / "state/admin.token").read_bytes()
    renew = b"POST /upstreams/plm/renew HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % proof
    renewed = await raw(running.port("admin"), renew + b"Content-Length: 0\r\nConnection: close\r\n\r\n")

    async def used() -> tuple[int, set[bytes]]:
        upstream.seen.clear()
        answers = [await get(running) for _ in range(100)]
        assert {status_of(answer) for answer in answers} == {200}
        tokens = {seen.values(b"Authorization")[0].rsplit(b"-", 1)[1] for seen in upstream.seen}
        return len(served(upstream)), tokens

    # Long before a process looks at the store by itself.
    await eventually(used, (2, {b"2"}))

    assert run_file["pid"] == running.process.pid
    assert b'"pid": %d' % running.process.pid in livez
    assert status_of(renewed) == 200
    assert tokens.calls == 2


async def test_reload_reaches_all(running: Running, upstream: Recorder, tmp_path: Path) -> None:
    """On SIGHUP as with one process."""
    file = tmp_path / "config.yaml"
    data = json.loads(file.read_text())
    data["upstreams"]["plm"]["read_only"] = True
    file.write_text(json.dumps(data))
    running.process.send_signal(signal.SIGHUP)
    await until(lambda: [each["result"] for each in running.log_events("reload")] == ["ok", "ok"], "the reload")
    post = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    statuses = {status_of(await raw(running.port("plm"), post)) for _ in range(30)}

    assert statuses == {405}
    assert upstream.seen == []
