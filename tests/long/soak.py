"""Two sidecars on one Redis under random faults, as long as one likes: each answer is checked, each write counted.

`python -m tests.long.soak SECONDS [SEED]`. Real processes, real sockets, a real Redis; the faults are those of a bad
night, one after the other. Prints a line every ten seconds and a summary, and ends with 1 if anything was wrong:

- an answer that is neither the upstream's own, byte for byte, nor one that the sidecar owns up to;
- a POST that was executed twice though it was sent once, or is said to be done and is not;
- a request that the survivor broke off or never answered;
- memory or descriptors of the survivor that grow; a secret in a log; no service ten seconds after the last fault.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from sidecar.tokens.seal import new_key
from tests.canary import canary, leaks
from tests.long.scripted import Scripted, scripted
from tests.process import Running, start_sidecar
from tests.redis_servers import Server, free_port, server

CLIENTS = 12
GROWTH = 1.06
"""The last third may hold so much more than the middle one..."""
GROWTH_MIB = 6.0
"""... or so many MiB: what a garbage collector does between two looks."""
DESCRIPTORS = 40
LONGEST = 90.0
"""Seconds after which a request counts as never answered; the sidecar has 20."""
BACK = 10.0
REVOKE_SECONDS = 4.0
OWN = ("upstream_paused", "circuit_open", "token_unavailable", "upstream_unreachable", "upstream_timeout")


@dataclass
class Node:
    """One sidecar that is started, killed and started again, on the same ports."""

    name: str
    folder: Path
    log: Path
    data: dict[str, Any]
    running: Running | None = None
    killed_at: float = -1000.0
    _context: Any = None

    async def start(self) -> None:
        self._context = start_sidecar(self.data, self.folder, self.log)
        self.running = await self._context.__aenter__()

    async def kill(self) -> None:
        """End it at once, and start it again."""
        assert self.running is not None
        self.killed_at = time.monotonic()
        self.running.process.kill()
        await self.running.process.wait()
        await self._context.__aexit__(None, None, None)
        await self.start()
        self.killed_at = time.monotonic()

    async def stop(self) -> None:
        if self._context is not None:
            await self._context.__aexit__(None, None, None)

    def reload(self, chance: random.Random) -> None:
        """Change a setting that matters little, or break the file, and say so."""
        assert self.running is not None
        file = self.folder / "config.yaml"
        if chance.random() < 0.3:
            file.write_text("upstreams: [")
        else:
            data = json.loads(json.dumps(self.data))
            data["upstreams"]["plm"]["retry"] = {"base": f"{chance.randrange(50, 200)}ms"}
            file.write_text(json.dumps(data))
        os.kill(self.running.process.pid, signal.SIGHUP)

    def descriptors(self) -> int:
        assert self.running is not None
        return sum(1 for _ in Path(f"/proc/{self.running.process.pid}/fd").iterdir())


@dataclass
class Score:
    """What came of it all."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    writes: dict[str, int | None] = field(default_factory=dict)
    """The status that the client saw for each POST; None: it saw no answer."""
    faults: Counter[str] = field(default_factory=Counter)
    fault: str = "none"
    """The last one that began."""
    unauthorized: Counter[str] = field(default_factory=Counter)
    """401s that a client saw, by fault."""
    memory: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


def configuration(upstream: Scripted, redis: Server, folder: Path, name: str, ports: dict[str, int]) -> dict[str, Any]:
    """Return the configuration of the sidecar *name*."""
    return {
        "state_dir": str(folder / f"state-{name}"),
        "listen": {"proxy": f"127.0.0.1:{ports['proxy']}", "admin": f"127.0.0.1:{ports['admin']}"},
        "store": {"url": redis.url, "keys": [{"file": str(folder / "keys")}]},
        "upstreams": {
            "plm": {
                "base_url": upstream.url,
                "insecure_http": True,
                "listen": f"127.0.0.1:{ports['reverse']}",
                "oauth2": {
                    "token_url": f"{upstream.url}/token",
                    "client_id": "soak",
                    "client_secret": {"value": canary("soak")},
                },
                "renew": {"min_interval": "1s", "timeout": "5s"},
                "timeout": {"token": "20s", "connect": "2s", "first_byte": "4s", "idle": "8s"},
            }
        },
    }


