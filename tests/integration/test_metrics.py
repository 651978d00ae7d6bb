"""Metrics of real processes and real requests: several that count side by side, kills, and where the time went."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.clock import SystemClock
from sidecar.events import RequestDone
from sidecar.observe.admin import Admin, Source
from sidecar.observe.metrics import Metrics
from sidecar.observe.slots import shared_folder
from sidecar.secret import Secret
from tests.canary import canary
from tests.rig import OK, Recorder, Rig, Seen, configuration, raw, recorder, sidecar, token_server

ROOT = Path(__file__).parents[2]

WORKER = """
import json, sys, threading
from pathlib import Path
from types import SimpleNamespace
from sidecar.clock import SystemClock
from sidecar.events import RequestDone
from sidecar.observe.metrics import Metrics
from sidecar.observe.slots import Slot

class Clock(SystemClock):
    ahead = 0.0
    def monotonic(self): return super().monotonic() + self.ahead

clock, upstreams, in_flight = Clock(), {}, {}
slot = Slot(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 1 else None
metrics = Metrics(status=lambda: upstreams, in_flight=lambda: in_flight, quota=dict, clock=clock, slot=slot)
done = RequestDone(
    upstream="plm", method="GET", path="/", status=200, outcome="passed", attempts=1, renewals=0, retries=0,
    seconds=0.02, overhead=0.0007, verdicts=("pass",), unauthorized=0, visible=False, refused="", applied="",
)

def forever():
    while True:
        metrics.observe(done)

for line in sys.stdin:
    name, *values = line.split()
    answer = ""
    if name == "count":
        for _ in range(int(values[0])):
            metrics.observe(done)
    elif name == "forever":
        threading.Thread(target=forever, daemon=True).start()
    elif name == "stand":
        expires_in, flying = map(float, values)
        upstreams["plm"] = SimpleNamespace(expires_at=clock.now() + expires_in, lifetime=100.0, state="valid")
        in_flight["plm"] = int(flying)
        metrics.publish()
    elif name == "later":
        clock.ahead += float(values[0])
    elif name == "render":
        answer = metrics.render().decode()
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """A process that counts when told to."""

    def __init__(self, *arguments: object, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-O", "-c", WORKER, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def page(self) -> dict[tuple[str, ...], float]:
        return samples(self.tell("render"))

    def requests(self) -> float:
        return self.page()[("auth_sidecar_requests_total", "GET", "passed", "200", "plm")]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def samples(page: str) -> dict[tuple[str, ...], float]:
    """Return every sample by its name and its labels' values; no sample is there twice."""
    found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    values = {(each.name, *(each.labels[name] for name in sorted(each.labels))): each.value for each in found}
    assert len(values) == len(found)
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with shared_folder(tmp_path) as found:
        yield found


@contextlib.contextmanager
def workers(folder: Path, *numbers: int) -> Iterator[list[Worker]]:
    started = [Worker(folder, number) for number in numbers]
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()


def test_whoever_is_asked_tells_of_all(folder: Path) -> None:
    """Counters and histograms are sums, at once and from each; one that counts nothing itself can tell too."""
    with workers(folder, 0, 1, 2) as (reader, first, second):
        first.tell("count 3")
        second.tell("count 4")
        pages = [worker.page() for worker in (reader, first, second)]
        room = [file.stat().st_blocks * 512 for file in folder.glob("*.db")]
    assert pages[0] == pages[1] == pages[2]
    assert min(room) >= 512 << 10
    assert pages[0][("auth_sidecar_requests_total", "GET", "passed", "200", "plm")] == 7
    assert pages[0][("auth_sidecar_request_seconds_count", "plm")] == 7
    assert pages[0][("auth_sidecar_request_seconds_sum", "plm")] == pytest.approx(0.14)
    assert pages[0][("auth_sidecar_overhead_seconds_bucket", "0.001", "plm")] == 7
    assert not [key for key in pages[0] if "pid" in str(key)]


def test_the_page_is_the_same_with_one_process_and_with_several(folder: Path) -> None:
    """The names, the labels and the values do not tell how many there are."""
    alone = Worker()
    try:
        with workers(folder, 1) as (beside,):
            for worker in (alone, beside):
                worker.tell("count 5")
                worker.tell("stand 60 1")
            first, second = (
                {key: value for key, value in each.page().items() if "expires" not in key[0]}
                for each in (alone, beside)
            )
    finally:
        alone.kill()
    assert first == second


def test_what_a_killed_process_counted_stays(folder: Path) -> None:
    """Its successor counts on from there; the files do not become more, however often that happens."""
    with workers(folder, 0, 1) as (reader, first):
        first.tell("count 10")
        first.kill()
        counted, files = reader.requests(), len(list(folder.iterdir()))
        for turn in range(3):
            with workers(folder, 1) as (successor,):
                assert reader.requests() == counted + turn
                successor.tell("count 1")
        assert (counted, reader.requests()) == (10, 13)
        assert len(list(folder.iterdir())) == files


def test_no_number_goes_back_while_processes_count_and_die(folder: Path) -> None:
    """Pages asked for in the middle of it can be read, and only ever grow."""
    pages = []
    with workers(folder, 0, 2) as (reader, steady):
        steady.tell("forever")
        for _ in range(4):
            with workers(folder, 1) as (dying,):
                dying.tell("forever")
                pages += [reader.page() for _ in range(8)]
            pages.append(reader.page())
    assert all(later[key] >= value for page, later in pairwise(pages) for key, value in page.items())
    assert pages[-1] != pages[0]


def test_a_dead_process_stands_nowhere(folder: Path) -> None:
    """Requests of several add up, the token that ends first is shown, and who is silent is forgotten."""
    with workers(folder, 1, 2) as (first, second):
        first.tell("stand 50 2")
        second.tell("stand 30 3")
        both = first.page()
        second.kill()
        first.tell("later 6")
        alone = first.page()
    assert (both[("auth_sidecar_in_flight", "plm")], alone[("auth_sidecar_in_flight", "plm")]) == (5, 2)
    assert 25 < both[("auth_sidecar_token_expires_in_seconds", "plm")] <= 30
    assert 45 < alone[("auth_sidecar_token_expires_in_seconds", "plm")] <= 50


@pytest.mark.parametrize("shared", [True, False])
def test_the_folder_of_another_program_is_left_alone(folder: Path, tmp_path: Path, *, shared: bool) -> None:
    """The application beside us may use the same library, and its variable may be in our environment."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    worker = Worker(*((folder, 1) if shared else ()), PROMETHEUS_MULTIPROC_DIR=str(theirs))
    try:
        worker.tell("count 2")
        assert worker.requests() == 2
    finally:
        worker.kill()
    assert list(theirs.iterdir()) == []


def test_the_library_is_loaded_by_who_serves_only() -> None:
    """A command that only imports the parts is spared its memory."""
    code = "import sys, sidecar.run.running, sidecar.observe.metrics; print('prometheus_client' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@contextlib.asynccontextmanager
async def rig(tmp_path: Path, upstream: Recorder, **options: Any) -> AsyncIterator[Rig]:
    async with token_server() as tokens:
        retry = {"base": "1ms", "cap": "1ms"} | options.pop("retry", {})
        async with sidecar(configuration(upstream.url, tokens.url, tmp_path, retry=retry, **options)) as running:
            yield running


async def get(running: Rig, path: str = "/items", method: str = "GET", extra: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{extra}\r\n"
    return await raw(running.port("plm"), head.encode())


def done(running: Rig) -> list[RequestDone]:
    return [event for event in running.events if isinstance(event, RequestDone)]


def answer(status: int, *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Content-Length: 0", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def script(*answers: bytes) -> Any:
    """Return a script that gives *answers* in turn, then 200; an empty one closes the connection."""
    left = list(answers)

    async def play(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = left.pop(0) if left else OK
        writer.write(data)
        if not data:
            writer.close()

    return play


EXPIRED = answer(401, 'WWW-Authenticate: Bearer error="invalid_token"')


@pytest.mark.parametrize(
    ("answers", "method", "verdicts", "unauthorized", "refused", "status"),
    [
        ([], "GET", ("pass",), 0, "", 200),
        ([EXPIRED], "GET", ("renew", "pass"), 1, "", 200),
        ([EXPIRED, EXPIRED], "GET", ("renew", "pass"), 2, "", 401),
        ([answer(503), answer(429)], "GET", ("503", "429", "pass"), 0, "", 200),
        ([answer(503)] * 3, "GET", ("503", "503", "pass"), 0, "attempts", 503),
        ([answer(503)], "POST", ("pass",), 0, "method", 503),
        ([answer(503, "Retry-After: 3000")], "GET", ("pass",), 0, "retry_after", 503),
        ([b""], "GET", ("reset", "pass"), 0, "", 200),
        ([b""], "POST", ("fail",), 0, "method", 502),
    ],
)
async def test_a_request_tells_what_became_of_each_attempt(
    tmp_path: Path,
    answers: list[bytes],
    method: str,
    verdicts: tuple[str, ...],
    unauthorized: int,
    refused: str,
    status: int,
) -> None:
    """With what the upstream really did, over real connections."""
    async with recorder(script(*answers)) as upstream, rig(tmp_path, upstream) as running:
        got = await get(running, method=method, extra="Content-Length: 0\r\n" if method == "POST" else "")
        (event,) = done(running)
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert (event.verdicts, event.unauthorized, event.refused) == (verdicts, unauthorized, refused)
    assert event.status == status


async def test_a_silent_upstream_is_a_timeout(tmp_path: Path) -> None:
    """Told apart from one that breaks off, and not asked again."""

    async def play(_: Seen, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await reader.read()

    async with recorder(play) as upstream, rig(tmp_path, upstream, timeout={"first_byte": "0.2s"}) as running:
        await get(running)
        (event,) = done(running)
    assert (event.verdicts, event.refused, event.outcome) == (("fail",), "timeout", "upstream_timeout")
    assert len(upstream.seen) == 1


async def test_our_share_holds_none_of_the_waits(tmp_path: Path) -> None:
    """A slow token, a slow upstream, a backoff and a slow client take seconds, our work milliseconds."""
    size = 8 << 20
    turn = 0

    async def play(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        turn += 1
        await asyncio.sleep(0.6)
        if turn == 1:
            writer.write(answer(503, "Retry-After: 1"))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))

    async with recorder(play) as upstream, token_server() as tokens:
        tokens.delay = 1.2
        async with sidecar(configuration(upstream.url, tokens.url, tmp_path)) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port("plm"), limit=1 << 16)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            await reader.read(1 << 16)
            await asyncio.sleep(1.2)
            while await reader.read(1 << 20):
                pass
            writer.close()
            (event,) = done(running)
    assert event.seconds > 4
    assert event.overhead is not None
    assert 0 < event.overhead < 1


async def test_our_share_of_a_small_request_is_a_part_of_it(tmp_path: Path) -> None:
    """It is more than nothing: the head alone takes time."""
    async with recorder() as upstream, rig(tmp_path, upstream) as running:
        for _ in range(3):
            await get(running)
        events = done(running)
    assert len(events) == 3
    assert all(event.overhead is not None and 0.00002 < event.overhead < event.seconds for event in events)


async def test_requests_in_flight_are_known_by_upstream(tmp_path: Path) -> None:
    """From the head to the end of the answer, however it ends; what has no upstream is not in it."""
    arrived, go = asyncio.Event(), asyncio.Event()

    async def play(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await go.wait()
        writer.write(OK)

    async with recorder(play) as upstream, rig(tmp_path, upstream) as running:
        counts = running.app._assembly.proxy.exchange._in_flight
        asked = asyncio.ensure_future(get(running))
        await arrived.wait()
        during = dict(counts)
        go.set()
        await asked
        await raw(
            running.port(), b"GET http://nowhere.test/ HTTP/1.1\r\nHost: nowhere.test\r\nConnection: close\r\n\r\n"
        )
    assert during == {"plm": 1}
    assert set(counts.values()) <= {0}


@contextlib.asynccontextmanager
async def admin(page: Any) -> AsyncIterator[str]:
    """Serve an admin port with *page* for its metrics; its address."""

    async def nothing(_: str = "") -> Any:
        return None

    source = Source(
        status=dict,
        problems=dict,
        renew=nothing,
        revoke=nothing,
        upstreams=dict,
        exec_port=nothing,
        pid=1,
        metrics=page,
    )
    bound = socket.create_server(("127.0.0.1", 0))
    server = Admin(source, Secret(canary("admin-token")), local=True)
    await server.serve(bound)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        await server.aclose()


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("10.1.2.3:8081", "/metrics", 200),
        ("[fd00::1]:8081", "/readyz", 200),
        ("10.1.2.3", "/livez", 200),
        ("10.1.2.3:8081", "/status", 403),
        ("rebound.example:8081", "/metrics", 403),
        ("localhost:8081", "/status", 200),
    ],
)
async def test_a_cluster_asks_by_address(host: str, path: str, status: int) -> None:
    """A scraper and a probe do; a page that made a name of its own lead here cannot."""
    async with admin(bytes) as url, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(url + path, headers={"Host": host})).status_code == status


async def test_the_page_needs_no_token_and_says_what_it_is() -> None:
    """As a scraper asks for it; every time anew."""
    metrics = Metrics(status=dict, in_flight=dict, quota=dict, clock=SystemClock())
    async with admin(metrics.render) as url, httpx.AsyncClient(trust_env=False) as client:
        got = await client.get(f"{url}/metrics", headers={"Accept": "application/openmetrics-text, text/plain;q=0.5"})
    assert got.status_code == 200
    assert got.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert got.content == metrics.render()
    assert b"# TYPE auth_sidecar_requests_total counter" in got.content
    assert got.headers["Cache-Control"] == "no-store"
