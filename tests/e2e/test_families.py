"""Sidecars at an issuer that ends a login when a refresh token is used twice: it never is, whatever happens to them."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.tokens.seal import new_key
from tests.canary import canary
from tests.faults.instances import Instances, generation, get, instances, plain
from tests.fleet import Families, Upstream, families, upstream
from tests.process import Running
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import eventually, until

__all__ = ["instances", "redis_of_session", "redis_server"]


@pytest.fixture
async def issuer() -> AsyncIterator[Families]:
    async with families() as made:
        yield made


@pytest.fixture
async def api() -> AsyncIterator[Upstream]:
    async with upstream() as made:
        yield made


def set_up(instances: Instances, api: Upstream, issuer: Families, family: str = "alice", **settings: Any) -> None:
    """Set the sidecars up for one upstream whose login is *family*."""
    oauth2 = issuer.settings(family) | settings.pop("oauth2", {})
    instances.upstreams["plm"] = plain(api.url, issuer.url, oauth2, **settings)


async def status(sidecar: Running, name: str = "plm") -> int:
    return (await get(sidecar, name)).status_code


async def reason(sidecar: Running) -> str:
    """Return why a request is not served, empty when it is."""
    answer = await get(sidecar)
    return "" if answer.status_code == 200 else str(answer.json()["reason"])


def records(redis: Server) -> list[bytes]:
    found: list[bytes] = redis.command("KEYS", "auth-sidecar:token:*")
    return found


# Whose credential it is.


async def test_upstreams_of_one_login_share_it(instances: Instances, api: Upstream, issuer: Families) -> None:
    """Two of one origin and one of another, over several lifetimes: one renewal for all, each with the newest."""
    issuer.lifetime = 2
    oauth2 = issuer.settings("alice")
    async with upstream() as other:
        instances.upstreams = {
            name: plain(url, issuer.url, oauth2, renew={"margin": "1s"})
            for name, url in {"items": f"{api.url}/items", "orders": f"{api.url}/orders", "erp": other.url}.items()
        }
        async with instances.start() as sidecar:
            while len(issuer.calls) < 4:
                assert {await status(sidecar, name) for name in instances.upstreams} == {200}
                await asyncio.sleep(0.1)
    assert issuer.reused == []
    assert issuer.calls == ["alice"] * issuer.current["alice"]


async def test_users_of_one_client_keep_apart(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """On one Redis, with one key: each gets the tokens of its own login."""
    instances.in_redis(redis_server)
    async with contextlib.AsyncExitStack() as stack:
        for user in ("alice", "bob"):
            instances.upstreams = {user: plain(f"{api.url}/{user}", issuer.url, issuer.settings(user))}
            sidecar = await stack.enter_async_context(instances.start(user))
            assert await status(sidecar, user) == 200
            assert await instances.renew(sidecar, user, user) == 200
            assert await status(sidecar, user) == 200
    for user in ("alice", "bob"):
        assert api.seen[user] == {f"Bearer {canary(f'A-{user}-{number}')}" for number in (1, 2)}
    assert issuer.calls == ["alice"] * 2 + ["bob"] * 2


EDITS: dict[str, dict[str, Any]] = {
    "scope": {"oauth2": {"scope": "read"}},
    "client_auth": {"oauth2": {"client_auth": "client_secret_basic", "client_secret": {"value": canary("first")}}},
    "secret": {"oauth2": {"client_auth": "client_secret_post", "client_secret": {"value": canary("second")}}},
    "path": {"path": "/other/token"},
    "margin": {"renew": {"margin": "30s", "timeout": "20s"}},
}


async def test_edits_orphan_no_login(instances: Instances, api: Upstream, issuer: Families) -> None:
    """What a configuration says of how a login is used may change: its record goes on, before and after a restart."""
    oauth2 = issuer.settings("alice")
    instances.upstreams["plm"] = plain(api.url, issuer.url, oauth2)
    async with instances.start() as sidecar:
        assert await status(sidecar) == 200
    for edit in EDITS.values():
        token_url = issuer.url.replace("/token", edit.get("path", "/token"))
        renew = edit.get("renew", {})
        instances.upstreams["plm"] = plain(api.url, token_url, oauth2 | edit.get("oauth2", {}), renew=renew)
        async with instances.start() as sidecar:
            assert await status(sidecar) == 200
            assert await instances.renew(sidecar) == 200
    assert issuer.reused == []
    assert issuer.calls == ["alice"] * (1 + len(EDITS))


DIFFERENCES: dict[str, dict[str, Any]] = {
    "renew.margin": {"renew": {"margin": "10s"}},
    "oauth2.client_secret": {"oauth2": {"client_secret": {"value": canary("another")}}},
    "tls.ca": {"tls": {"ca": "ca.pem"}},
}


@pytest.mark.parametrize("key", DIFFERENCES)
async def test_upstreams_of_one_login_that_differ_are_refused(
    instances: Instances, api: Upstream, issuer: Families, key: str
) -> None:
    """By name, before anything is sent."""
    oauth2 = issuer.settings("alice", client_auth="client_secret_basic", client_secret={"value": canary("one")})
    other = DIFFERENCES[key]
    instances.upstreams = {
        "items": plain(f"{api.url}/items", issuer.url, oauth2),
        "orders": plain(
            f"{api.url}/orders",
            issuer.url,
            oauth2 | other.get("oauth2", {}),
            **{name: value for name, value in other.items() if name != "oauth2"},
        ),
    }
    for command in ("check", "run"), ("check", "run", "exec") if key == "renew.margin" else ():
        for each in command:
            arguments = (each, "-c", "config.yaml") + (("--", "true") if each == "exec" else ())
            code, _, errors = await instances.command(*arguments)
            assert code == 2, errors
            assert f"upstreams.orders.{key} is not that of items" in errors
    assert issuer.arrived == 0


async def test_store_in_memory_is_refused(instances: Instances, api: Upstream, issuer: Families) -> None:
    """After a restart nobody would know that the first refresh token was used."""
    set_up(instances, api, issuer)
    instances.store = {"url": "memory"}
    code, _, errors = await instances.command("check", "-c", "config.yaml")
    assert code == 2
    assert "refresh_token" in errors
    assert "memory" in errors


# The store says nothing, or something else.


async def test_redis_that_is_silent_at_the_start_is_waited_for(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """A second instance does not know which refresh token is the newest, and asks nobody; then it takes the token."""
    instances.in_redis(redis_server)
    set_up(instances, api, issuer, timeout={"token": "1s"})
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(instances.start("a"))
        assert await status(first) == 200
        assert await instances.renew(first) == 200
        redis_server.freeze()
        stack.callback(redis_server.thaw)
        second = await stack.enter_async_context(instances.start("b"))
        assert await reason(second) == "token_unavailable"
        assert await status(first) == 200
        redis_server.thaw()
        await eventually(lambda: status(second), 200)
        assert await instances.renew(second, process="b") == 200
        await eventually(lambda: generation(first), await generation(second))
        assert await instances.renew(first) == 200
    assert issuer.calls == ["alice"] * 4
    assert issuer.reused == []


async def test_redis_that_is_silent_when_the_token_is_due_is_waited_for(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """The token serves to its end, no refresh token is used, and service goes on by itself when Redis is back."""
    instances.in_redis(redis_server)
    issuer.lifetime = 5
    set_up(instances, api, issuer, timeout={"token": "500ms"}, renew={"margin": "2s"})
    async with instances.pair() as pair:
        for each in pair:
            await eventually(lambda each=each: status(each), 200)
        redis_server.freeze()
        try:
            served = len(issuer.calls)
            for each in pair:
                await eventually(lambda each=each: reason(each), "token_unavailable")
            assert len(issuer.calls) == served
        finally:
            redis_server.thaw()
        for each in pair:
            await eventually(lambda each=each: status(each), 200)
    assert issuer.reused == []


async def test_wrong_key_uses_nothing_up(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """The instance with a key of its own leaves the record, and the login, alone; with the right key it serves."""
    instances.in_redis(redis_server)
    set_up(instances, api, issuer, timeout={"token": "1s"})
    right, wrong = instances.store, instances.folder / "wrong"
    wrong.write_text(new_key())
    wrong.chmod(0o600)
    async with instances.start("a") as good:
        assert await status(good) == 200
        assert await instances.renew(good) == 200
        instances.store = right | {"keys": [{"file": str(wrong)}]}
        async with instances.start("b") as bad:
            assert await reason(bad) == "token_unavailable"
            assert await instances.renew(bad, process="b") != 200
            wrong.write_text((instances.folder / "keys").read_text())
            await eventually(lambda: status(bad), 200)
            assert await instances.renew(bad, process="b") == 200
            await eventually(lambda: generation(good), await generation(bad))
        assert await instances.renew(good) == 200
    assert issuer.reused == []
    assert issuer.calls == ["alice"] * 4


_DATABASE = "store.db"


def _damage(state: Path, before: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / _DATABASE)) as store, store:
        assert store.execute("UPDATE token SET sealed = substr(sealed, 1, 80)").rowcount == 1


def _empty(state: Path, before: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / _DATABASE)) as store, store:
        assert store.execute("DELETE FROM token").rowcount == 1


def _delete(state: Path, before: Path) -> None:
    for file in state.glob(f"{_DATABASE}*"):
        file.unlink()


def _put_back(state: Path, before: Path) -> None:
    _delete(state, before)
    for file in before.glob(f"{_DATABASE}*"):
        shutil.copy(file, state)


@pytest.mark.parametrize("mishap", [_damage, _empty, _delete, _put_back], ids=lambda mishap: mishap.__name__)
async def test_record_that_is_lost_needs_a_person(
    instances: Instances, api: Upstream, issuer: Families, mishap: Callable[[Path, Path], None]
) -> None:
    """No refresh token that may be spent is shown to the issuer; another login, once configured, is served at once."""
    first = instances.folder / "first"
    first.write_text(issuer.log_in("alice"))
    first.chmod(0o600)
    set_up(instances, api, issuer, "unused", oauth2={"refresh_token": {"file": str(first)}})
    state, before = instances.folder / "state-a", instances.folder / "before"
    async with instances.start() as sidecar:
        assert await status(sidecar) == 200
    shutil.copytree(state, before)
    async with instances.start() as sidecar:
        assert await instances.renew(sidecar) == 200
    mishap(state, before)
    async with instances.start() as sidecar:
        assert await reason(sidecar) == "credential_rejected"
        assert issuer.calls == ["alice"] * 2
        first.write_text(issuer.log_in("bob"))
        await eventually(lambda: status(sidecar), 200)
    assert issuer.calls == ["alice"] * 2 + ["bob"]
    assert issuer.reused == []


async def test_whole_state_that_is_put_back_goes_on_where_it_was(
    instances: Instances, api: Upstream, issuer: Families
) -> None:
    """A backup of a stopped sidecar's state directory, with what it knows of the login, serves on another machine."""
    set_up(instances, api, issuer)
    async with instances.start() as sidecar:
        assert await status(sidecar) == 200
    shutil.move(instances.folder / "state-a", instances.folder / "state-b")
    async with instances.start("b") as sidecar:
        assert await status(sidecar) == 200
        assert await instances.renew(sidecar, process="b") == 200
    assert issuer.calls == ["alice"] * 2
    assert issuer.reused == []


