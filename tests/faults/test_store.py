"""Redis in trouble: what the script sees, who asks the token endpoint, and what is there when it is back."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import trustme

from sidecar.clock import SystemClock
from sidecar.emulator import Emulator, Switches
from sidecar.run.credentials import credentials
from sidecar.secret import Secret
from sidecar.tokens.seal import KeyRing, new_key
from sidecar.tokens.store import store_key
from tests.canary import canary
from tests.faults.instances import Instances, generation, get, instances, plain, reasons, statuses
from tests.faults.issuers import granting, issuer
from tests.faults.site import metric, state
from tests.fleet import Upstream, by_password, by_refresh_token, fleet, relay, upstream
from tests.process import Running
from tests.redis_servers import Server, server, watched
from tests.waiting import eventually, until

__all__ = ["instances"]


@pytest.fixture
async def plm() -> AsyncIterator[Emulator]:
    """An issuer whose refresh tokens are taken once."""
    switches = Switches(lifetime=600, supplier_lifetime=None, rotate_refresh=True)
    async with Emulator.start(switches=switches, tls=False) as made:
        yield made


@pytest.fixture
async def api() -> AsyncIterator[Upstream]:
    """An upstream that takes every token but those that were revoked."""
    async with upstream() as made:
        yield made


@pytest.fixture
def redis(instances: Instances) -> Iterator[Server]:
    """A Redis of this test's own, where the tokens are kept."""
    with server(instances.folder, instances.outputs / f"{instances.name}-redis.log") as made:
        instances.in_redis(made)
        yield made


def by_client(plm: Emulator) -> dict[str, Any]:
    """Return the settings for the grant client_credentials, which gives a token to whoever asks."""
    return {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}}


async def one_token(pair: tuple[Running, ...], name: str = "plm") -> dict[str, Any]:
    """Wait until all use the same token, and return its state."""

    async def used() -> tuple[int, bool]:
        found = [await state(each, name) for each in pair]
        return len({(one["generation"], one["renewed_by"]) for one in found}), found[0]["usable"]

    await eventually(used, (1, True))
    return await state(pair[0], name)


async def status(sidecar: Running, name: str = "plm") -> int:
    return (await get(sidecar, name)).status_code


def calls(plm: Emulator) -> int:
    return plm.counters.token_calls.total()


@contextlib.asynccontextmanager
async def under_load(*sidecars: Running, name: str = "plm") -> AsyncIterator[list[float]]:
    """Ask each of them without a pause; every answer must be 200, and the list gets how long each took."""
    times: list[float] = []
    ended = asyncio.Event()

    async def ask(sidecar: Running) -> None:
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as client:
            while not ended.is_set():
                began = time.monotonic()
                answer = await client.get(f"http://{sidecar.addresses[name]}/echo/x")
                assert answer.status_code == 200, answer.text
                times.append(time.monotonic() - began)
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        for sidecar in sidecars:
            group.create_task(ask(sidecar))
        try:
            yield times
        finally:
            ended.set()


# It is not there.


async def test_flt_rd_01_without_redis_each_starts_alone(instances: Instances, plm: Emulator, redis: Server) -> None:
    """Every instance starts, is ready and gets a token of its own; when Redis is up all take over one of them, and
    nobody asks again."""
    redis.kill()
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, by_client(plm))
    async with instances.pair() as pair:
        assert {await status(each) for each in pair} == {200}
        assert [await reasons(each) for each in pair] == [{}, {}]
        assert calls(plm) == 2
        assert await metric(pair[0], "auth_sidecar_store_errors_total") >= 1

        redis.start()
        await one_token(pair)
        assert redis.command("KEYS", "auth-sidecar:token:*")
        async with instances.start("c") as third:
            assert await status(third) == 200
        assert calls(plm) == 2


async def test_flt_rd_02_memory_outlives_redis(instances: Instances, plm: Emulator, redis: Server) -> None:
    """No request fails; the newest token, also one got meanwhile, is in the empty Redis soon after it is back, and
    nobody asks again."""
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, by_client(plm))
    async with instances.pair() as pair, under_load(*pair):
        assert (await one_token(pair))["generation"] == 1
        redis.kill()
        assert await instances.renew(pair[0]) == 200
        assert await instances.renew(pair[0]) == 200
        redis.start()
        assert (await one_token(pair))["generation"] == 3
        (key,) = redis.command("KEYS", "auth-sidecar:token:*")
        assert redis.command("HGET", key, "generation") == b"3"
        assert calls(plm) == 3


