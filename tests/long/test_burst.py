"""Ten seconds of 503 at a high rate, on real sockets: the upstream is spared, clients are answered at once, it ends."""

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.process import start_sidecar
from tests.rig import configuration, token_server

RATE = 200.0
BURST = 10.0
BACK = 10.0
FLOOR = 10


@dataclass
class Upstream:
    """Answers 503 while it is told so, and counts."""

    url: str = ""
    broken: bool = False
    calls: int = 0


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    state = Upstream()

    async def answer(request: web.BaseRequest) -> web.Response:
        state.calls += 1
        return web.Response(status=503, text="busy") if state.broken else web.Response(text="ok")

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield state
    finally:
        await runner.cleanup()


@dataclass
class Clients:
    """Send GETs at a steady rate, whatever becomes of them."""

    url: str
    session: aiohttp.ClientSession
    seen: Counter[str] = field(default_factory=Counter)
    fast: list[float] = field(default_factory=list)
    """Seconds that the answers of an open breaker took."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def get(self) -> None:
        began = time.monotonic()
        async with self.session.get(self.url) as answer:
            content = await answer.read()
        kind = json.loads(content)["reason"] if "Proxy-Status" in answer.headers else str(answer.status)
        self.seen[kind] += 1
        if kind == "circuit_open":
            self.fast.append(time.monotonic() - began)
            assert answer.status == 503
            assert 1 <= int(answer.headers["Retry-After"]) <= 15

    async def call(self, rate: float, seconds: float) -> int:
        """Call for so many seconds; return how many requests that were, once all are answered."""
        began, made = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            for _ in range(int(rate * passed) - made):
                self.tasks.add(asyncio.create_task(self.get()))
                made += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*self.tasks)
        self.tasks.clear()
        return made


@pytest.mark.parametrize("rate", [RATE, 40.0])
async def test_ten_seconds_of_503(tmp_path: Path, outputs: Path, rate: float) -> None:
    """At most 1.2 calls for each request and ten; fast answers meanwhile; closed again within ten seconds."""
    log = outputs / f"burst-{rate:.0f}.log"
    async with upstream() as api, token_server() as issuer:
        data = configuration(api.url, issuer.url, tmp_path / "state")
        connector = aiohttp.TCPConnector(limit=0)
        async with start_sidecar(data, tmp_path, log) as running, aiohttp.ClientSession(connector=connector) as session:
            clients = Clients(f"http://{running.addresses['plm']}/", session)
            await clients.call(20.0, 1.0)
            assert set(clients.seen) == {"200"}

            api.broken, api.calls = True, 0
            clients.seen.clear()
            made = await clients.call(rate, BURST)
            calls, seen = api.calls, dict(clients.seen)
            fast = sorted(clients.fast)

            api.broken, recovered = False, time.monotonic()
            while time.monotonic() < recovered + BACK:
                clients.seen.clear()
                await clients.call(20.0, 0.2)
                if set(clients.seen) == {"200"}:
                    break
            closed = time.monotonic() - recovered
            clients.seen.clear()
            await clients.call(rate, 2.0)

    median = statistics.median(fast) * 1000
    print(f"{made} requests, {calls} calls, {seen}, median {median:.1f} ms, closed in {closed:.1f} s")
    assert calls <= 1.2 * made + FLOOR
    assert calls < made / 2  # it opened, and the upstream was spared
    assert seen["circuit_open"] > made / 2
    assert set(seen) == {"503", "circuit_open"}
    assert statistics.median(fast) < 0.05
    assert fast[int(len(fast) * 0.9)] < 0.05
    assert closed < BACK
    assert set(clients.seen) == {"200"}
