"""The parts of the bench that need neither wrk nor Envoy: relay, clients, what processes cost, figures, report."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from bench import measure, report
from bench.contenders import envoy_binary, everybody
from bench.figures import OURS, STOCK, Figures, Sample, ratio
from bench.goals import GOALS, Goal, thirds
from bench.loads import small, soak, storm, upstreams
from bench.loads.order import LOADS
from bench.measuring import collect
from bench.plan import Load
from bench.programs import free_port, line, output, program
from bench.relay import Line, relay
from bench.upstream import Upstream, behind_relay, nginx
from bench.wrk import CPU, read
from sidecar.errors import SidecarError
from tests.rig import recorder

ROOT = Path(__file__).parents[2]

WRK = """
  Latency Distribution
     50%  {p50}
     75%    9.99ms
     90%    9.99ms
     99%  {p99}
  3000 requests in 3.00s, 1.00MB read
{bad}Requests/sec:    999.50
"""
# A child that holds 100 MB and half a second of processor time; its parent has neither.
FAMILY = """
import subprocess, sys, time
CHILD = '''
import sys, time
held = bytearray(100_000_000)
held[::4096] = bytes(len(held[::4096]))
while time.process_time() < 0.5: pass
print("ready", flush=True)
sys.stdin.read()
'''
child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE)
try:
    time.sleep(600)
finally:
    child.communicate()
"""


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """Serve whatever comes, back again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def there_and_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> float:
    """Return the seconds until *data* has come back."""
    began = time.monotonic()
    writer.write(data)
    async with asyncio.timeout(20):
        assert await reader.readexactly(len(data)) == data
    return time.monotonic() - began