# It fails, or says nothing.


async def test_flt_rd_03_without_the_lease_a_refresh_token_waits(
    instances: Instances, plm: Emulator, api: Upstream, redis: Server
) -> None:
    """With a grant that starts anew each instance renews alone; a refresh token is not used without the lease: its
    access token serves to the end, then requests get 503 `token_unavailable` until Redis gives leases again."""
    plm.switches.lifetime = 5
    async with contextlib.AsyncExitStack() as stack:
        grants = {"free": by_client(plm), "bound": await by_refresh_token(plm)}
        relays = {name: await stack.enter_async_context(relay(plm.token_url)) for name in grants}
        for name, each in relays.items():
            url = f"{api.url}/{name}"
            instances.upstreams[name] = plain(url, each.url, grants[name], renew={"margin": "2.5s"})
        sidecar = await stack.enter_async_context(instances.start())
        assert await statuses(sidecar, "free", "bound") == {200}
        redis.command("ACL", "SETUSER", "default", "resetkeys", "~auth-sidecar:token:*")

        api.revoke("free")
        assert await status(sidecar, "free") == 200
        assert relays["free"].grants == ["client_credentials"] * 2
        await eventually(lambda: status(sidecar, "bound"), 503)
        assert relays["bound"].grants == ["refresh_token"]
        first, *kept = [each for each in sidecar.log_events("renewal") if each["upstream"] == "bound"]
        assert first["result"] == "ok"
        assert kept
        assert all("nothing is asked of the issuer without the store" in each["detail"] for each in kept)
        redis.command("ACL", "SETUSER", "default", "allkeys")
        await eventually(lambda: status(sidecar, "bound"), 200)
        assert relays["bound"].reused == []


async def test_flt_rd_04_slow_redis_holds_up_no_request(instances: Instances, plm: Emulator, redis: Server) -> None:
    """Requests with a token never wait for it, a 401 still gets a new token, and each failure is counted."""
    instances.in_redis(redis, "100ms")
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, by_client(plm), renew={"check_every": "200ms"})
    async with instances.start() as sidecar:
        async with under_load(sidecar) as times:
            await until(lambda: len(times) > 10, "the load")
            redis.command("CLIENT", "PAUSE", "30000")
            await eventually(lambda: failing(sidecar), True)
            plm.revoke_all()
            await until(lambda: calls(plm) == 2, "the renewal")
            seen = len(times)
            await until(lambda: len(times) > seen + 10, "the load")
        assert max(times) < 15
        assert await reasons(sidecar) == {}


async def failing(sidecar: Running) -> bool:
    return await metric(sidecar, "auth_sidecar_store_errors_total") >= 1


