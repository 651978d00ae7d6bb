"""Big bodies, down and up: at full speed, and with a peer that is slow; what stays in memory meanwhile."""

import contextlib
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path

from bench.contenders import Contender, everybody
from bench.figures import Sample
from bench.measure import MIB, cpu_seconds, peak, resident
from bench.plan import Plan
from bench.programs import find, free_port, output
from bench.upstream import Upstream, behind_relay, emptied, nginx
from sidecar.errors import SidecarError

DOWN = "full speed, down"
UP = "full speed, up"
SLOW_CLIENT = "slow client, down"
SLOW_UPSTREAM = "slow upstream, up"

SPEED = "MB/s"
CPU = "CPU s/GB"
PEAK = "peak MiB over idle"

_STREAMING = ("--set", "stream_large_bodies=1m")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
_GB = 1_000_000_000


async def bodies(plan: Plan) -> AsyncGenerator[Sample]:
    """Bodies both ways through mitmdump (streaming), the sidecar and Envoy."""
    effort = plan.effort
    with _room(2 * effort.body_bytes) as folder:
        sizes = {"big": effort.body_bytes, "slow": effort.slow_bytes}
        async with nginx(folder / "nginx", free_port(), sizes) as upstream:
            async with _started(plan, upstream, "near") as contenders:
                for _ in range(effort.body_rounds):
                    for case, transfer in ((DOWN, _down("big")), (UP, _up(upstream, "big"))):
                        plan.say(case)
                        for who, idle in contenders:
                            for what, value in (await _transfer(who, idle, effort.body_bytes, transfer)).items():
                                yield Sample("bodies", case, who.name, what, value)
                            await emptied(upstream)
                plan.say(SLOW_CLIENT)
                slowly = _down("slow", "--limit-rate", str(effort.slow_rate))
                for who, idle in contenders:
                    for what, value in (await _transfer(who, idle, effort.slow_bytes, slowly)).items():
                        yield Sample("bodies", SLOW_CLIENT, who.name, what, value)
            plan.say(SLOW_UPSTREAM)
            slow = behind_relay(upstream, "--rate", str(effort.slow_rate))
            async with slow as relayed, _started(plan, relayed, "slow") as contenders:
                for who, idle in contenders:
                    figures = await _transfer(who, idle, effort.slow_bytes, _up(upstream, "slow"))
                    for what, value in figures.items():
                        yield Sample("bodies", SLOW_UPSTREAM, who.name, what, value)
                    await emptied(upstream)


Command = Callable[[Contender], tuple[str, ...]]


def _down(name: str, *options: str) -> Command:
    return lambda who: ("--output", "/dev/null", *options, f"{who.url}/files/{name}")


def _up(upstream: Upstream, name: str) -> Command:
    source = str(upstream.folder / "files" / name)
    return lambda who: ("--output", "/dev/null", "--upload-file", source, f"{who.url}/up/{name}")


async def _transfer(who: Contender, idle: int, size: int, arguments: Command) -> dict[str, float]:
    """Run curl; SidecarError when it fails, or when not all bytes went through."""
    if who.pid is None:
        raise TypeError("expected a proxy")
    said = "%{size_download} %{size_upload} %{time_total}"
    command = (find("curl"), "--silent", "--show-error", "--fail", "--noproxy", "*", "--write-out", said)
    before = cpu_seconds(who.pid)
    async with peak(who.pid) as highest:
        answer = await output(*command, *arguments(who), within=600)
    down, up, seconds = answer.split()
    if max(int(down), int(up)) != size:
        raise SidecarError(f"{who.name} passed {max(int(down), int(up))} bytes on; expected {size}")
    return {
        SPEED: size / 1e6 / float(seconds),
        CPU: (cpu_seconds(who.pid) - before) / (size / _GB),
        PEAK: (highest[0] - idle) / MIB,
    }


@contextlib.asynccontextmanager
async def _started(plan: Plan, upstream: Upstream, name: str) -> AsyncIterator[list[tuple[Contender, int]]]:
    """Start the proxies; each with what it holds after its first request, before any body."""
    async with everybody(upstream, plan.folder / "bodies" / name, plan.envoy, *_STREAMING) as found:
        proxies = [(who, who.pid) for who in found if who.pid is not None]
        for who, _ in proxies:
            await output(find("curl"), "--silent", "--fail", "--noproxy", "*", f"{who.url}/items", within=60)
        yield [(who, resident(pid)) for who, pid in proxies]


@contextlib.contextmanager
def _room(size: int) -> Iterator[Path]:
    """Give a folder for *size* bytes, in memory if there is room for twice as much; SidecarError when there is none."""
    places = [place for place in (_SHARED_MEMORY, Path(tempfile.gettempdir())) if place.is_dir()]
    for place in places:
        free = shutil.disk_usage(place).free
        if place == _SHARED_MEMORY:
            free = min(free, _available()) // 2
        if free > size:
            with tempfile.TemporaryDirectory(prefix="auth-sidecar-bench-", dir=place) as folder:
                yield Path(folder)
            return
    raise SidecarError(f"no room for {size // _GB} GB of bodies; looked in {', '.join(map(str, places))}")


def _available() -> int:
    """Return how many bytes of memory can be had."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        name, value, *_ = line.split()
        if name == "MemAvailable:":
            return int(value) * 1024
    return 0
