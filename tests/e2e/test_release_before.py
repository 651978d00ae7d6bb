"""The release before beside this one, on one Redis, while one takes the place of the other: one login, used in turn."""

import asyncio
import io
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.canary import canary
from tests.faults.instances import Instances, get, instances, plain
from tests.faults.site import state
from tests.fleet import Families, Upstream, families, upstream
from tests.process import Running
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import eventually, until

__all__ = ["instances", "redis_of_session", "redis_server"]

BEFORE = "1d30ce1"
"""The commit of the release before."""
TOP = Path(__file__).parents[2]
CLIENT = {"client_id": "desk", "client_secret": {"value": canary("desk")}}
USER = {**CLIENT, "grant": "password", "username": "u", "password": {"value": canary("user")}}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the release before lies."""
    found = subprocess.run(["git", "archive", BEFORE, "sidecar"], cwd=TOP, capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"commit {BEFORE}, the release before, is not in the history of this copy")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
async def issuer() -> AsyncIterator[Families]:
    async with families() as made:
        yield made


@pytest.fixture
async def api() -> AsyncIterator[Upstream]:
    async with upstream() as made:
        yield made


def set_up(instances: Instances, redis: Server, api: Upstream, issuer: Families, grant: str, **renew: Any) -> None:
    instances.in_redis(redis)
    oauth2 = {"client_credentials": CLIENT, "password": USER}.get(grant) or issuer.settings("alice")
    instances.upstreams["plm"] = plain(api.url, issuer.url, oauth2, renew=renew)


async def status(sidecar: Running) -> int:
    return (await get(sidecar)).status_code


async def same_token(*sidecars: Running) -> bool:
    """Tell whether all use the token of one renewal."""
    return len({(await state(each))["expires_at"] for each in sidecars}) == 1


async def renewed(instances: Instances, sidecar: Running, name: str, *others: Running) -> None:
    """Renew by *sidecar*, and see that the *others* follow."""
    assert await instances.renew(sidecar, process=name) == 200
    await eventually(lambda: same_token(sidecar, *others), True)
    assert {await status(each) for each in (sidecar, *others)} == {200}


@pytest.mark.parametrize("grant", ["refresh_token", "password", "client_credentials"])
async def test_roll_out_and_back_uses_one_login(
    instances: Instances, before: Path, api: Upstream, issuer: Families, redis_server: Server, grant: str
) -> None:
    """The new one takes the record over and asks nobody; both renew in turn and follow each other; back, on again."""
    set_up(instances, redis_server, api, issuer, grant)
    async with instances.start("old", before) as old:
        assert await status(old) == 200
        async with instances.start("new") as new:
            assert await status(new) == 200
            assert len(issuer.calls) == 1
            for _ in range(2):
                await renewed(instances, new, "new", old)
                await renewed(instances, old, "old", new)
            assert len(issuer.calls) == 5
        await renewed(instances, old, "old")
    async with instances.start("new") as new:
        await renewed(instances, new, "new")
    async with instances.start("old", before) as old:
        assert await status(old) == 200
        assert len(issuer.calls) == 7
        await renewed(instances, old, "old")
    async with instances.start("new") as new:
        assert await status(new) == 200
        await renewed(instances, new, "new")
    assert len(issuer.calls) == 9
    assert issuer.reused == []


async def test_both_keep_one_login_fresh(
    instances: Instances, before: Path, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """Over several lifetimes, with one renewal for each, and no request fails."""
    issuer.lifetime = 6
    set_up(instances, redis_server, api, issuer, "refresh_token", margin="3s")
    async with instances.start("old", before) as old, instances.start("new") as new:
        for each in (old, new):
            await eventually(lambda each=each: status(each), 200)
        while len(issuer.calls) < 5:
            assert {await status(old), await status(new)} == {200}
            await asyncio.sleep(0.1)
    assert issuer.calls == ["alice"] * issuer.current["alice"]
    assert issuer.reused == []


async def test_refresh_token_that_an_old_one_was_killed_with_is_left_alone(
    instances: Instances, before: Path, api: Upstream, issuer: Families, redis_server: Server
) -> None:
    """Killed in its call: the new one keeps it while the token lasts, then asks for a person, who may have it tried."""
    issuer.lifetime = 12
    set_up(instances, redis_server, api, issuer, "refresh_token", margin="1s")
    async with instances.start("old", before) as old, instances.start("new") as new:
        for each in (old, new):
            await eventually(lambda each=each: status(each), 200)
        issuer.fates = ["unreached"]
        renewing = asyncio.create_task(instances.renew(old, process="old"))
        await until(lambda: issuer.arrived == 2, "the call")
        old.process.kill()
        await renewing
        await eventually(lambda: status(new), 502)
        assert len(issuer.calls) == 1
        assert await instances.renew(new, process="new") == 200
        assert await status(new) == 200
    assert issuer.calls == ["alice"] * 2
    assert issuer.reused == []