@contextlib.asynccontextmanager
async def wire(target: Server) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Give the URL of a line to *target*, and what to set so that it swallows everything, as a broken network does."""
    cut, closing = asyncio.Event(), asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if cut.is_set():
                    await closing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if cut.is_set():
            await closing.wait()
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target.port)
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    line = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{line.sockets[0].getsockname()[1]}", cut
    finally:
        closing.set()
        line.close()


async def test_flt_rd_05_cut_off_instance_goes_on_alone(instances: Instances, plm: Emulator, redis: Server) -> None:
    """Its requests do not wait and its renewals are its own, the others do not notice, and once it is connected again
    all use one token."""
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, by_client(plm))
    async with contextlib.AsyncExitStack() as stack:
        line, cut = await stack.enter_async_context(wire(redis))
        other = await stack.enter_async_context(instances.start("b"))
        instances.store = {**instances.store, "url": line, "timeout": "500ms"}
        lonely = await stack.enter_async_context(instances.start("a"))
        times = await stack.enter_async_context(under_load(lonely, other))
        await one_token((lonely, other))
        assert calls(plm) == 1
        cut.set()
        plm.revoke_all()
        await eventually(lambda: generation(lonely), 2)
        await eventually(lambda: generation(other), 2)
        assert await failing(lonely)
        assert not await failing(other)
        assert calls(plm) == 3
        cut.clear()
        await one_token((lonely, other))
        assert calls(plm) == 3
        assert max(times) < 10


# Another server takes its place, or none.


async def test_flt_rd_06_failover_in_a_renewal_costs_no_second_call(
    instances: Instances, plm: Emulator, api: Upstream
) -> None:
    """The answer is stored at the new master, all take it from there, and a rotating refresh token is used once."""
    log = instances.outputs / f"{instances.name}-redis.log"
    with watched(instances.folder, log) as servers:
        instances.in_redis(servers.url)
        async with relay(plm.token_url) as slow:
            oauth2 = await by_refresh_token(plm)
            instances.upstreams["plm"] = plain(api.url, slow.url, oauth2, renew={"timeout": "20s"})
            async with instances.pair() as pair, under_load(*pair):
                await one_token(pair)
                slow.fates = [3.5]
                renewing = asyncio.create_task(instances.renew(pair[0]))
                await until(lambda: slow.arrived == 2, "the call")
                await asyncio.to_thread(servers.fail_over, kill=True)
                assert await renewing == 200
                assert (await one_token(pair))["generation"] == 4
                master = servers.master()
                (key,) = master.command("KEYS", "auth-sidecar:token:*")
                assert master.command("HGET", key, "generation") == b"4"
            assert slow.grants == ["refresh_token"] * 2
            assert slow.reused == []


async def test_flt_rd_07_replica_is_read_from(instances: Instances, plm: Emulator, redis: Server) -> None:
    """Tokens are taken from it, also by an instance that starts, a 401 still gets a new one, and that is written as
    soon as a master is there."""
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, by_client(plm))
    async with instances.start("a") as first:
        assert await status(first) == 200
        redis.command("REPLICAOF", "127.0.0.1", "9")
        async with instances.start("b") as second:
            assert await status(second) == 200
            assert calls(plm) == 1
            plm.revoke_all()
            assert await status(first) == 200
            assert calls(plm) == 2
            (key,) = redis.command("KEYS", "auth-sidecar:token:*")
            assert redis.command("HGET", key, "generation") == b"1"
            assert "read-only replica" in str(first.log_events("trouble"))

            redis.command("REPLICAOF", "NO", "ONE")
            assert (await one_token((first, second)))["generation"] == 2
            assert {await status(first), await status(second)} == {200}
            assert calls(plm) == 2


# The instances differ.


async def test_flt_rd_08_frozen_holder_finds_itself_overtaken(
    instances: Instances, plm: Emulator, api: Upstream, redis: Server
) -> None:
    """Another instance takes over when the lease has run out, and the one that wakes up drops its late answer for the
    newer token."""
    async with relay(plm.token_url) as endpoint:
        oauth2 = by_password(plm)
        instances.upstreams["plm"] = plain(api.url, endpoint.url, oauth2, renew={"timeout": "30s"})
        async with instances.pair() as (frozen, other):
            assert {await status(frozen), await status(other)} == {200}
            answered = asyncio.Event()
            endpoint.fates = [answered]
            renewing = asyncio.create_task(instances.renew(frozen))
            await until(lambda: endpoint.arrived == 2, "the call")
            asleep = time.monotonic()
            frozen.process.send_signal(signal.SIGSTOP)
            answered.set()
            try:
                api.revoke("echo")
                assert await status(other) == 200
                assert time.monotonic() > asleep + 3
                taken = await state(other)
                assert taken["generation"] == 3
            finally:
                frozen.process.send_signal(signal.SIGCONT)
            assert await renewing == 200
            assert await status(frozen) == 200
            for each in (frozen, other):
                found = await state(each)
                assert (found["generation"], found["renewed_by"]) == (3, taken["renewed_by"])
            assert endpoint.grants == ["password", "refresh_token", "password"]
            assert endpoint.reused == []


def sealed_by(key: str, name: str, plain_text: bytes) -> bytes:
    return KeyRing([Secret(key)]).seal(name, plain_text)


async def test_flt_rd_09_record_that_cannot_be_read_is_none(instances: Instances, api: Upstream, redis: Server) -> None:
    """The instance gets a token of its own and says so, what is damaged is written over, and what another version,
    another key or another program wrote stays as it is."""
    key = (instances.folder / "keys").read_text()
    damaged, foreign = ("corrupted", "truncated", "empty"), ("version", "schema", "unknown_key", "wrong_type")
    async with contextlib.AsyncExitStack() as stack:
        for name in (*damaged, *foreign):
            each = await stack.enter_async_context(issuer(granting(name)))
            instances.upstreams[name] = plain(f"{api.url}/{name}", each.url)
        names = {
            name: store_key(each.identity)
            for each in credentials(instances.settings(), SystemClock())
            for name in each.names
        }
        good = {name: sealed_by(key, names[name], b'{"schema": 3}') for name in names}
        records = {
            "corrupted": good["corrupted"][:-1] + bytes([good["corrupted"][-1] ^ 1]),
            "truncated": good["truncated"][:20],
            "empty": b"",
            "version": b"\x02" + good["version"][1:],
            "schema": good["schema"],
            "unknown_key": sealed_by(new_key(), names["unknown_key"], b"{}"),
        }
        for name, record in records.items():
            redis.command("HSET", names[name], "generation", "7", "sealed", record)
        redis.command("LPUSH", names["wrong_type"], "theirs")

        sidecar = await stack.enter_async_context(instances.start())
        assert await statuses(sidecar, *names) == {200}
        assert {name: len(tokens) for name, tokens in api.seen.items()} == dict.fromkeys(names, 1)
        for name in names:
            assert await metric(sidecar, "auth_sidecar_store_errors_total", f'upstream="{name}"') >= 1
        for name in damaged:
            assert redis.command("HGET", names[name], "generation") == b"8"
            assert redis.command("HGET", names[name], "sealed") != records[name]
        for name in foreign[:-1]:
            assert redis.command("HGET", names[name], "generation") == b"7"
            assert redis.command("HGET", names[name], "sealed") == records[name]
        assert redis.command("LRANGE", names["wrong_type"], 0, -1) == [b"theirs"]


async def test_flt_rd_10_lost_records_are_written_again(
    instances: Instances, plm: Emulator, api: Upstream, redis: Server
) -> None:
    """Requests go on, a rotating refresh token is kept in memory and used once, and not at all while that cannot be
    noted; the newest token is in Redis again as soon as it takes it."""
    async with relay(plm.token_url) as endpoint:
        instances.upstreams["plm"] = plain(api.url, endpoint.url, by_password(plm))
        async with instances.pair() as pair, under_load(*pair):
            await one_token(pair)
            redis.command("FLUSHALL")
            await until(lambda: redis.command("KEYS", "auth-sidecar:token:*"), "the record")
            (key,) = redis.command("KEYS", "auth-sidecar:token:*")
            assert await instances.renew(pair[0]) == 200
            assert endpoint.grants == ["password", "refresh_token"]

            redis.command("CONFIG", "SET", "maxmemory", "1")
            assert await instances.renew(pair[0]) == 200
            assert (await state(pair[0]))["generation"] == 4
            assert "has no memory left" in str(pair[0].log_events("trouble"))
            assert redis.command("HGET", key, "generation") == b"3"
            redis.command("CONFIG", "SET", "maxmemory", "0")
            assert (await one_token(pair))["generation"] == 4
            assert redis.command("HGET", key, "generation") == b"4"
            assert endpoint.grants == ["password", "refresh_token", "password"]
            assert endpoint.reused == []


async def test_flt_rd_11_clocks_minutes_apart_make_no_difference(
    instances: Instances, plm: Emulator, redis: Server, fake_time: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both instances see the end of a token at the same moment, renew when it is due and no earlier, and no request
    fails."""
    plm.switches.lifetime = 8
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, by_client(plm), renew={"margin": "4s"})
    async with contextlib.AsyncExitStack() as stack:
        pair = []
        for name, skew in (("a", -150), ("b", 150)):
            with monkeypatch.context() as patch:
                for variable, value in fake_time.items():
                    patch.setenv(variable, value)
                patch.setenv("FAKETIME", f"{skew:+}s")
                patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                pair.append(await stack.enter_async_context(instances.start(name)))
        before, began = calls(plm), time.monotonic()
        async with under_load(*pair):
            await until(lambda: calls(plm) > before, "a renewal")
        took = time.monotonic() - began
        assert calls(plm) - before <= took / 4 + 1
        assert plm.counters.sent[401] == 0
        await one_token(tuple(pair))
        ends = [(await state(each))["expires_at"] for each in pair]
        assert ends[1] - ends[0] == pytest.approx(300, abs=5)


