"""Small requests: many on connections that stay, and one on each, near and far."""

import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from bench.contenders import Contender, everybody
from bench.figures import Sample
from bench.measure import cpu_seconds
from bench.plan import Plan
from bench.programs import free_port, output
from bench.upstream import Upstream, behind_relay, nginx
from bench.wrk import CPU, P50, wrk

WALL = "wall s"
KEEPALIVE = {1: "keep-alive c=1", 16: "keep-alive c=16", 64: "keep-alive c=64"}
NEW = "new connection each, wrk c=16"
NEAR = "script, near"
FAR = "script, 30 ms"

_SCRIPT = Path(__file__).parents[1] / "script.py"


async def keepalive(plan: Plan) -> AsyncGenerator[Sample]:
    """Small GETs on 1, 16 and 64 connections that stay open."""
    async with _field(plan, "keepalive") as (_, contenders):
        for connections, case in KEEPALIVE.items():
            plan.say(case)
            for _ in range(plan.effort.rounds):
                for who in contenders:
                    figures = await wrk(who, connections, plan.effort.seconds)
                    for what, value in figures.items():
                        yield Sample("keepalive", case, who.name, what, value)


async def connections(plan: Plan) -> AsyncGenerator[Sample]:
    """A new connection for each request: from wrk, and from a script."""
    async with _field(plan, "connections") as (upstream, contenders):
        plan.say(NEW)
        for _ in range(plan.effort.rounds):
            for who in contenders:
                figures = await wrk(who, 16, plan.effort.seconds, "Connection: close")
                for what, value in figures.items():
                    yield Sample("connections", NEW, who.name, what, value)
        plan.say(NEAR)
        for _ in range(plan.effort.rounds):
            for who in contenders:
                for what, value in (await script(who, upstream, plan.effort.requests)).items():
                    yield Sample("connections", NEAR, who.name, what, value)


async def far(plan: Plan) -> AsyncGenerator[Sample]:
    """The same script, with an upstream that is a round trip of 30 ms away."""
    plan.say(FAR)
    async with (
        nginx(plan.folder / "far", free_port()) as near,
        behind_relay(near, "--delay", "0.015", "--first", "0.03") as upstream,
        everybody(upstream, plan.folder / "far", plan.envoy) as contenders,
    ):
        for _ in range(plan.effort.far_rounds):
            for who in contenders:
                for what, value in (await script(who, upstream, plan.effort.far_requests)).items():
                    yield Sample("far", FAR, who.name, what, value)


@contextlib.asynccontextmanager
async def _field(plan: Plan, name: str) -> AsyncIterator[tuple[Upstream, list[Contender]]]:
    """Start upstream and contenders, and let each of them warm up."""
    folder = plan.folder / name
    async with nginx(folder, free_port()) as upstream, everybody(upstream, folder, plan.envoy) as contenders:
        for who in contenders:
            await wrk(who, 16, 1)
        yield upstream, contenders


async def script(who: Contender, upstream: Upstream, requests: int) -> dict[str, float]:
    """Run the script through a contender; its start is not counted."""
    command = [sys.executable, str(_SCRIPT), f"{who.url}/items", str(requests), *([who.token] if who.token else [])]
    before = cpu_seconds(who.pid) if who.pid else 0.0
    said = json.loads(await output(*command, within=60 + requests, env={"SSL_CERT_FILE": str(upstream.ca)}))
    figures = {WALL: said["seconds"], P50: said["p50"]}
    if who.pid:
        figures[CPU] = (cpu_seconds(who.pid) - before) / requests * 1000
    return figures
