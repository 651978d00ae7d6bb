"""Sidecars of one credential as processes: started at once, killed, frozen, without their Redis; one token for all."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.emulator import Emulator, Switches
from sidecar.tokens.seal import new_key
from tests.canary import NEEDLES
from tests.fleet import Relay, by_password, by_refresh_token, relay, upstream
from tests.integration.oidc.provider import REDIRECT_URI, log_in
from tests.integration.oidc.provider import running as oidc_provider
from tests.process import Running, start_sidecar
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import PATIENCE, eventually, until

__all__ = ["redis_of_session", "redis_server"]

TTL = 10.0
USER = {
    "client_id": "user",
    "client_secret": "CANARY-user",
    "grant_types": ["authorization_code", "refresh_token"],
    "redirect_uris": [REDIRECT_URI],
    "response_types": ["code"],
}


@pytest.fixture
async def plm() -> AsyncIterator[Emulator]:
    switches = Switches(lifetime=600, supplier_lifetime=None, rotate_refresh=True)
    async with Emulator.start(switches=switches, tls=False) as made:
        yield made


@dataclass
class Site:
    """Where the sidecars of one test live: their folder, their store, and what they are set up for."""

    folder: Path
    outputs: Path
    store: dict[str, Any]
    upstreams: dict[str, dict[str, Any]]
    shared_state: bool = False

    def data(self, name: str) -> dict[str, Any]:
        """Return the configuration of the sidecar *name*."""
        return {
            "state_dir": str(self.folder / ("state" if self.shared_state else f"state-{name}")),
            "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "store": self.store,
            "upstreams": self.upstreams,
        }

    def start(self, name: str) -> contextlib.AbstractAsyncContextManager[Running]:
        return start_sidecar(self.data(name), self.folder / name, self.outputs / f"{self.folder.name}-{name}.log")

    def admin_token(self, name: str) -> str:
        return (Path(self.data(name)["state_dir"]) / "admin.token").read_text().strip()

    async def show(self, name: str) -> dict[str, Any]:
        """Return what `token show --json` says beside the sidecar *name*."""
        command = (sys.executable, "-m", "sidecar", "token", "show", "--json", "-c", "config.yaml")
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.folder / name, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors
        states: dict[str, Any] = json.loads(output)
        return states


def plain(base_url: str, token_url: str, oauth2: dict[str, Any], **renew: Any) -> dict[str, Any]:
    """Return the settings of one upstream with a reverse port."""
    return {
        "base_url": base_url,
        "insecure_http": True,
        "listen": "127.0.0.1:0",
        "oauth2": {"token_url": token_url, **oauth2},
        "renew": {"min_interval": "1s", **renew},
    }


def in_redis(redis: Server, folder: Path) -> dict[str, Any]:
    """Return the settings of the store, whose time-out is for a machine that runs many tests at once."""
    keys = folder / "keys"
    keys.write_text(new_key())
    keys.chmod(0o600)
    return {"url": redis.url, "timeout": "10s", "keys": [{"file": str(keys)}]}


async def generations(site: Site, name: str) -> list[int]:
    """Return which token each instance uses, as `token show` says beside the sidecar *name*."""
    return list((await site.show(name))["plm"]["instances"].values())


async def get(sidecar: Running, name: str = "plm") -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=70) as client:
        return (await client.get(f"http://{sidecar.addresses[name]}/echo/x")).status_code


async def state(sidecar: Running, name: str = "plm") -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        answer = (await client.get(f"http://{sidecar.addresses['admin']}/status")).json()
    found: dict[str, Any] = answer["upstreams"][name]
    return found


async def renew(site: Site, sidecar: Running, process_name: str, name: str) -> None:
    """Have an operator's renewal made; that its sidecar dies meanwhile is no error."""
    headers = {"Authorization": f"Bearer {site.admin_token(process_name)}"}
    with contextlib.suppress(httpx.TransportError):
        async with httpx.AsyncClient(trust_env=False, timeout=70) as client:
            await client.post(f"http://{sidecar.addresses['admin']}/upstreams/{name}/renew", headers=headers)


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_two_that_start_at_once_make_one_call(
    redis_server: Server, plm: Emulator, tmp_path: Path, outputs: Path, kind: str
) -> None:
    """On an empty store; then 200 requests at once meet a revoked token: one call more, each is executed once.

    What the store holds shows neither a secret nor the client, and `token show` knows both instances.
    """
    plm.switches.token_delay = 0.5
    store = in_redis(redis_server, tmp_path) if kind == "redis" else {"url": "sqlite"}
    settings = plain(plm.base_url, plm.token_url, by_password(plm))
    site = Site(tmp_path, outputs, store, {"plm": settings}, shared_state=kind == "sqlite")
    async with contextlib.AsyncExitStack() as stack:
        first, second = await asyncio.gather(*(stack.enter_async_context(site.start(name)) for name in ("a", "b")))
        assert {await get(first), await get(second)} == {200}
        assert plm.counters.token_calls.total() == 1

        plm.switches.api_delay = 0.02
        limits = httpx.Limits(max_connections=60)
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=60, limits=limits))

        async def post(number: int) -> int:
            sidecar = (first, second)[number % 2]
            url = f"http://{sidecar.addresses['plm']}/echo/jobs"
            answer = await client.post(url, headers={"X-Job-Id": str(number)}, content=b"x" * 1000)
            return answer.status_code

        posts = [asyncio.create_task(post(number)) for number in range(200)]
        await until(lambda: plm.counters.jobs.total() >= 60, "the middle")
        plm.revoke_all()
        assert set(await asyncio.gather(*posts)) == {200}
        assert plm.counters.token_calls.total() == 2
        assert plm.counters.jobs == {str(number): 1 for number in range(200)}

        # Each leaves word every ten seconds; at the start it had none, or the first token.
        shown = (await site.show("a"))["plm"]
        assert len(shown["instances"]) == 2
        assert shown["generation"] == 3
        assert shown["renewed_by"] in shown["instances"]
        if kind == "redis":
            await eventually(lambda: generations(site, "b"), [3, 3])

    if kind == "redis":
        redis_server.command("CONFIG", "SET", "rdbcompression", "no")
        redis_server.command("SAVE")
        files = list(redis_server.folder.rglob("dump.rdb"))
        names = redis_server.command("KEYS", "*")
        assert names
        assert all(b"demo client" not in name and b"svc@" not in name for name in names)
    else:
        files = list((tmp_path / "state").glob("store.db*"))
    content = b"".join(file.read_bytes() for file in files)
    assert b"auth-sidecar" in content
    assert not any(needle in content for needle in (*NEEDLES, b"demo client", b"svc@example.com", b"access_token"))