async def client(number: int, nodes: list[Node], upstream: Scripted, score: Score, chance: random.Random) -> None:
    """Send one request after the other, through any of the ports, and check what comes."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LONGEST), auto_decompress=False) as session:
        session._retry_connection = False  # what is sent twice would be so by us
        for count in range(1 << 30):
            await asyncio.sleep(chance.expovariate(1 / 0.08))
            node = nodes[0] if chance.random() < 0.6 else nodes[1]
            await one_request(f"{number}-{count}", node, session, upstream, score, chance)


async def one_request(
    name: str, node: Node, session: aiohttp.ClientSession, upstream: Scripted, score: Score, chance: random.Random
) -> None:
    """Send a request that is like no other, and keep what became of it."""
    assert node.running is not None
    method = chance.choices(["GET", "POST", "PUT"], [6, 3, 1])[0]
    size = int(chance.choices([chance.random() * 2e3, chance.random() * 1e6], [20, 1])[0])
    body = chance.randbytes(int(chance.random() * 8e3)) if method != "GET" else None
    headers = {"X-Request": name, "Authorization": f"Bearer {canary('of-the-client')}"}
    path = f"/items/{name}?size={size}"
    began = time.monotonic()
    score.requests += 1
    if method == "POST":
        score.writes[name] = None
    try:
        # One way is a reverse port, the other the variable HTTP_PROXY.
        if chance.random() < 0.5:
            arguments: dict[str, Any] = {"url": f"http://{node.running.addresses['plm']}{path}"}
        else:
            arguments = {"url": f"{upstream.url}{path}", "proxy": f"http://{node.running.addresses['proxy']}"}
        async with session.request(method, data=body, headers=headers, **arguments) as answer:
            content = await answer.read()
    except TimeoutError:
        score.wrong.append(f"{name}: no answer within {LONGEST} s")
        return
    except (aiohttp.ClientError, OSError) as error:
        died = node.killed_at > began - 1 or node.running.process.returncode is not None
        if not died and not upstream.broke_off(name):
            score.wrong.append(f"{name}: broken off by {node.name}, which lives: {error!r}")
        score.statuses["died" if died else "broken off"] += 1
        return
    if method == "POST":
        score.writes[name] = answer.status
    if "Proxy-Status" in answer.headers:
        reason = json.loads(content)["reason"]
        score.statuses[reason] += 1
        if reason not in OWN:
            score.wrong.append(f"{name}: {method} was answered with {answer.status} {reason}")
        return
    score.statuses[str(answer.status)] += 1
    if answer.status == 401:
        score.unauthorized[score.fault] += 1
    seen = (answer.status, hashlib.sha256(content).hexdigest())
    if seen not in upstream.complete(name):
        score.wrong.append(f"{name}: {method} got {seen}, the upstream sent {upstream.complete(name)}")
    if body is not None and answer.status == 200 and answer.headers["X-Body"] != hashlib.sha256(body).hexdigest():
        score.wrong.append(f"{name}: the upstream got another body")


@dataclass
class Trouble:
    """Makes the faults, one after the other."""

    nodes: list[Node]
    upstream: Scripted
    redis: Server
    chance: random.Random
    score: Score
    revoked_at: float = -1000.0

    async def go_on(self, until: float) -> None:
        """Do one fault after the other; the last ends before *until*."""
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "revoked": self.revoked,
            "issuer down": self.issuer_down,
            "issuer slow": self.issuer_slow,
            "redis killed": self.redis_killed,
            "redis frozen": self.redis_frozen,
            "sidecar killed": self.nodes[1].kill,
            "reloaded": self.reloaded,
            "503s": self.unavailable,
            "only 503s": self.unserved,
            "429s": self.throttled,
            "resets": self.resets,
            "slow bodies": self.slow,
            "hangs": self.hangs,
        }
        bag: list[str] = []
        while time.monotonic() < until - 15:
            if not bag:
                bag = self.chance.sample(sorted(kinds), len(kinds))
            kind = bag.pop()
            self.score.faults[kind] += 1
            self.score.fault = kind
            await kinds[kind]()
            await asyncio.sleep(self.chance.uniform(0.2, 2.5))
        await asyncio.sleep(max(0.0, until - time.monotonic()))

    def moment(self) -> float:
        return self.chance.uniform(0.5, 3.0)

    async def revoked(self) -> None:
        """Revoke all tokens, but not within `renew.min_interval` of the last time: then a 401 is passed on."""
        await asyncio.sleep(max(0.0, self.revoked_at + REVOKE_SECONDS - time.monotonic()))
        self.upstream.revoke()
        self.revoked_at = time.monotonic()

    async def _while(self, attribute: str, value: Any, seconds: float) -> None:
        before = getattr(self.upstream, attribute)
        setattr(self.upstream, attribute, value)
        await asyncio.sleep(seconds)
        setattr(self.upstream, attribute, before)

    async def issuer_down(self) -> None:
        await self.revoked()
        await self._while("issuer", self.chance.choice(["503", "drop", "garbage", "429"]), self.moment())

    async def issuer_slow(self) -> None:
        await self.revoked()
        await self._while("issuer", "slow", self.moment())

    async def redis_killed(self) -> None:
        await asyncio.to_thread(self.redis.kill)
        await asyncio.sleep(self.moment())
        await self.revoked()
        await asyncio.sleep(self.moment())
        await asyncio.to_thread(self.redis.start)

    async def redis_frozen(self) -> None:
        self.redis.freeze()
        try:
            await asyncio.sleep(self.moment())
            await self.revoked()
            await asyncio.sleep(self.moment())
        finally:
            self.redis.thaw()

    async def reloaded(self) -> None:
        for node in self.nodes:
            node.reload(self.chance)

    async def unavailable(self) -> None:
        await self._while("rates", {"503": 0.3}, self.moment())

    async def unserved(self) -> None:
        """Long enough for the breaker to open."""
        self.upstream.pausing = 0.0
        await self._while("rates", {"503": 0.97}, self.chance.uniform(5.0, 9.0))
        self.upstream.pausing = 0.5

    async def throttled(self) -> None:
        await self._while("rates", {"429": 0.2}, self.moment())

    async def resets(self) -> None:
        await self._while("rates", {"before": 0.1, "executed": 0.1, "headers": 0.1, "middle": 0.1}, self.moment())

    async def slow(self) -> None:
        await self._while("rates", {"slow": 0.5}, self.moment())

    async def hangs(self) -> None:
        await self._while("rates", {"hang": 0.05}, self.moment())


async def watch(node: Node, score: Score) -> None:
    """Look at the survivor once a second, and say how it goes every ten."""
    for second in range(1 << 30):
        assert node.running is not None
        score.memory.append(node.running.resident())
        score.descriptors.append(node.descriptors())
        if second % 10 == 9:
            print(
                f"{second + 1:5} s  {score.requests} requests  {len(score.wrong)} wrong  "
                f"{score.memory[-1]:.0f} MiB  {score.descriptors[-1]} descriptors",
                flush=True,
            )
        await asyncio.sleep(1)


def third(values: list[Any], which: int) -> float:
    """Return the median of the middle (1) or the last (2) third."""
    size = max(1, len(values) // 3)
    return float(statistics.median(values[which * size : (which + 1) * size] or [0]))


async def soak(seconds: float, seed: int, folder: Path, outputs: Path) -> tuple[Score, list[str]]:
    """Run for *seconds*; return the score and what was wrong."""
    chance, score = random.Random(seed), Score()
    keys = folder / "keys"
    keys.write_text(new_key())
    keys.chmod(0o600)
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted(random.Random(seed + 1)))
        redis = stack.enter_context(server(folder, outputs / "redis.log"))
        nodes = []
        for name in ("survivor", "victim"):
            ports = {each: free_port() for each in ("proxy", "admin", "reverse")}
            data = configuration(upstream, redis, folder, name, ports)
            node = Node(name, folder / name, outputs / f"{name}.log", data)
            await node.start()
            stack.push_async_callback(node.stop)
            nodes.append(node)
        until = time.monotonic() + seconds
        trouble = Trouble(nodes, upstream, redis, random.Random(seed + 2), score)
        watching = asyncio.create_task(watch(nodes[0], score))
        clients = [
            asyncio.create_task(client(number, nodes, upstream, score, random.Random(chance.random())))
            for number in range(CLIENTS)
        ]
        try:
            faults = asyncio.create_task(trouble.go_on(until))
            await asyncio.wait({faults, watching, *clients}, return_when=asyncio.FIRST_COMPLETED)
            faults.result()
        finally:
            for task in (*clients, watching):
                task.cancel()
            await asyncio.gather(*clients, watching, return_exceptions=True)
        problems = list(score.wrong)
        problems += await after_all(nodes, upstream)
        problems += verdicts(score, upstream, seconds)
    problems += [f"a secret was logged: {place}" for place in leaks(outputs)]
    return score, problems


async def after_all(nodes: list[Node], upstream: Scripted) -> list[str]:
    """Return what still fails when everything is well again for ten seconds."""
    upstream.heal()
    await asyncio.sleep(BACK)
    problems = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        for node in nodes:
            assert node.running is not None
            for number in range(50):
                url = f"http://{node.running.addresses['plm']}/items/last-{node.name}-{number}?size=10"
                async with session.get(url, headers={"X-Request": f"last-{node.name}-{number}"}) as answer:
                    if answer.status != 200:
                        problems.append(f"{node.name}: {answer.status} {await answer.text()} after all was well again")
    return problems


def verdicts(score: Score, upstream: Scripted, seconds: float) -> list[str]:
    """Return what is wrong with the whole."""
    problems = [f"POST {name} was executed {upstream.executed[name]} times" for name in upstream.twice(score.writes)]
    problems += [
        f"POST {name} got {status} and was not executed"
        for name, status in score.writes.items()
        if status == 200 and not upstream.executed[name]
    ]
    if upstream.foreign:
        problems.append(f"{upstream.foreign} requests came with a credential that was not the sidecar's")
    middle, last = third(score.memory, 1), third(score.memory, 2)
    if last > middle * GROWTH + GROWTH_MIB:
        problems.append(f"memory grew from {middle:.0f} to {last:.0f} MiB")
    if third(score.descriptors, 2) > third(score.descriptors, 1) + DESCRIPTORS:
        problems.append(f"descriptors grew to {third(score.descriptors, 2):.0f}")
    # A fifth of the requests, or ten in ten seconds, for each of two processes; what a 401 causes is not counted.
    allowed = 1.2 * score.requests + 2 * (seconds + 20)
    if upstream.attempts - upstream.unauthorized > allowed:
        problems.append(f"{upstream.attempts} attempts for {score.requests} requests")
    # One shows when the issuer is down for longer than a refused request waits, `renew.timeout`.
    if score.statuses["401"] > 0.01 * score.requests:
        problems.append(f"{score.statuses['401']} clients saw a 401: {dict(score.unauthorized)}")
    if not score.requests or score.statuses["200"] < score.requests / 2:
        problems.append(f"too little was answered: {dict(score.statuses)}")
    return problems


def summary(score: Score, seconds: float, seed: int, problems: list[str]) -> str:
    """Return the line that says it all."""
    twice = sum("was executed" in problem for problem in problems)
    return (
        f"soak: {seconds:.0f} s, seed {seed}, {score.requests} requests, {len(score.wrong)} wrong answers, "
        f"{twice} duplicated writes of {len(score.writes)}, memory {third(score.memory, 1):.0f} -> "
        f"{third(score.memory, 2):.0f} MiB, descriptors {third(score.descriptors, 1):.0f} -> "
        f"{third(score.descriptors, 2):.0f}, faults {dict(score.faults)}, answers {dict(score.statuses)}, "
        f"401s by fault {dict(score.unauthorized)}"
    )


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1200.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, outputs = Path(name), Path(name) / "outputs"
        outputs.mkdir()
        score, problems = asyncio.run(soak(seconds, seed, folder, outputs))
    for problem in problems[:50]:
        print(f"WRONG: {problem}")
    print(summary(score, seconds, seed, problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
