"""Brokers of one credential over real stores and issuers: one renews, and no refresh token is used twice."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.emulator import Emulator, Switches
from sidecar.errors import CredentialRejected, IssuerUnavailable, Reason, Refusal, StoreError
from sidecar.tokens import lease, sealed
from sidecar.tokens.seal import new_key
from tests.canary import canary
from tests.fleet import Fleet, Node, Relay, by_password, by_refresh_token, fleet, relay
from tests.redis_servers import Server, redis_of_session, redis_server, server, watched
from tests.waiting import PATIENCE, until

__all__ = ["redis_of_session", "redis_server"]


@pytest.fixture
async def plm() -> AsyncIterator[Emulator]:
    switches = Switches(lifetime=600, supplier_lifetime=None, rotate_refresh=True)
    async with Emulator.start(switches=switches, tls=False) as made:
        yield made


@pytest.fixture
async def issuer(plm: Emulator) -> AsyncIterator[Relay]:
    async with relay(plm.token_url) as made:
        yield made


@pytest.fixture
async def rotating(redis_server: Server, plm: Emulator, issuer: Relay, tmp_path: Path) -> AsyncIterator[Fleet]:
    """A fleet with refresh tokens that are taken once, and another grant beside them."""
    async with fleet(over(redis_server), issuer.url, tmp_path, **by_password(plm)) as made:
        yield made


@pytest.fixture
async def bound(redis_server: Server, plm: Emulator, issuer: Relay, tmp_path: Path) -> AsyncIterator[Fleet]:
    """A fleet with refresh tokens that are taken once, and nothing beside them."""
    async with fleet(over(redis_server), issuer.url, tmp_path, **await by_refresh_token(plm)) as made:
        yield made


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "TTL", 2.5)
    monkeypatch.setattr(lease, "_SIGN", 0.5)


def over(redis: Server) -> dict[str, Any]:
    return {"url": redis.url, "timeout": "2s"}


def stored(redis: Server, node: Node) -> object:
    """Return the generation that lies beside the record."""
    return redis.command("HGET", node.key, "generation")


async def gathered(nodes: list[Node]) -> set[str]:
    return set(await asyncio.gather(*(node.get() for node in nodes)))


# One renewal for all.


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_fifty_instances_that_start_at_once_make_one_call(
    redis_server: Server, plm: Emulator, tmp_path: Path, kind: str
) -> None:
    """Each with its own store; all hand out the token that the one got."""
    plm.switches.token_delay = 0.3
    url = over(redis_server) if kind == "redis" else {"url": "sqlite"}
    async with fleet(url, plm.token_url, tmp_path, **by_password(plm)) as brokers:
        nodes = [await brokers.node(start=False) for _ in range(50)]
        await asyncio.gather(*(node.broker.start() for node in nodes))
        tokens = await gathered(nodes)

    assert plm.counters.token_calls.total() == 1
    assert len(tokens) == 1


async def test_refresh_token_serves_a_crowd_once(rotating: Fleet, issuer: Relay, plm: Emulator) -> None:
    """Twelve instances are refused at once, three times over: three renewals, each with a refresh token of its own."""
    nodes = [await rotating.node(min_interval=0) for _ in range(12)]
    await gathered(nodes)
    for _ in range(3):
        used = [await node.broker.token(0) for node in nodes]
        deadline = time.monotonic() + 5
        newer = await asyncio.gather(*(node.broker.after(old, deadline) for node, old in zip(nodes, used, strict=True)))
        assert len({token.values["access_token"].reveal() for token in newer if token}) == 1
        assert None not in newer

    assert issuer.grants == ["password"] + ["refresh_token"] * 3
    assert issuer.reused == []
    assert plm.counters.token_sent == {200: 4}


async def test_clocks_minutes_apart_agree(redis_server: Server, plm: Emulator, tmp_path: Path) -> None:
    """Both see the end of a token at the same moment, and neither renews what the other just got."""
    plm.switches.lifetime = 6
    async with fleet(over(redis_server), plm.token_url, tmp_path, **by_password(plm)) as brokers:
        first = await brokers.node(margin="3s", check_every="1s", ahead=-150)
        second = await brokers.node(margin="3s", check_every="1s", ahead=150)
        began = time.monotonic()
        while time.monotonic() < began + 6.5:
            assert await first.get(0.5)
            assert await second.get(0.5)
            await asyncio.sleep(0.1)
        await until(lambda: first.broker.status().generation == second.broker.status().generation, "one token")
        ends = [node.broker.status().expires_at for node in (first, second)]

    # A token is due 3 to 4.5 s after its issue.
    assert 2 <= plm.counters.token_calls.total() <= 4
    assert ends[0] is not None
    assert ends[1] is not None
    # The store's time is followed in steps of a second.
    assert ends[1] - ends[0] == pytest.approx(300, abs=2.5)


async def test_next_start_finds_the_token(redis_server: Server, plm: Emulator, tmp_path: Path) -> None:
    """Also after a kill, and with a key list that was rotated in between."""
    async with fleet(over(redis_server), plm.token_url, tmp_path, **by_password(plm)) as brokers:
        first = await brokers.node()
        token = await first.get()
        await first.kill()
        keys = tmp_path / "keys"
        keys.write_text(f"{new_key()}\n{keys.read_text()}")
        second = await brokers.node()

        assert await second.get(0) == token
    assert plm.counters.token_calls.total() == 1


# A refresh token is used once.


async def test_answer_that_comes_too_late_leaves_doubt(rotating: Fleet, issuer: Relay) -> None:
    """The issuer may have acted when its answer did not come in time: the next instance leaves the refresh token."""
    first, second = await rotating.node(timeout="500ms"), await rotating.node()
    await gathered([first, second])
    issuer.fates = [2.0]
    with pytest.raises(IssuerUnavailable):
        await first.broker.renew()
    await first.kill()
    await second.broker.renew()

    assert issuer.reused == []


async def test_failure_after_a_lost_answer_leaves_doubt(rotating: Fleet, issuer: Relay) -> None:
    """The second try of the same call met a busy issuer: that says nothing about the first."""
    first, second = await rotating.node(), await rotating.node()
    await gathered([first, second])
    issuer.fates = ["dropped", 503]
    with pytest.raises(IssuerUnavailable):
        await first.broker.renew()
    await first.kill()
    await second.broker.renew()

    assert issuer.reused == []


async def test_issuer_that_never_answers_holds_up_nobody_for_ever(
    rotating: Fleet, issuer: Relay, short_lease: None
) -> None:
    """Its caller dies with it; the next one takes another grant, and the token at hand serves meanwhile."""
    first, second = await rotating.node(), await rotating.node()
    await gathered([first, second])
    issuer.fates = ["unanswered"]
    renewing = asyncio.create_task(first.broker.renew())
    await until(lambda: issuer.arrived == 2, "the call")
    await first.kill()
    await asyncio.wait([renewing])
    await asyncio.gather(second.broker.renew(), second.get(0))

    assert issuer.grants == ["password", "refresh_token", "password"]
    assert issuer.reused == []


async def test_late_answer_does_not_replace_what_another_got_since(
    rotating: Fleet, issuer: Relay, short_lease: None
) -> None:
    """A holder that lost its lease adopts the newer token, also when it has seen it before its own answer came."""
    first, second = await rotating.node(), await rotating.node()
    await gathered([first, second])
    answered = asyncio.Event()
    issuer.fates = [answered]
    late = asyncio.create_task(first.broker.renew())
    await until(lambda: issuer.arrived == 2, "the call")
    keeper = first.broker._renewing._obtaining._lease._keeper
    assert keeper is not None
    keeper.cancel()
    brought = await second.broker.renew()
    await first.broker.recall()
    answered.set()
    await late
    await second.broker.recall()

    assert second.broker.status().generation == brought.granted
    assert await second.get(0) == await first.get(0) == brought.values["access_token"].reveal()
    assert issuer.reused == []


@pytest.mark.parametrize("data", ["kept", "lost"])
async def test_redis_restarted_during_a_call(bound: Fleet, issuer: Relay, redis_server: Server, data: str) -> None:
    """Who waited for the lease does not take the refresh token that the holder is using."""
    first, second = await bound.node(check_every="1s"), await bound.node(check_every="1s")
    await gathered([first, second])
    answered = asyncio.Event()
    issuer.fates = [answered]
    one = asyncio.create_task(first.broker.renew())
    await until(lambda: issuer.arrived == 2, "the call")
    other = asyncio.create_task(second.broker.renew())
    await until(lambda: second.broker._renewing._obtaining.elsewhere, "the wait")
    if data == "kept":
        redis_server.command("SAVE")
    redis_server.kill()
    redis_server.start()
    answered.set()
    await asyncio.wait([one, other], timeout=PATIENCE)
    assert issuer.reused == []
    await until(lambda: first.broker.status().generation == second.broker.status().generation, "one token")

    assert one.result().values["access_token"].reveal() == await second.get(0)
    assert set(issuer.statuses) == {200}


async def test_sentinel_failover_during_a_call(
    tmp_path: Path, outputs: Path, plm: Emulator, issuer: Relay, redis_server: Server
) -> None:
    """The answer comes when another server is the master: it is stored there, and nobody asks twice."""
    del redis_server
    with watched(tmp_path, outputs / "fleet-sentinel.log") as servers:
        wanted = {"url": servers.url, "timeout": "2s"}
        async with fleet(wanted, issuer.url, tmp_path, **await by_refresh_token(plm)) as brokers:
            first, second = await brokers.node(check_every="1s"), await brokers.node(check_every="1s")
            await gathered([first, second])
            answered = asyncio.Event()
            issuer.fates = [answered]
            one = asyncio.create_task(first.broker.renew())
            await until(lambda: issuer.arrived == 2, "the call")
            other = asyncio.create_task(second.broker.renew())
            await until(lambda: second.broker._renewing._obtaining.elsewhere, "the wait")
            await asyncio.to_thread(servers.fail_over, kill=True)
            answered.set()
            await second.get(0)
            await asyncio.wait([one, other], timeout=PATIENCE)
            token = one.result().values["access_token"].reveal()
            await until(lambda: first.broker.status().generation == second.broker.status().generation, "one token")

            assert await second.get(0) == await first.get(0) == token
    assert issuer.reused == []
    assert set(issuer.statuses) == {200}


async def test_write_that_a_failover_lost_is_made_good(
    tmp_path: Path, outputs: Path, plm: Emulator, issuer: Relay
) -> None:
    """The new master never saw the last renewal; before anybody takes the old refresh token again it does."""
    with watched(tmp_path, outputs / "fleet-lost-write.log") as servers:
        wanted = {"url": servers.url, "timeout": "2s"}
        async with fleet(wanted, issuer.url, tmp_path, **await by_refresh_token(plm)) as brokers:
            first, second = await brokers.node(), await brokers.node()
            await gathered([first, second])
            replica = next(one for one in servers.servers if one is not servers.master())
            replica.freeze()
            servers.master().command("CLIENT", "KILL", "TYPE", "replica")
            token = await first.broker.renew()
            servers.master().kill()
            replica.thaw()
            await until(lambda: servers.master() is replica, "failover")
            await until(lambda: replica.command("ROLE")[0] == b"master", "failover")
            with contextlib.suppress(AssertionError):
                await until(lambda: stored(replica, first) == b"%d" % token.granted, "its token", within=10)
            with contextlib.suppress(CredentialRejected):
                for _ in range(20):
                    with contextlib.suppress(IssuerUnavailable):
                        await second.broker.renew()
                    if len(issuer.grants) == 3:
                        break
                    await asyncio.sleep(0.3)
            assert len(issuer.grants) == 3

    assert issuer.reused == []


async def test_doubtful_refresh_token_is_a_persons_to_try(
    bound: Fleet, issuer: Relay, plm: Emulator, short_lease: None
) -> None:
    """None that is left presents what the dead may have spent, and each says why; an operator has it tried, once."""
    nodes = await left_in_doubt(bound, issuer, plm)
    await until(lambda: all(node.renewals("rejected") for node in nodes), "the end")
    for node in nodes:
        assert "node/1 presented the refresh token and was cut off" in node.renewals("rejected")[0].detail
        with pytest.raises(Refusal) as refusal:
            await node.get(1)
        assert refusal.value.reason is Reason.CREDENTIAL_REJECTED
    assert issuer.reused == []

    with pytest.raises(CredentialRejected):
        await nodes[0].broker.renew()
    # The first is the configured one, the second that of the dead.
    assert list(issuer.presented.values()) == [1, 2]


async def left_in_doubt(bound: Fleet, issuer: Relay, plm: Emulator) -> list[Node]:
    """Return two instances, with seconds left to their token, beside one that was killed during its call."""
    plm.switches.lifetime = 8
    nodes = [await bound.node(margin="4s", timeout="4s") for _ in range(3)]
    await gathered(nodes)
    issuer.fates = ["unanswered"]
    renewing = asyncio.create_task(nodes[0].broker.renew())
    await until(lambda: issuer.arrived == 2, "the call")
    await nodes[0].kill()
    await asyncio.wait([renewing])
    for node in nodes[1:]:
        await node.get(0)
    return nodes[1:]


async def test_request_does_not_wait_for_a_refresh_token_that_is_kept(bound: Fleet, redis_server: Server) -> None:
    """Without the store it is not used yet, so that there is nothing to wait for: the 401 is passed on at once."""
    node = await bound.node()
    used = await node.broker.token(time.monotonic() + 5)
    redis_server.kill()
    began = time.monotonic()
    await node.broker.after(used, began + 30)

    assert time.monotonic() - began < 15


# None takes the others down.


async def test_instance_that_cannot_reach_the_issuer_does_not_keep_the_others_from_it(
    rotating: Fleet, redis_server: Server, plm: Emulator, tmp_path: Path
) -> None:
    """Its network is broken, not theirs: its pauses are its own."""
    broken = await rotating.node(start=False)

    async def unreachable(_: object) -> None:
        raise IssuerUnavailable("cannot be reached")

    broken.broker._issuer.obtain = unreachable  # type: ignore[method-assign,assignment]
    await broken.broker.start()
    await until(lambda: len(broken.renewals("unavailable")) >= 2, "the failures")
    healthy = await rotating.node()

    assert await healthy.get(5)


async def test_instance_whose_credential_was_refused_takes_what_another_got(rotating: Fleet) -> None:
    """Its secret is the old one still; the token is for all who share the credential."""
    plm = rotating.data["upstreams"]["plm"]
    right = plm["oauth2"]
    plm["oauth2"] = right | {"client_secret": {"value": "CANARY-old"}}
    late = await rotating.node(check_every="1s")
    await until(lambda: late.renewals("rejected"), "the refusal")
    plm["oauth2"] = right
    token = await (await rotating.node()).get()
    await asyncio.sleep(3)

    assert await late.get(1) == token


async def test_refused_secret_is_shown_to_the_issuer_once(
    redis_server: Server, plm: Emulator, issuer: Relay, tmp_path: Path
) -> None:
    """A crowd that starts with a wrong secret does not get the account locked; with the right one it starts at once."""
    oauth2 = by_password(plm) | {"client_secret": {"value": canary("wrong")}}
    async with fleet(over(redis_server), issuer.url, tmp_path, **oauth2) as wrong:
        nodes = [await wrong.node() for _ in range(12)]
        await until(lambda: all(node.renewals("rejected") for node in nodes), "the refusals")
        assert issuer.arrived == 1
        for node in nodes:
            with pytest.raises(Refusal) as refusal:
                await node.get(1)
            assert refusal.value.reason is Reason.CREDENTIAL_REJECTED
    async with fleet(over(redis_server), issuer.url, tmp_path, **by_password(plm)) as right:
        assert await (await right.node()).get(10)


async def test_next_refresh_token_of_a_useless_grant_is_used(bound: Fleet, issuer: Relay, plm: Emulator) -> None:
    """The issuer rotates, but its token is over already: the spent refresh token is not presented again."""
    node = await bound.node()
    await node.get()
    plm.switches.lifetime = 0
    with pytest.raises(IssuerUnavailable, match="already expired"):
        await node.broker.renew()
    plm.switches.lifetime = 600
    await node.broker.renew()

    assert issuer.reused == []
    assert not node.renewals("rejected")


async def test_revoked_token_does_not_come_back_by_a_look_at_the_store(rotating: Fleet) -> None:
    """A request looks at the store while an operator drops what is there."""
    first, second = await rotating.node(), await rotating.node(check_every=0)
    await gathered([first, second])
    dropped = await first.broker.renew()
    await asyncio.gather(second.broker.recall(), second.broker.revoke())

    assert await second.get() != dropped.values["access_token"].reveal()


# The store in trouble.


def wrong_type(redis: Server, node: Node) -> None:
    redis.command("DEL", node.key)
    redis.command("RPUSH", node.key, "theirs")


def truncated(redis: Server, node: Node) -> None:
    sealed = redis.command("HGET", node.key, "sealed")
    redis.command("HSET", node.key, "sealed", sealed[:30])


def swapped(redis: Server, node: Node) -> None:
    sealed = redis.command("HGET", node.key, "sealed")
    redis.command("HSET", node.key, "sealed", sealed[:30] + sealed[:29:-1])


def full(redis: Server, node: Node) -> None:
    del node
    redis.command("CONFIG", "SET", "maxmemory", "1")


def read_only(redis: Server, node: Node) -> None:
    del node
    redis.command("REPLICAOF", "127.0.0.1", "9")


def paused(redis: Server, node: Node) -> None:
    del node
    redis.command("CLIENT", "PAUSE", "30000")


def frozen(redis: Server, node: Node) -> None:
    del node
    redis.freeze()


def dead(redis: Server, node: Node) -> None:
    del node
    redis.kill()


def locked(redis: Server, node: Node) -> None:
    del node
    redis.command("CONFIG", "SET", "requirepass", "CANARY-theirs")
    redis.admin["password"] = "CANARY-theirs"
    redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


TROUBLES: dict[Callable[[Server, Node], None], str] = {
    wrong_type: "is of another type and is left as it is",
    truncated: "damaged",
    swapped: "damaged or was moved",
    full: "has no memory left",
    read_only: "read-only replica",
    paused: "gave no answer within store.timeout",
    frozen: "gave no answer within store.timeout",
    dead: "refused the connection",
    locked: "refused the user or password",
}


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_store_in_trouble_holds_up_no_request(
    tmp_path: Path, outputs: Path, plm: Emulator, trouble: Callable[[Server, Node], None]
) -> None:
    """Requests go on with the token at hand, a 401 still gets a new one, the log tells, nothing foreign is lost."""
    with server(tmp_path, outputs / f"fleet-{trouble.__name__}.log") as redis:
        async with fleet(over(redis), plm.token_url, tmp_path, **by_password(plm)) as brokers:
            node = await brokers.node(check_every="500ms", min_interval=0)
            used = await node.broker.token(time.monotonic() + 5)
            await node.broker.renew()
            await asyncio.to_thread(trouble, redis, node)
            longest, end = 0.0, time.monotonic() + 3
            while time.monotonic() < end:
                began = time.monotonic()
                await node.broker.token(began + 1)
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(0.005)
            used = await node.broker.token(0)
            assert await node.broker.after(used, time.monotonic() + PATIENCE)
            if trouble is wrong_type:
                assert redis.command("LRANGE", node.key, 0, -1) == [b"theirs"]
            redis.thaw()

    assert longest < 1.5  # `store.timeout` is 2
    assert any(TROUBLES[trouble] in detail for detail in node.troubles()), node.troubles()
    assert not any("internal error" in detail for detail in node.troubles())


async def test_record_that_was_rolled_back_is_put_right(rotating: Fleet, redis_server: Server) -> None:
    """An older record of ours, validly sealed: the newer token in memory wins, for all instances."""
    node = await rotating.node(check_every="500ms")
    await node.get()
    old = redis_server.command("HGETALL", node.key)
    token = await node.broker.renew()
    redis_server.command("HSET", node.key, "generation", old[b"generation"], "sealed", old[b"sealed"])
    await asyncio.sleep(1)

    assert stored(redis_server, node) == b"%d" % token.granted
    assert await (await rotating.node()).get(0) == token.values["access_token"].reveal()


async def test_older_record_under_a_newer_number_is_not_believed(rotating: Fleet, redis_server: Server) -> None:
    """The number beside the seal is not what counts: the token at hand serves, and takes the place."""
    node = await rotating.node(check_every="500ms")
    await node.get()
    old = redis_server.command("HGETALL", node.key)
    token = await node.broker.renew()
    redis_server.command("HSET", node.key, "generation", b"7", "sealed", old[b"sealed"])
    await until(lambda: stored(redis_server, node) == b"%d" % token.granted, "ours")
    assert await node.get(0) == await (await rotating.node()).get(0) == token.values["access_token"].reveal()
    newer = await node.broker.renew()

    assert stored(redis_server, node) == b"%d" % newer.granted


async def test_redis_that_comes_back_empty_has_the_token_soon(
    redis_server: Server, plm: Emulator, tmp_path: Path
) -> None:
    """Nobody need be due for that: who starts then finds it, and makes no call."""
    async with fleet(over(redis_server), plm.token_url, tmp_path, **by_password(plm)) as brokers:
        first = await brokers.node()
        token = await first.get()
        redis_server.kill()
        redis_server.start()
        await until(lambda: redis_server.command("EXISTS", first.key), "the token in Redis")
        second = await brokers.node()

        assert await second.get() == token
    assert plm.counters.token_calls.total() == 1


async def test_wait_for_a_dead_store_ends(rotating: Fleet, redis_server: Server) -> None:
    """An operator who revokes is told that the store keeps the record."""
    node = await rotating.node()
    await node.get()
    redis_server.kill()
    with pytest.raises(StoreError):
        await node.broker.revoke()
