"""What a credential holds: memory and store made one, whatever is in the way; and no clock prolongs a life."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.auth.grant import Anew
from sidecar.errors import StoreError
from sidecar.events import StoreTrouble
from sidecar.secret import Secret
from sidecar.tokens.held import Held
from sidecar.tokens.record import Record
from sidecar.tokens.seal import KeyRing, new_key
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.token import Token
from tests.canary import canary, leaks
from tests.unit.broker_rig import DUE, KEY, LIFETIME, USABLE, WALL, FakeClock, Rig, access, bare, record, rig, settle, token

__all__ = ["rig"]


# the store


async def test_each_call_gets_the_newest_refresh_token(rig: Rig) -> None:
    """A rotated refresh token replaces the old one; none in the answer keeps it (RFC 6749 section 6)."""
    one, two = Secret(canary("refresh-1")), Secret(canary("refresh-2"))
    rig.issuer.answers.extend([{"refresh_token": one}, {}, {"refresh_token": two}, {}])
    broker = await rig.started()
    for _ in range(4):
        await broker.renew()
    assert rig.issuer.calls == [None, one.reveal(), one.reveal(), two.reveal(), two.reveal()]
    assert (await rig.stored()).refresh_token == two


async def test_a_token_is_stored_before_it_is_used(rig: Rig) -> None:
    """A crash right after the first use of a token must not lose the refresh token that came with it."""
    seen: list[Token | None] = []

    class Watched(MemoryStore):
        async def write(self, key: str, generation: int, sealed: bytes) -> bool:
            await asyncio.sleep(0)
            seen.append(broker.current())
            return await super().write(key, generation, sealed)

    rig.store = Watched()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    assert (await waiter).granted == 1
    await broker.renew()
    assert [known.granted if known else None for known in seen] == [None, 1]


class Broken(MemoryStore):
    """A store whose reads or writes fail while it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: Exception | None = None
        self.writing: Exception | None = None

    async def read(self, key: str) -> Stored:
        if self.reading:
            raise self.reading
        return await super().read(key)

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        if self.writing:
            raise self.writing
        return await super().write(key, generation, sealed)

    async def delete(self, key: str) -> None:
        if self.writing:
            raise self.writing
        await super().delete(key)


@pytest.mark.parametrize(
    ("error", "detail"), [(StoreError("disk full"), "disk full"), (KeyError(canary("x")), "internal error: KeyError")]
)
async def test_a_broken_store_fails_no_request(rig: Rig, error: Exception, detail: str) -> None:
    """Memory goes on without its store, which is reported; what could not be written is written later."""
    store = rig.shaky
    store.reading = store.writing = error
    broker = await rig.started(check_every=10)
    about = {"where": "token store of plm", "upstream": "plm"}
    assert rig.troubles()[0] == StoreTrouble(**about, operation="read", detail=f"read: {detail}")
    assert rig.troubles()[-1] == StoreTrouble(**about, operation="write", detail=f"write: {detail}")
    await rig.clock.advance(11)
    store.reading = store.writing = None
    await rig.clock.advance(10)
    assert (await rig.stored()).token == broker.current()
    assert len(rig.issuer.calls) == 1


async def test_a_store_that_came_back_empty_or_older_is_filled_again(rig: Rig) -> None:
    """What memory has is for all: the record is published at the next look, without a call to the issuer."""
    broker = await rig.started(check_every=10)
    await broker.renew()
    stored = await rig.stored()
    rig.shaky.wipe()
    await rig.clock.advance(11)
    assert (await rig.stored()).token == stored
    rig.shaky.wipe()
    await rig.put(record(1))
    await rig.clock.advance(11)
    assert (await rig.stored()).token == stored
    assert len(rig.issuer.calls) == 2


async def test_a_late_write_does_not_hide_a_newer_one(rig: Rig) -> None:
    """If the token changes while the old one is written again, the new one is still to be written."""
    store = rig.shaky
    store.writing = StoreError("disk full")
    broker = await rig.started(check_every=30)
    held = broker._holding

    async def slow(key: str, generation: int, sealed: bytes) -> bool:
        store.write = type(store).write.__get__(store)  # type: ignore[method-assign]
        await broker.renew()
        return True

    store.write = slow  # type: ignore[method-assign]
    await rig.clock.advance(30)
    assert held.unsaved
    store.writing = None
    await rig.clock.advance(30)
    assert (await rig.stored()).token == broker.current()
    assert (await rig.stored()).generation == 2


