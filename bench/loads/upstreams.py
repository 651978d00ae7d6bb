"""A thousand upstreams beside one: what they cost at the start, at rest, for each request, and at the end."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx

from bench.contenders import Contender, sidecar
from bench.figures import Sample
from bench.measure import resident
from bench.plan import Plan
from bench.programs import free_port
from bench.upstream import Upstream, nginx
from bench.wrk import wrk
from sidecar.clock import SystemClock
from tests.rig import configuration, token_server

CASE = "upstreams, proxy port, c=1"
ONE = "1 upstream"
MANY = "1000 upstreams"
COUNTS = {ONE: 1, MANY: 1000}

READY = "ready s"
TOKENS = "all tokens s"
MEMORY = "resident MB"
STOP = "stop s"

_TOKENS_WITHIN = 120.0
_SETTLE = 1.0
_MB = 1_000_000


async def upstreams(plan: Plan) -> AsyncGenerator[Sample]:
    """Both start anew each time, and serve at the same time; the requests, by turns, are for an upstream of both."""
    plan.say(CASE)
    folder, clock = plan.folder / "upstreams", SystemClock()
    async with nginx(folder, free_port()) as upstream, token_server() as tokens:
        script = folder / "absolute.lua"  # as clients of a proxy ask
        script.write_text(f'wrk.path = "http://localhost:{upstream.port}/items"', encoding="utf-8")
        for number in range(plan.effort.growths):
            async with contextlib.AsyncExitStack() as stack:
                serving = {}
                for name, count in COUNTS.items():
                    data = _configured(count, upstream, tokens.url, folder / f"{count}-{number}" / "state")
                    ends = await stack.enter_async_context(contextlib.AsyncExitStack())
                    who, figures = await _started(name, data, folder / f"{count}-{number}", ends)
                    serving[name] = who, ends
                    for what, value in figures.items():
                        yield Sample("upstreams", CASE, name, what, value)
                    await wrk(who, 1, 1, script=script)
                for _ in range(plan.effort.rounds):
                    for who, _ends in serving.values():
                        for what, value in (await wrk(who, 1, plan.effort.seconds, script=script)).items():
                            yield Sample("upstreams", CASE, who.name, what, value)
                for name, (_, ends) in serving.items():
                    began = clock.monotonic()
                    await ends.aclose()
                    yield Sample("upstreams", CASE, name, STOP, clock.monotonic() - began)


def _configured(count: int, upstream: Upstream, token_url: str, state: Path) -> dict[str, Any]:
    """Return a configuration whose upstreams have a host and a credential each; only the first is ever asked."""
    data = configuration(upstream.url, token_url, state, tls={"ca": str(upstream.ca)})
    first = data["upstreams"]["plm"]
    for number in range(1, count):
        data["upstreams"][f"plm_{number}"] = {
            "base_url": f"https://plm-{number}.example.com",
            "insecure_http": True,
            "oauth2": first["oauth2"] | {"client_id": f"client-{number}"},
            "tls": first["tls"],
        }
    return data


async def _started(
    name: str, data: dict[str, Any], folder: Path, stack: contextlib.AsyncExitStack
) -> tuple[Contender, dict[str, float]]:
    """Start a sidecar that ends with *stack*; return its proxy port, and what it took until every token was there."""
    clock = SystemClock()
    began = clock.monotonic()
    pid, ports = await stack.enter_async_context(sidecar(data, folder))
    ready = clock.monotonic() - began
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client, asyncio.timeout(_TOKENS_WITHIN):
        while (await client.get(f"http://127.0.0.1:{ports['admin']}/readyz")).is_error:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)
    tokens = clock.monotonic() - began
    await asyncio.sleep(_SETTLE)
    figures = {READY: ready, TOKENS: tokens, MEMORY: resident(pid) / _MB}
    return Contender(name, f"http://127.0.0.1:{ports['proxy']}", pid, ready), figures
