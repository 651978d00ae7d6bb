"""wrk, the load generator: one thread, and the processor time that a contender spent meanwhile."""

import re
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Contender
from bench.measure import cpu_seconds
from bench.programs import find, output
from sidecar.errors import SidecarError

CPU = "CPU ms/request"
P50 = "p50 ms"
P99 = "p99 ms"
RATE = "requests/s"

_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_REQUESTS = re.compile(r"(\d+) requests in")
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", re.MULTILINE)
_BAD = re.compile(r"Non-2xx.*|Socket errors: connect (?!0, read 0, write 0, timeout 0).*")


@dataclass(frozen=True, slots=True)
class Said:
    """What wrk says at its end: how many requests, how many a second, the latencies in milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float


async def wrk(
    who: Contender, connections: int, seconds: int, *headers: str, script: Path | None = None
) -> dict[str, float]:
    """Load a contender with so many connections for so many seconds; return its figures by their names.

    *script*: of wrk, in Lua.

    Raises SidecarError when any request failed: a proxy that fails is not fast.
    """
    fields = [*headers, *([f"Authorization: Bearer {who.token}"] if who.token else [])]
    options = [option for field in fields for option in ("-H", field)]
    options += ["-s", str(script)] if script else []
    command = (find("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *options, f"{who.url}/items")
    before = cpu_seconds(who.pid) if who.pid else 0.0
    text = await output(*command, within=seconds + 60)
    spent = cpu_seconds(who.pid) - before if who.pid else 0.0
    said = read(text, who.name)
    cpu = {CPU: spent / said.requests * 1000} if who.pid else {}
    return cpu | {RATE: said.rate, P50: said.p50, P99: said.p99}


def read(text: str, name: str) -> Said:
    """Return what wrk wrote of the contender *name*; SidecarError when requests failed, or none was made."""
    if bad := _BAD.search(text):
        raise SidecarError(f"{name} failed under load: {bad[0].strip()}")
    requests, rate = _REQUESTS.search(text), _RATE.search(text)
    latencies = {match[1]: float(match[2]) * _MS[match[3]] for match in _LATENCY.finditer(text)}
    if requests is None or rate is None or set(latencies) != {"50", "99"} or not int(requests[1]):
        raise SidecarError(f"wrk said nothing that can be read about {name}: {' '.join(text.split())[:200]}")
    return Said(int(requests[1]), float(rate[1]), latencies["50"], latencies["99"])
