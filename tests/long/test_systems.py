"""A night of scripts against Arena and Teamcenter: all four clients on two sidecars, a death every few calls."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.test_systems import CLIENTS, SYSTEMS, WITHIN, clean, stage, together, two
from tests.redis_servers import Server, redis_of_session, redis_server

__all__ = ["redis_of_session", "redis_server"]

ROUNDS = 12


@pytest.mark.parametrize("name", SYSTEMS)
async def test_a_night_of_scripts(tmp_path: Path, redis_server: Server, name: str) -> None:
    """No failure, every write done once, one login for each death, nothing of the scripts' own at the vendor."""
    changes = {"recipe": WITHIN} if name == "arena" else {}
    async with (
        stage(tmp_path, name, dies_after=list(range(9, 10_000, 17))) as at,
        two(at, redis_server, **changes) as addresses,
    ):
        for number in range(ROUNDS):
            found = await together(at, list(CLIENTS), addresses)
            assert [told["failures"] for told, _ in found] == [[]] * len(CLIENTS), (number, found)
            for key in list(at.system.rows):
                assert at.system.rows.pop(key) == 1, key
            clean(at, *(output for _, output in found))
            await asyncio.sleep(0)
        counters = at.system.counters
        assert counters["deaths"] >= ROUNDS
        assert counters["logins"] <= counters["deaths"] + 1
        assert counters["logouts"] == 0
        print(f"{name}: {counters['calls']} calls, {counters['deaths']} deaths, {counters['logins']} logins")