async def test_relay_delays_each_way_and_a_connection_once(echo: int) -> None:
    """A round trip takes both delays, the first one of a connection the handshake as well."""
    async with relay(echo, Line(delay=0.1, first=2.0)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        first = await there_and_back(reader, writer, b"one")
        second = await there_and_back(reader, writer, b"two")
        writer.close()
    assert first >= 2.2 - 0.01
    assert 0.2 - 0.01 <= second < 2.0


async def test_relay_keeps_order_and_does_not_limit(echo: int) -> None:
    """Delayed bytes travel side by side: 32 MB arrive whole and long before one chunk per delay would."""
    data = b"".join(hashlib.shake_256(b"%d" % n).digest(1 << 20) for n in range(32))
    async with relay(echo, Line(delay=0.1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        took = await there_and_back(reader, writer, data)
        writer.close()
    assert took < len(data) / (1 << 16) * 0.1 / 2


async def test_relay_limits_the_rate_upwards(echo: int) -> None:
    """A slow line takes as long as it says, and the client is told to wait."""
    data = bytes(1 << 20)
    async with relay(echo, Line(rate=1 << 20)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        took = await there_and_back(reader, writer, data)
        writer.close()
    assert took >= 0.9


async def test_relay_passes_an_end_on(echo: int) -> None:
    """When the client has sent all, the server sees the end, and its own end comes back after the last byte."""
    async with relay(echo, Line(delay=0.05)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"all")
        writer.write_eof()
        async with asyncio.timeout(20):
            assert await reader.read() == b"all"
        writer.close()


async def test_relay_ends_its_connections(echo: int) -> None:
    """No connection outlives the relay."""
    async with relay(echo, Line()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await there_and_back(reader, writer, b"x")
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


async def test_relay_is_a_process_of_its_own(echo: int, tmp_path: Path) -> None:
    """It says where it listens, and ends with its context."""
    here = Upstream(echo, tmp_path / "ca.pem", tmp_path)
    async with behind_relay(here, "--delay", "0.01") as there:
        assert there.port != echo
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port)
        await there_and_back(reader, writer, b"x")
        writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", there.port)


async def test_cost_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    """Processor time and memory of a proxy are those of its children too."""
    async with program(sys.executable, "-c", FAMILY, log=tmp_path / "log") as process:
        assert await line(process, "the family", tmp_path / "log") == "ready\n"
        family = measure.tree(process.pid)
        assert len(family) == 2
        assert measure.cpu_seconds(process.pid) >= 0.5
        assert measure.resident(process.pid) > 100_000_000
        assert measure.threads(process.pid) == 2
    assert measure.tree(process.pid) == []


async def test_peak_is_what_has_gone_again(tmp_path: Path) -> None:
    """Memory that was given back before the end counts as well."""
    code = "import time; held = b'x' * 200_000_000; time.sleep(2); del held; print('gone', flush=True); time.sleep(600)"
    async with program(sys.executable, "-c", code, log=tmp_path / "log") as process:
        async with measure.peak(process.pid) as highest:
            await line(process, "it", tmp_path / "log")
        assert measure.resident(process.pid) < 150_000_000 < highest[0]


async def test_connections_are_counted_by_port(echo: int) -> None:
    """A process has the connections that it took at a port, those that it made to one, and no others."""
    me = os.getpid()
    before = measure.descriptors(me)
    _, writer = await asyncio.open_connection("127.0.0.1", echo)
    async with asyncio.timeout(20):
        while measure.connections(me, local=echo) == 0:
            await asyncio.sleep(0.01)
    assert measure.connections(me, local=echo) == measure.connections(me, remote=echo) == 1
    assert measure.connections(me, local=free_port()) == 0
    assert measure.descriptors(me) == before + 2
    assert measure.descriptors(me, but_to=echo) == before + 1
    writer.close()


@pytest.mark.parametrize("ending", ["answers", "breaks"])
async def test_clients_count_every_answer_and_every_failure(ending: str) -> None:
    """Connections live as long as they should, and a request without an answer is a failure."""

    async def broken(_: object, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await asyncio.sleep(0.02)

    async with recorder(None if ending == "answers" else broken) as record:
        options = ("--connections", "2", "--seconds", "1", "--lives", "3")
        said = await output(sys.executable, "-m", "bench.clients", str(record.port), *options, within=60)
        each, failed, refused = report_of(said)
    assert refused == 0
    if ending == "answers":
        assert failed == 0
        assert len(each) == len(record.seen)
        assert {status for _, _, status in each} == {200}
        assert record.connections > len(each) / 3
    else:
        assert each == []
        # One of each client may have been opened as the time was over.
        assert 0 < failed <= record.connections <= failed + 2


def report_of(text: str) -> tuple[list[tuple[float, float, int]], int, int]:
    each, failed, refused = json.loads(text)
    return each, failed, refused


async def test_contenders_bring_the_credential(tmp_path: Path, outputs: Path) -> None:
    """A script that has no token gets through every proxy, and not to the upstream by itself."""
    async with nginx(tmp_path / "nginx", free_port()) as upstream, everybody(upstream, tmp_path, None) as contenders:
        assert [who.name for who in contenders][1:] == [STOCK, OURS]
        for who in contenders:
            figures = await small.script(who, upstream, 3)
            assert figures[small.WALL] > 0
            assert (CPU in figures) == (who.pid is not None)
        command = (sys.executable, str(ROOT / "bench/script.py"), upstream.url, "1")
        with pytest.raises(SidecarError, match="401"):
            await output(*command, within=60, env={"SSL_CERT_FILE": str(upstream.ca)})
    shutil.copy(tmp_path / "ours/log", outputs / "bench-sidecar.log")


def test_without_envoy_there_is_no_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its package is not installed, Envoy takes no part, and nothing fails."""
    monkeypatch.setitem(sys.modules, "envoy", None)
    assert envoy_binary() is None


def test_wrk_is_read() -> None:
    """Latencies are milliseconds, whatever unit wrk chose."""
    said = read(WRK.format(p50="850.00us", p99="1.20s", bad=""), "x")
    assert (said.requests, said.rate, said.p50, said.p99) == (3000, 999.5, 0.85, 1200)


@pytest.mark.parametrize(
    "bad", ["  Non-2xx or 3xx responses: 12\n", "  Socket errors: connect 0, read 3, write 0, timeout 0\n"]
)
def test_failed_requests_are_no_figures(bad: str) -> None:
    """A proxy that fails is not fast: such a round counts for nothing."""
    with pytest.raises(SidecarError, match="x failed under load"):
        read(WRK.format(p50="1.00ms", p99="2.00ms", bad=bad), "x")
    with pytest.raises(SidecarError, match="nothing that can be read"):
        read("unable to connect", "x")


def made_up(case: str, who: str, what: str, *values: float) -> Figures:
    return Figures(tuple(Sample("keepalive", case, who, what, value) for value in values))


def test_figures_are_medians_and_ratios() -> None:
    """One bad round moves no median; what was not measured is not zero."""
    figures = made_up("c", OURS, CPU, 0.4, 9.0, 0.5)
    assert figures.median("c", OURS, CPU) == 0.5
    assert figures.highest("c", OURS, CPU) == 9.0
    assert figures.median("c", STOCK, CPU) is None
    assert ratio(0.5, 2.0) == 0.25
    assert ratio(0.5, 0.0) is ratio(None, 2.0) is ratio(0.5, None) is None
    assert figures.under("far").samples == ()


def test_thirds_are_the_middle_and_the_last() -> None:
    """A soak is judged when it has warmed up, and only with something in each third."""
    assert thirds([9, 9, 9, 1, 2, 3, 4, 5, 6]) == (2, 5)
    assert thirds([9, 9, 1, 1, 2, 2, 7]) == (1, 4.5)
    assert thirds([1, 2]) is None


def test_a_goal_is_reached_at_its_limit() -> None:
    """The limit itself counts as reached, upwards and downwards; without a figure nothing is claimed."""
    for at_least, value, expected in [(False, 1.0, True), (False, 1.1, False), (True, 1.0, True), (True, 0.9, False)]:
        goal = Goal("x", "y", 1.0, "", lambda _, value=value: value, at_least=at_least)
        assert goal.reached(Figures(())) is expected
    assert Goal("x", "y", 1.0, "", lambda _: None).reached(Figures(())) is None


def test_every_goal_is_under_a_load_and_honest_about_nothing() -> None:
    """Each goal belongs to a load that exists; after a run without figures every one is not measured."""
    assert {goal.load for goal in GOALS} <= {load.name for load in LOADS} | {soak.LOAD}
    assert [goal.about for goal in GOALS if goal.reached(Figures(())) is not None] == []


def test_goals_compare_with_what_they_name() -> None:
    """The storm's limit counts from the token endpoint's time on; a ratio is ours over theirs."""
    c1 = small.KEEPALIVE[1]
    both = made_up(c1, OURS, CPU, 0.3).samples + made_up(c1, STOCK, CPU, 1.0).samples
    calm = [(storm.CALM, 100.0), (storm.ENDPOINT, 300.0), (storm.SLOWEST, 550.0)]
    figures = Figures(both + tuple(Sample("storm", storm.CASE, OURS, what, value) for what, value in calm))
    measured = {goal.about: goal.value(figures) for goal in GOALS if goal.value(figures) is not None}
    assert measured == {"CPU per request, c=1": 0.3, "slowest request less the token endpoint's time": 2.5}


def test_upstreams_are_charged_what_each_costs_beyond_the_first() -> None:
    """Memory in KB for each of the 999 more, seconds by which the start is longer, and the worst end of all."""
    many = [
        (upstreams.MEMORY, 149.95),
        (upstreams.READY, 4.5),
        (CPU, 0.33),
        (upstreams.STOP, 0.5),
        (upstreams.STOP, 1.5),
    ]
    one = [(upstreams.MEMORY, 100.0), (upstreams.READY, 1.5), (CPU, 0.3), (upstreams.STOP, 9.0)]
    samples = [
        Sample("upstreams", upstreams.CASE, who, what, value)
        for who, figures in ((upstreams.MANY, many), (upstreams.ONE, one))
        for what, value in figures
    ]
    figures = Figures(tuple(samples))
    values = [goal.value(figures) for goal in GOALS if goal.load == "upstreams"]
    assert values == pytest.approx([3.0, 50.0, 1.1, 1.5])


async def nothing(_: object) -> AsyncGenerator[Sample]:
    yield Sample("x", "c", OURS, "ms", 1.0)


def test_report_shows_medians_with_their_ratio_and_verdicts() -> None:
    """A row per contender, the ratio in brackets beside what is compared; a goal says whether it was reached."""
    case = small.KEEPALIVE[1]
    figures = Figures(made_up(case, STOCK, CPU, 2.0).samples + made_up(case, OURS, CPU, 1.0).samples)
    load = Load(name="keepalive", title="Small", note="Note.", reference=STOCK, run=nothing)
    text = report.markdown([report.goal_table(figures, ["keepalive", "far"]), report.load_table(load, figures, "late")])
    assert f"| {case} | {STOCK} | 2 |\n| {case} | {OURS} | 1 (0.50 x) |" in text
    assert "| keepalive | CPU per request, c=1 | <= 0.23 x stock mitmdump | 0.50 | **not reached** |" in text
    assert "| keepalive | CPU per request, c=16 | <= 0.20 x stock mitmdump |  | not measured |" in text
    assert "Note. In brackets: times stock mitmdump. Failed: late" in text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0123, "0.012"), (0.5, "0.50"), (48, "48"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    """Three digits or so, never an exponent."""
    assert report.number(value) == text


def test_each_kind_of_run_keeps_the_part_of_the_other(tmp_path: Path) -> None:
    """A soak leaves the figures of the whole run alone, and the other way round; notes come last and are read anew."""
    file, notes = tmp_path / "results.md", tmp_path / "notes.md"
    for part, text in (("run", "## First\n"), ("soak", "## Long\n"), ("run", "## Second\n")):
        file.write_text(report.page(file, notes, **{part: text}))
        notes.write_text(f"## Why not\n\nAfter {text.split()[1]}.\n")
    text = report.page(file, notes, soak="## Longer\n")
    kept = [text.index(each) for each in ("## Second", "## Longer", "## Notes", "## Why not", "After Second.")]
    assert kept == sorted(kept)
    assert "First" not in text
    assert "## Long\n" not in text


async def test_what_a_load_gave_before_it_failed_is_kept() -> None:
    """A failure is a line in the report; what the load had started is ended; a fault of the bench is not hidden."""
    ended = []

    async def failing(error: Exception) -> AsyncGenerator[Sample]:
        try:
            yield Sample("x", "c", OURS, "ms", 1.0)
            raise error
        finally:
            ended.append(error)

    for error in (SidecarError("it broke"), ExceptionGroup("g", [SidecarError("it broke")])):
        found, why = await collect(failing(error))
        assert ([sample.value for sample in found], why) == ([1.0], "it broke")
    for fault in (KeyError("x"), ExceptionGroup("g", [SidecarError("x"), KeyError("x")])):
        with pytest.raises(type(fault)):
            await collect(failing(fault))
    assert len(ended) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "--soak DURATION"),
        (["--only", "nothing"], 2, "expected one of keepalive, connections, far"),
        (["--soak", "long"], 2, "--soak long: expected a duration"),
        (["--soak", "1m", "--quick"], 2, "without --quick"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_command_line_says_what_it_takes(arguments: list[str], code: int, says: str) -> None:
    """Help, and one line for bad usage; nothing is measured."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True)
    assert code == 0 or done.stderr.count("\n") == 1