@dataclass
class Scenario:
    """One upstream, its token endpoint, and what befalls the call during which its holder ends."""

    name: str
    issuer: Relay
    fate: str | float


async def test_refresh_tokens_through_the_death_of_a_holder(
    redis_server: Server, plm: Emulator, tmp_path: Path, outputs: Path
) -> None:
    """Killed before, during and after its call: no refresh token is presented twice, and tokens serve to their end.

    Where no other grant is left a person is asked for, who may have it tried: that succeeds if the issuer never saw it.
    """
    plm.switches.lifetime = 32
    clients = json.loads(json.dumps([USER]))
    async with contextlib.AsyncExitStack() as stack:
        strict = stack.enter_context(oidc_provider(clients, tmp_path / "oidc.log"))
        api = await stack.enter_async_context(upstream())
        scenarios, settings = [], {}
        fates: dict[str, str | float] = {
            "user_before": "unreached",
            "user_during": "unanswered",
            "user_after": 0.0,
            "bound_before": "unreached",
            "bound_during": "unanswered",
            "oidc_during": "unanswered",
            "oidc_after": 0.0,
        }
        for name, fate in fates.items():
            target = f"{strict}/token" if name.startswith("oidc") else plm.token_url
            issuer = await stack.enter_async_context(relay(target))
            if name.startswith("oidc"):
                first = (await log_in(strict, "user", "CANARY-user"))["refresh_token"]
                oauth2: dict[str, Any] = {"grant": "refresh_token", "client_id": "user"}
                oauth2 |= {"client_secret": {"value": "CANARY-user"}, "refresh_token": {"value": first}}
            else:
                oauth2 = by_password(plm) if name.startswith("user") else await by_refresh_token(plm)
            settings[name] = plain(f"{api.url}/{name}", issuer.url, oauth2)
            scenarios.append(Scenario(name, issuer, fate))
        site = Site(tmp_path, outputs, in_redis(redis_server, tmp_path), settings)
        victim, survivor = await asyncio.gather(*(stack.enter_async_context(site.start(name)) for name in ("a", "b")))
        for sidecar in (victim, survivor):
            assert {await get(sidecar, each.name) for each in scenarios} == {200}
        assert {len(each.issuer.grants) for each in scenarios} == {1}

        numbers = {each.name: await _generation(victim, each.name) for each in scenarios}
        for each in scenarios:
            each.issuer.fates = [each.fate]
        renewing = [asyncio.create_task(renew(site, victim, "a", each.name)) for each in scenarios]
        await until(lambda: all(each.issuer.arrived == 2 for each in scenarios), "the calls")
        done = {each.name: numbers[each.name] for each in scenarios if each.fate == 0.0}
        for name, number in done.items():
            await eventually(lambda n=name, g=number: _is_above(victim, n, g), True)  # type: ignore[misc]
        victim.process.kill()
        await victim.process.wait()
        killed = time.monotonic()
        await asyncio.gather(*renewing)

        # The tokens at hand go on; what was revoked is replaced, by another grant or by the victim's last token.
        assert {await get(survivor, each.name) for each in scenarios} == {200}
        for each in scenarios:
            if each.name.startswith("user") or each.name.endswith("after"):
                api.revoke(each.name)
        revoked = [each for each in scenarios if each.name.startswith("user") or each.name.endswith("after")]
        await asyncio.gather(*(eventually(lambda n=e.name: get(survivor, n), 200) for e in revoked))  # type: ignore[misc]
        assert time.monotonic() - killed < TTL + 20
        assert {each.name: each.issuer.reused for each in scenarios} == {each.name: [] for each in scenarios}

        # In the end a person is asked for, and may have the last refresh token tried.
        doubtful = {
            each.name: each for each in scenarios if each.name in ("bound_before", "bound_during", "oidc_during")
        }
        for name, each in doubtful.items():
            await eventually(lambda n=name: get(survivor, n), 502)  # type: ignore[misc]
            rejected = [
                event
                for event in survivor.log_events("renewal")
                if event["upstream"] == name and event["result"] == "rejected"
            ]
            assert len(rejected) == 1
            assert "presented the refresh token and was cut off" in rejected[0]["detail"]
            assert each.issuer.reused == []
            await renew(site, survivor, "b", name)
        assert {name: await get(survivor, name) for name in doubtful} == {
            "bound_before": 200,
            "bound_during": 502,
            "oidc_during": 502,
        }
        assert doubtful["bound_before"].issuer.reused == []
        # The first is the configured one, the second the victim's; later ones are of later renewals.
        assert {name: list(each.issuer.presented.values())[:2] for name, each in doubtful.items()} == {
            "bound_before": [1, 1],
            "bound_during": [1, 2],
            "oidc_during": [1, 2],
        }


