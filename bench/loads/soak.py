"""A long time at half load, clients coming and going: does anything grow?"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator

from bench.contenders import Contender, ours
from bench.figures import OURS, Sample
from bench.measure import descriptors, resident, threads
from bench.plan import Plan
from bench.programs import free_port, output
from bench.upstream import Upstream, nginx
from bench.wrk import RATE, wrk
from sidecar.clock import SystemClock
from sidecar.errors import SidecarError

LOAD = "soak"
LOADED = "under half load"
REST = "between clients"

MEMORY = "resident MB"
DESCRIPTORS = "descriptors"
THREADS = "threads"
REQUESTS = "requests, each client process"
FAILED = "failed"

_MB = 1_000_000
_CLIENT_SECONDS = 21
_SAMPLE_SECONDS = 10
_REST_SECONDS = 6
"""Longer than a pooled connection may idle, so that at rest there is nothing but what stays for good."""


async def soak(plan: Plan, seconds: float) -> AsyncGenerator[Sample]:
    """Clients in a process of their own come, end connections after 1 to 200 requests, and go; then a rest; again."""
    clock = SystemClock()
    async with nginx(plan.folder / LOAD, free_port()) as upstream, ours(upstream, plan.folder / LOAD) as who:
        rate = (await wrk(who, 16, 3))[RATE] / 2
        end = clock.monotonic() + seconds
        while clock.monotonic() < end:
            plan.say(f"{rate:.0f} requests a second; {max(0.0, end - clock.monotonic()):.0f} s to go")
            for sample in await _cycle(who, upstream, rate):
                yield sample


async def _cycle(who: Contender, upstream: Upstream, rate: float) -> list[Sample]:
    """Run one client process, sampling meanwhile, and sample once more when its connections are gone."""
    pid = who.pid
    if pid is None:
        raise TypeError("expected a proxy")
    options = ("--path", "/items", "--rate", f"{rate:g}", "--lives", "200", "--seconds", str(_CLIENT_SECONDS))
    command = (sys.executable, "-O", "-m", "bench.clients", str(who.port), *options)
    found = []
    async with asyncio.TaskGroup() as group:
        clients = group.create_task(output(*command, within=_CLIENT_SECONDS + 60))
        for _ in range(_CLIENT_SECONDS // _SAMPLE_SECONDS):
            await asyncio.sleep(_SAMPLE_SECONDS)
            found.append(_sample(LOADED, MEMORY, resident(pid) / _MB))
            found.append(_sample(LOADED, DESCRIPTORS, descriptors(pid)))
    each, failed, refused = json.loads(clients.result())
    if not each:
        raise SidecarError("no request of the soak was answered")
    found.append(_sample(LOADED, REQUESTS, len(each)))
    found.append(_sample(LOADED, FAILED, failed + refused + sum(status != 200 for _, _, status in each)))  # noqa: PLR2004
    await asyncio.sleep(_REST_SECONDS)
    found.append(_sample(REST, MEMORY, resident(pid) / _MB))
    found.append(_sample(REST, DESCRIPTORS, descriptors(pid, but_to=upstream.port)))
    found.append(_sample(REST, THREADS, threads(pid)))
    return found


def _sample(case: str, what: str, value: float) -> Sample:
    return Sample(LOAD, case, OURS, what, value)
