"""Which sessions the last instance of a fleet logs out of when it stops: those that no other instance uses."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.clock import Clock
from sidecar.run.credentials import Shared
from sidecar.run.stores import keep_announcing, leave, others_use
from sidecar.secret import Secret
from sidecar.tokens.broker import Broker
from sidecar.tokens.seal import KeyRing, Keys, new_key
from tests.unit.broker_rig import KEY, Rig, bare, fleet_rig, settle

__all__ = ["fleet_rig"]


def shared(rig: Rig, owner: str, folder: Path) -> Shared:
    """Return what the brokers of the instance *owner* have in common."""
    clock: Clock = rig.clock
    keys = Keys(lambda: rig.ring, clock)
    return Shared(store=rig.store, keys=keys, owner=owner, clock=clock, emit=rig.events.append, marks=folder)


async def served(rig: Rig, *, session: bool = True) -> Broker:
    """Start the broker of an instance."""
    broker = rig.broker(session=session)
    await broker.start()
    await settle()
    return broker


async def announce(rig: Rig, of: Shared, brokers: Mapping[str, Broker]) -> asyncio.Task[None]:
    """Leave word as an instance does that serves *brokers*; return what goes on to."""
    task = rig.later(keep_announcing(of, lambda: {name: (broker,) for name, broker in brokers.items()}))
    await settle()
    return task


async def test_the_last_instance_logs_out_and_no_other_does(fleet_rig: Rig, tmp_path: Path) -> None:
    """Each takes its own word back first, so that the last one finds nobody."""
    rig = fleet_rig
    ours = [(shared(rig, f"node/{number}", tmp_path), await served(rig)) for number in (1, 2)]
    tasks = [await announce(rig, each, {"plm": broker}) for each, broker in ours]
    token = bare(ours[0][1].current())
    assert await others_use(ours[0][0], [KEY, "another"]) == {KEY}
    tasks[0].cancel()
    await leave(ours[0][0], [ours[0][1]])
    assert rig.issuer.released == []
    assert ours[1][1].current() == token
    tasks[1].cancel()
    await leave(ours[1][0], [ours[1][1]])
    assert rig.issuer.released == [token.values]


async def test_an_instance_that_was_killed_counts_until_its_word_is_over(fleet_rig: Rig, tmp_path: Path) -> None:
    """Half a minute: a logout while it still runs would be worse than none."""
    rig = fleet_rig
    broker = await served(rig)
    dead = await announce(rig, shared(rig, "node/1", tmp_path), {"plm": broker})
    dead.cancel()
    ours = shared(rig, "node/2", tmp_path)
    assert await others_use(ours, [KEY]) == {KEY}
    await rig.clock.advance(31)
    assert await others_use(ours, [KEY]) == frozenset()


@pytest.mark.parametrize("word", ["foreign", "not json", "a list"])
async def test_a_word_that_cannot_be_read_may_name_every_session(fleet_rig: Rig, tmp_path: Path, word: str) -> None:
    """Of an instance with a newer store key, or a later release."""
    rig = fleet_rig
    broker, ours = await served(rig), shared(rig, "node/1", tmp_path)
    clock: Clock = rig.clock
    made = KeyRing([Secret(new_key())])
    keys = Keys(lambda: made, clock) if word == "foreign" else ours.keys
    text = {"foreign": json.dumps({"sessions": []}), "not json": "{", "a list": "[1]"}[word]
    sealed = keys.seal("auth-sidecar:instances:node/2", text.encode())
    await rig.store.announce("node/2", sealed, 30)
    await leave(ours, [broker])
    assert rig.issuer.released == []


async def test_without_the_store_nobody_is_logged_out(fleet_rig: Rig, tmp_path: Path) -> None:
    """Who else there is cannot be known."""
    rig = fleet_rig
    broker = await served(rig)
    rig.shaky.fail()
    await leave(shared(rig, "node/1", tmp_path), [broker])
    assert (rig.issuer.released, broker.current() is None) == ([], False)


async def test_an_instance_without_sessions_leaves_as_before(fleet_rig: Rig, tmp_path: Path) -> None:
    """Nothing is asked of the store, and no token is dropped."""
    rig = fleet_rig
    broker = await served(rig, session=False)
    rig.shaky.fail()
    await leave(replace(shared(rig, "node/1", tmp_path)), [broker])
    assert broker.current() is not None
    assert rig.troubles() == []