async def _is_above(sidecar: Running, name: str, number: int) -> bool:
    return await _generation(sidecar, name) > number


async def _generation(sidecar: Running, name: str) -> int:
    return int((await state(sidecar, name))["generation"])


async def test_refresh_tokens_through_frozen_holders_and_slow_issuers(
    redis_server: Server, plm: Emulator, tmp_path: Path, outputs: Path
) -> None:
    """A holder that sleeps beyond its lease finds its late answer refused, or taken where nobody could do better.

    Meanwhile an issuer takes longer than a lease lasts, and nobody asks it a second time.
    """
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(upstream())
        issuers = {name: await stack.enter_async_context(relay(plm.token_url)) for name in ("user", "bound", "slow")}
        grants = {"user": by_password(plm), "bound": await by_refresh_token(plm), "slow": await by_refresh_token(plm)}
        settings = {
            name: plain(f"{api.url}/{name}", issuer.url, grants[name], timeout="60s", check_every="1s")
            for name, issuer in issuers.items()
        }
        site = Site(tmp_path, outputs, in_redis(redis_server, tmp_path), settings)
        frozen, holder, waiter = await asyncio.gather(
            *(stack.enter_async_context(site.start(name)) for name in ("a", "b", "c"))
        )
        for sidecar in (frozen, holder, waiter):
            assert {await get(sidecar, name) for name in issuers} == {200}
        answered = {name: asyncio.Event() for name in issuers}
        for name, issuer in issuers.items():
            issuer.fates = [answered[name]]
        tasks = [asyncio.create_task(renew(site, frozen, "a", name)) for name in ("user", "bound")]
        tasks.append(asyncio.create_task(renew(site, holder, "b", "slow")))
        await until(lambda: all(issuer.arrived == 2 for issuer in issuers.values()), "the calls")
        asleep = time.monotonic()
        frozen.process.send_signal(signal.SIGSTOP)
        answered["user"].set()
        answered["bound"].set()
        api.revoke("user")
        api.revoke("slow")
        waiting = asyncio.create_task(get(waiter, "slow"))
        try:
            await eventually(lambda: get(holder, "user"), 200)
            assert (await state(holder, "user"))["generation"] == 3
            assert await get(waiter, "bound") == 200
            # As long as a lease lasts, and longer.
            await asyncio.sleep(max(0.0, asleep + TTL + 3 - time.monotonic()))
        finally:
            answered["slow"].set()
            frozen.process.send_signal(signal.SIGCONT)
        assert await waiting == 200
        await asyncio.gather(*tasks)
        for name in issuers:
            await asyncio.gather(
                *(
                    eventually(lambda s=s, n=name: _generation(s, n), 3 if name == "user" else 4)  # type: ignore[misc]
                    for s in (frozen, holder, waiter)
                )
            )
            assert await get(frozen, name) == 200

        assert {name: issuer.reused for name, issuer in issuers.items()} == {name: [] for name in issuers}
        assert issuers["user"].grants == ["password", "refresh_token", "password"]
        assert issuers["bound"].grants == issuers["slow"].grants == ["refresh_token"] * 2
        by = {name: {(await state(s, name))["renewed_by"] for s in (frozen, holder, waiter)} for name in issuers}
        assert {len(names) for names in by.values()} == {1}
        assert by["user"] != by["bound"]


