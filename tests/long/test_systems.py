"""A night of scripts against each system: all its clients on two sidecars, a death every few calls."""

import asyncio
from pathlib import Path

import pytest

from sidecar.emulator.systems.known import NAMES
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.stage import SCRIPTED, clean, quick, stage, together, two

__all__ = ["redis_of_session", "redis_server"]

ROUNDS = 12


@pytest.mark.parametrize("name", NAMES)
async def test_a_night_of_scripts(tmp_path: Path, redis_server: Server, name: str) -> None:
    """No failure, every write done once, one login for each death, nothing of the scripts' own at the vendor."""
    clients = [client for each, client in SCRIPTED if each == name]
    async with (
        stage(tmp_path, name, dies_after=list(range(9, 10_000, 17))) as at,
        two(at, redis_server, **quick(name)) as addresses,
    ):
        for number in range(ROUNDS):
            found = await together(at, clients, addresses)
            assert [told["failures"] for told, _ in found] == [[]] * len(clients), (number, found)
            for key in list(at.system.rows):
                assert at.system.rows.pop(key) == 1, key
            clean(at, *(output for _, output in found))
            await asyncio.sleep(0)
        counters = at.system.counters
        assert counters["deaths"] >= ROUNDS
        assert counters["logins"] <= counters["deaths"] + 1
        assert counters["logouts"] == 0
        print(f"{name}: {counters['calls']} calls, {counters['deaths']} deaths, {counters['logins']} logins")