async def test_flt_rd_12_refused_instance_goes_on_alone(instances: Instances, plm: Emulator, redis: Server) -> None:
    """The log names the cause without the password, requests are served from a token of the instance's own, it is
    ready, and when the password or the rights are mended it joins the others without a restart."""
    folder = instances.folder
    for word in ("wrong", "right"):
        (folder / f"{word}-password").write_text(canary(word))
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "tls.pem"))
    lines = (f"tls-cert-file {folder}/tls.pem", f"tls-key-file {folder}/tls.pem", "tls-auth-clients no")
    redis.command("ACL", "SETUSER", "sidecar", "on", f">{canary('right')}", "~other:*", "+@all")
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, by_client(plm))
    with server(folder, instances.outputs / f"{instances.name}-tls.log", *lines, tls=True) as hidden:
        user: dict[str, Any] = {"username": "sidecar"}
        refused = {
            "password": user | {"password": {"file": str(folder / "wrong-password")}},
            "rights": user | {"password": {"file": str(folder / "right-password")}},
            "certificate": {"url": f"rediss://localhost:{hidden.port}"},
        }
        causes = {
            "password": "refused the user or password",
            "rights": "does not permit this to the user",
            "certificate": "its certificate is not trusted",
        }
        async with contextlib.AsyncExitStack() as stack:
            common, starting = instances.store, []
            for name, store in refused.items():
                instances.store = common | store
                starting.append(stack.enter_async_context(instances.start(name)))
            sidecars = dict(zip(refused, await asyncio.gather(*starting), strict=True))
            for name, sidecar in sidecars.items():
                assert await status(sidecar) == 200
                assert await reasons(sidecar) == {}
                assert any(causes[name] in event["detail"] for event in sidecar.log_events("trouble"))
                assert "CANARY" not in sidecar.log.read_text()
            assert calls(plm) == 3
            assert redis.command("KEYS", "*") == hidden.command("KEYS", "*") == []

            (folder / "wrong-password").write_text(canary("right"))
            redis.command("ACL", "SETUSER", "sidecar", "allkeys")
            await one_token((sidecars["password"], sidecars["rights"]))
            assert redis.command("KEYS", "auth-sidecar:token:*")
            assert calls(plm) == 3