async def test_a_newer_record_of_another_process_is_adopted(rig: Rig) -> None:
    """Who comes second to the store uses what is there: one token for all."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await rig.put(record(4))
    rig.issuer.gate.set()
    assert await waiter == token(4)
    assert broker.current() == (await rig.stored()).token
    assert [(event.result, event.generation) for event in rig.renewals()] == [("ok", 4)]
    await broker.renew()
    assert (await rig.stored()).generation == 5


async def test_an_adopted_token_keeps_its_age(rig: Rig) -> None:
    """What another process was granted a while ago does not start a new life here, whatever the wall clock does."""
    rig.issuer.gate.clear()
    broker = rig.broker(check_every=0)
    await broker.start()
    await settle()
    await rig.put(record(4, issued_at=WALL - 50, expires_at=WALL - 50 + LIFETIME))
    rig.issuer.gate.set()
    await settle()
    assert broker.status().generation == 4
    rig.clock.wall -= 3600
    await rig.clock.advance(USABLE - 50.1)
    assert broker.status().usable
    await rig.clock.advance(0.2)
    assert not broker.status().usable


@pytest.mark.parametrize("other", ["expired", "refused", "unreadable"])
async def test_a_useless_newer_record_is_written_over(rig: Rig, other: str) -> None:
    """A newer record that helps nobody does not cost the token just granted, nor its refresh token."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    if other == "unreadable":
        await rig.store.write(KEY, 4, b"garbage")
    else:
        await rig.put(record(4, **({"issued_at": 0.0, "expires_at": 1.0} if other == "expired" else {"refused": True})))
    rig.issuer.gate.set()
    assert (await waiter).values == access(1)
    assert (await rig.stored()).token == await waiter
    assert (await waiter).granted == 5
    assert len(rig.issuer.calls) == 1


async def test_a_store_that_always_has_a_newer_one_is_given_up(rig: Rig) -> None:
    """A store gone mad does not hold up the token: it is used from memory, and reported."""

    class Mad(MemoryStore):
        async def write(self, key: str, generation: int, sealed: bytes) -> bool:
            return False

    rig.store = Mad()
    broker = await rig.started()
    assert broker.current() is not None
    assert "in the way" in rig.troubles()[-1].detail


async def test_sqlite_from_end_to_end(rig: Rig, tmp_path: Path) -> None:
    """A token outlives its process in SQLite, sealed: nothing of it is in the files."""
    rig.store = SqliteStore(tmp_path)
    rig.issuer.default = {"kept": Secret(canary("refresh"))}
    first = rig.broker()
    await first.start()
    got = await first.token(rig.after(60))
    await first.aclose()
    second = rig.broker()
    await second.start()
    assert second.current() == got
    assert len(rig.issuer.calls) == 1
    assert leaks(tmp_path) == []


async def test_a_corrupt_database_leaves_memory(rig: Rig, tmp_path: Path) -> None:
    """A damaged file is reported and left alone; tokens come from the issuer and live in memory."""
    (tmp_path / "store.db").write_bytes(b"no database" * 1000)
    rig.store = SqliteStore(tmp_path)
    broker = rig.broker()
    await broker.start()
    assert (await broker.token(rig.after(60))).granted == 1
    assert "file is not a database" in rig.troubles()[0].detail
    assert (tmp_path / "store.db").read_bytes() == b"no database" * 1000



# clocks


async def test_a_jump_forward_expires_early_at_worst(rig: Rig) -> None:
    """A wall clock set forward ends the token's life for us; one renewal, no more."""
    broker = await rig.started()
    rig.clock.wall += 3600
    assert broker.current() is None
    assert (await broker.token(rig.after(60))).granted == 2
    await rig.clock.advance(DUE - 1)
    assert len(rig.issuer.calls) == 2


@pytest.mark.parametrize("jump", [-3600.0, -60.0])
async def test_a_jump_back_does_not_prolong_a_life(rig: Rig, jump: float) -> None:
    """Set back, the wall clock cannot make a token live longer than it was granted, nor be due later."""
    broker = await rig.started(check_every=0)
    rig.clock.wall += jump
    await rig.clock.advance(DUE - 0.1)
    assert broker.status().state == "valid"
    await rig.clock.advance(0.2)
    assert broker.status().state == "due"
    await rig.clock.advance(USABLE - DUE)
    assert broker.current() is None


async def test_a_slow_answer_does_not_prolong_a_life(rig: Rig) -> None:
    """The lifetime counts from before the call, on both clocks."""
    rig.issuer.gate.clear()
    broker = rig.broker(check_every=0)
    await broker.start()
    await rig.clock.advance(20)
    rig.clock.wall -= 3600
    rig.issuer.gate.set()
    await rig.clock.advance(USABLE - 20.1)
    assert broker.status().usable
    await rig.clock.advance(0.2)
    assert not broker.status().usable


@pytest.mark.parametrize(("issued_before", "left"), [(50.0, USABLE - 50), (-50.0, USABLE)])
async def test_a_stored_token_lives_no_longer_than_granted(rig: Rig, issued_before: float, left: float) -> None:
    """A token of another process keeps its age; one that seems to come from the future is new at most."""
    await rig.put(record(3, issued_at=WALL - issued_before, expires_at=WALL - issued_before + LIFETIME))
    broker = await rig.started(check_every=0)
    rig.clock.wall -= 3600
    await rig.clock.advance(left - 0.1)
    assert broker.status().usable
    await rig.clock.advance(0.2)
    assert not broker.status().usable


@given(
    steps=st.lists(st.tuples(st.floats(0, 50), st.floats(-1e6, 1e6)), min_size=1, max_size=10),
    lifetime=st.floats(1, 100),
)
def test_no_clock_makes_a_token_outlive_its_lifetime(steps: list[tuple[float, float]], lifetime: float) -> None:
    """However the wall clock jumps, a token is over when its lifetime has passed on the monotonic one."""
    clock = FakeClock()
    held = Held(token(expires_at=WALL + lifetime), born=clock.mono, due=math.inf)
    for seconds, jump in steps:
        clock._pass(seconds)
        clock.wall += jump
        assert not held.lasts(clock) or clock.mono - 1000.0 < lifetime