async def test_steady_load_does_not_notice_that_redis_dies(
    redis_server: Server, plm: Emulator, tmp_path: Path, outputs: Path
) -> None:
    """No request fails or waits for it; back and empty, Redis has the token again, for a newcomer too."""
    settings = plain(plm.base_url, plm.token_url, by_password(plm), check_every="1s")
    site = Site(tmp_path, outputs, in_redis(redis_server, tmp_path), {"plm": settings})
    async with contextlib.AsyncExitStack() as stack:
        sidecars = await asyncio.gather(*(stack.enter_async_context(site.start(name)) for name in ("a", "b")))
        times: dict[str, list[float]] = {"before": [], "dead": [], "back": []}
        phase = "before"
        ended = asyncio.Event()

        async def load(sidecar: Running) -> None:
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
                while not ended.is_set():
                    began, now = time.monotonic(), phase
                    answer = await client.get(f"http://{sidecar.addresses['plm']}/echo/x")
                    assert answer.status_code == 200, answer.text
                    times[now].append(time.monotonic() - began)
                    await asyncio.sleep(0.02)

        def told(sidecar: Running) -> bool:
            return any("token store" in event["where"] for event in sidecar.log_events("trouble"))

        loads = [asyncio.create_task(load(sidecar)) for sidecar in sidecars for _ in range(3)]
        await until(lambda: len(times["before"]) > 50, "the load")
        await asyncio.to_thread(redis_server.kill)
        phase = "dead"
        await until(lambda: len(times["dead"]) > 50 and all(map(told, sidecars)), "the load without Redis")
        await asyncio.to_thread(redis_server.start)
        phase = "back"
        await until(lambda: redis_server.command("KEYS", "auth-sidecar:token:*"), "the token in Redis")
        newcomer = await stack.enter_async_context(site.start("c"))
        assert await get(newcomer) == 200
        ended.set()
        await asyncio.gather(*loads)

        assert plm.counters.token_calls.total() == 1
        assert max(map(max, times.values())) < 10  # `store.timeout`

        # Killed, and with another key in front: the next start still finds the token.
        newcomer.process.kill()
        await newcomer.process.wait()
        keys = tmp_path / "keys"
        keys.write_text(f"{new_key()}\n{keys.read_text()}")
        again = await stack.enter_async_context(site.start("d"))
        assert await get(again) == 200
        assert plm.counters.token_calls.total() == 1