async def test_flt_rd_13_client_that_leaves_mixes_nothing_up(
    instances: Instances, api: Upstream, redis: Server
) -> None:
    """The renewal it waited for goes on for the others, and no upstream ever gets the token of another."""
    names = [f"plm{number}" for number in range(6)]
    async with contextlib.AsyncExitStack() as stack:
        issuers = {name: await stack.enter_async_context(issuer(granting(name))) for name in names}
        for name, each in issuers.items():
            instances.upstreams[name] = plain(f"{api.url}/{name}", each.url, renew={"min_interval": "0s"})
        sidecar = await stack.enter_async_context(instances.start())
        assert await statuses(sidecar, *names) == {200}
        for round_ in range(4):
            for name in names:
                api.revoke(name)
            redis.command("CLIENT", "PAUSE", "300")
            leaving = [asyncio.create_task(get(sidecar, name)) for name in names for _ in range(5)]
            for number, task in enumerate(leaving):
                await asyncio.sleep(0.01 * (number % 2))
                task.cancel()
            await asyncio.wait(leaving)
            for name in names:
                await eventually(lambda n=name: status(sidecar, n), 200)
            assert {name: each.calls for name, each in issuers.items()} == dict.fromkeys(names, round_ + 2)
    for name in names:
        assert {token.removeprefix("Bearer ").rpartition("-")[0] for token in api.seen[name]} == {canary(name)}


async def test_flt_rd_14_crowd_that_starts_makes_one_call(instances: Instances, plm: Emulator, redis: Server) -> None:
    """One asks the token endpoint, all others find its token in Redis, and every request is served."""
    plm.switches.token_delay = 2
    oauth2 = by_client(plm)
    instances.upstreams["plm"] = plain(plm.base_url, plm.token_url, oauth2, renew={"timeout": "10s"})
    async with contextlib.AsyncExitStack() as stack:
        store = {name: value for name, value in instances.store.items() if name != "keys"}
        others = await stack.enter_async_context(fleet(store, plm.token_url, instances.folder, **oauth2))
        nodes = [await others.node(start=False) for _ in range(46)]
        starting = [asyncio.create_task(stack.enter_async_context(instances.start(name))) for name in "abcd"]
        await until(lambda: calls(plm) == 1, "the call")
        await asyncio.gather(*(node.broker.start() for node in nodes))
        sidecars = await asyncio.gather(*starting)
        assert {each.status_code for each in await asyncio.gather(*(get(each) for each in sidecars))} == {200}
        assert len(set(await asyncio.gather(*(node.get() for node in nodes)))) == 1
        assert calls(plm) <= 2