async def test_state_directory_that_is_lost_is_no_loss_beside_redis(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """Pods have none that lasts."""
    instances.in_redis(redis_server)
    set_up(instances, api, issuer)
    for _ in range(2):
        async with instances.start() as sidecar:
            assert await status(sidecar) == 200
            assert await instances.renew(sidecar) == 200
        shutil.rmtree(instances.folder / "state-a")
    assert issuer.calls == ["alice"] * 3
    assert issuer.reused == []


async def test_redis_that_was_emptied(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """An instance that lives publishes the record anew; without one, a person is asked for and the issuer is not."""
    instances.in_redis(redis_server)
    set_up(instances, api, issuer)
    async with instances.start("a") as first:
        assert await status(first) == 200
        assert await instances.renew(first) == 200
        redis_server.command("FLUSHALL")
        await until(lambda: records(redis_server), "the record")
        async with instances.start("b") as second:
            assert await status(second) == 200
            assert await instances.renew(second, process="b") == 200
        assert await status(first) == 200
    assert issuer.calls == ["alice"] * 3

    redis_server.command("FLUSHALL")
    async with instances.start("b") as second:
        assert await reason(second) == "credential_rejected"
    assert issuer.calls == ["alice"] * 3
    assert issuer.reused == []


# An operator.


async def test_revoked_login_stays_so(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """On all instances, after a restart, and though a renewal was under way; until another login is configured."""
    first = instances.folder / "first"
    first.write_text(issuer.log_in("alice"))
    first.chmod(0o600)
    instances.in_redis(redis_server)
    set_up(instances, api, issuer, "unused", oauth2={"refresh_token": {"file": str(first)}})
    async with instances.start("b") as other:
        async with instances.start("a") as sidecar:
            assert {await status(sidecar), await status(other)} == {200}
            answered = asyncio.Event()
            issuer.fates = [answered]
            renewing = asyncio.create_task(instances.renew(sidecar))
            await until(lambda: issuer.arrived == 2, "the call")
            code, _, errors = await instances.command("token", "revoke", "plm", "-c", "config.yaml", name="b")
            assert code == 0, errors
            answered.set()
            assert await renewing != 200
            for each in (sidecar, other):
                await eventually(lambda each=each: reason(each), "credential_rejected")
        async with instances.start("a") as sidecar:
            assert await reason(sidecar) == "credential_rejected"
            assert issuer.calls == ["alice"] * 2
            first.write_text(issuer.log_in("bob"))
            for each in (sidecar, other):
                await eventually(lambda each=each: status(each), 200)
    assert issuer.calls == ["alice"] * 2 + ["bob"]
    assert issuer.reused == []


async def test_revoked_token_that_costs_nothing_is_had_anew(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """By the next request, on every instance, and the dropped one is not shown again."""
    instances.in_redis(redis_server)
    oauth2 = {"client_id": "desk", "client_secret": {"value": canary("desk")}}
    instances.upstreams["plm"] = plain(f"{api.url}", issuer.url, oauth2)
    async with instances.pair() as (one, other):
        assert {await status(one), await status(other)} == {200}
        api.revoke("echo")
        assert await instances.act("revoke", one) == 200
        assert await status(one) == 200
        await eventually(lambda: status(other), 200)
    assert len(issuer.calls) == 2


# Keys.


@pytest.mark.parametrize("printed", [False, True], ids=["file", "print"])
async def test_store_key_is_rotated_to_the_end(
    instances: Instances, api: Upstream, issuer: Families, redis_server: Server, *, printed: bool
) -> None:
    """As documented: a fresh key in front, each record under it, the old one taken out; a restart goes on."""
    instances.in_redis(redis_server)
    keys = instances.folder / "keys"
    set_up(instances, api, issuer)
    async with instances.start() as sidecar:
        assert await status(sidecar) == 200
        if printed:
            code, output, errors = await instances.command("keys", "rotate", "--print", str(keys))
            assert code == 0, errors
            keys.write_text(output)
        else:
            code, _, errors = await instances.command("keys", "rotate", "-c", "config.yaml", str(keys))
            assert code == 0, errors
        await eventually(lambda: sealed_with(instances), 1)
        keys.write_text(keys.read_text().split()[0])
        assert await sealed_with(instances) == 1
        assert await instances.renew(sidecar) == 200
    async with instances.start() as sidecar:
        assert await status(sidecar) == 200
        assert await instances.renew(sidecar) == 200
    assert issuer.calls == ["alice"] * 3
    assert issuer.reused == []


async def sealed_with(instances: Instances) -> int:
    """Return which key of the list has sealed the record, as `token show` says."""
    code, output, errors = await instances.command("token", "show", "--json", "-c", "config.yaml")
    assert code == 0, errors
    found: int = json.loads(output)["plm"]["sealed_with"]["key"]
    return found
