"""What a credential holds: memory and store made one, whatever is in the way; and no clock prolongs a life."""

import asyncio
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.auth.grant import Anew
from sidecar.errors import (
    BrokenOff,
    ConfigurationError,
    CredentialRejected,
    IssuerError,
    IssuerUnavailable,
    Misplaced,
    Refusal,
    StoreError,
)
from sidecar.events import StoreTrouble
from sidecar.secret import Secret
from sidecar.tokens.held import Held
from sidecar.tokens.marker import Marker
from sidecar.tokens.record import Record, Rejection
from sidecar.tokens.seal import KeyRing, new_key
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import MAX_GENERATION, Stored
from sidecar.tokens.token import Token
from tests.canary import canary, leaks
from tests.unit.broker_rig import (
    DUE,
    FIRST,
    KEY,
    LIFETIME,
    REFRESH,
    USABLE,
    WALL,
    FakeClock,
    Rig,
    access,
    bare,
    record,
    refused,
    rig,
    settle,
    token,
)
from tests.waiting import until

__all__ = ["rig"]


# the store


async def test_each_call_gets_the_newest_refresh_token(rig: Rig) -> None:
    """A rotated refresh token replaces the old one; none in the answer keeps it (RFC 6749 section 6)."""
    one, two = Secret(canary("refresh-1")), Secret(canary("refresh-2"))
    rig.issuer.answers.extend([{"kept": one}, {}, {"kept": two}, {}])
    broker = await rig.started()
    for _ in range(4):
        await broker.renew()
    assert rig.issuer.calls == [None, one.reveal(), one.reveal(), two.reveal(), two.reveal()]
    assert (await rig.stored()).kept == two


@pytest.mark.parametrize(("kept", "rotates"), [(None, False), (REFRESH, False), (Secret(canary("new")), True)])
async def test_whether_refresh_tokens_rotate_is_learned(rig: Rig, kept: Secret | None, rotates: bool) -> None:
    """By what comes back for one: another, the same, or none. What is configured alone teaches nothing."""
    await rig.put(record(7, left=1))
    rig.issuer.answers.extend([{"kept": REFRESH}, {"kept": kept}])
    broker = await rig.started()
    assert (await rig.stored()).rotates is None
    await broker.renew()
    assert (await rig.stored()).rotates is rotates


async def test_a_token_is_stored_before_it_is_used(rig: Rig) -> None:
    """A crash right after the first use of a token must not lose the refresh token that came with it."""
    seen: list[Token | None] = []
    broker = rig.broker()
    write = rig.shaky.write

    async def watched(key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        await asyncio.sleep(0)
        seen.append(broker.current())
        return await write(key, sealed, generation, after=after, release=release)

    rig.shaky.write = watched  # type: ignore[method-assign]
    assert (await broker.token(rig.after(60))).granted == 1
    await broker.renew()
    assert [known.granted if known else None for known in seen] == [None, 1]


@pytest.mark.parametrize(
    ("error", "detail"), [(StoreError("disk full"), "disk full"), (KeyError(canary("x")), "internal error: KeyError")]
)
async def test_a_store_that_cannot_be_read_is_told_of(rig: Rig, error: Exception, detail: str) -> None:
    """By what a store of ours says; what another exception says may be a secret."""
    broker = await rig.started(check_every=10)
    rig.shaky.reading = error
    await rig.clock.advance(11)
    about = {"where": "token store of plm", "upstream": "plm"}
    assert rig.troubles() == [StoreTrouble(**about, operation="read", detail=f"read: {detail}")]
    assert broker.status().usable


async def test_a_broken_store_fails_no_request(rig: Rig) -> None:
    """Memory goes on without its store, which is reported; what could not be written is written later."""
    rig.shaky.failing = StoreError("disk full")
    broker = await rig.started(check_every=10)
    operations = [event.operation for event in rig.events if isinstance(event, StoreTrouble)]
    assert operations == ["read", "lease", "write"]
    await rig.clock.advance(11)
    rig.shaky.failing = None
    await rig.clock.advance(10)
    assert (await rig.stored()).token == broker.current()
    assert len(rig.issuer.calls) == 1


async def test_a_broken_store_does_not_forget_a_401s_renewal(rig: Rig) -> None:
    """What is known of the credential is known in memory too while it cannot be written."""
    broker = await rig.started(min_interval=50)
    rig.shaky.fail()
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    await rig.clock.advance(20)
    assert await broker.after(used, rig.after(60)) is None
    assert len(rig.issuer.calls) == 2


async def test_a_failed_publication_is_tried_again(rig: Rig) -> None:
    """Each second, and each failure is told."""
    rig.shaky.writing = StoreError("disk full")
    broker = await rig.started(check_every=30)
    assert broker._holding.unsaved
    await rig.clock.advance(2)
    assert broker._holding.unsaved
    assert [event.detail for event in rig.troubles()] == ["write: disk full"] * 3
    rig.shaky.writing = None
    await rig.clock.advance(1)
    assert not broker._holding.unsaved
    assert (await rig.stored()).token == broker.current()


async def test_a_store_that_came_back_empty_or_older_is_filled_again(rig: Rig) -> None:
    """What memory has is for all: the record is published at the next look, without a call to the issuer."""
    broker = await rig.started(check_every=10)
    await broker.renew()
    before = await rig.stored()
    rig.shaky.wipe()
    await rig.clock.advance(11)
    assert await rig.stored() == before
    rig.shaky.wipe()
    await rig.put(record(1))
    await rig.clock.advance(11)
    assert await rig.stored() == before
    assert len(rig.issuer.calls) == 2


async def test_a_token_that_is_over_is_not_published(rig: Rig) -> None:
    """It would be of no use there."""
    broker = await rig.started(check_every=10)
    rig.issuer.default = IssuerUnavailable("down")
    await rig.clock.advance(LIFETIME)
    rig.shaky.wipe()
    await rig.clock.advance(60)
    assert await rig.store.read(KEY) == Stored()
    assert not broker.status().usable


async def test_the_newest_refresh_token_is_published_without_a_token(rig: Rig) -> None:
    """Where it is all there is, the store has it again before it is used."""
    rig.issuer.anew = Anew.ONCE
    await rig.put(record(7, kept=REFRESH, claimed=True))
    rig.issuer.default = IssuerUnavailable("down")
    await rig.begun(check_every=10)
    await rig.clock.advance(LIFETIME)
    calls = len(rig.issuer.calls)
    rig.shaky.wipe()
    await rig.clock.advance(60)
    assert (await rig.stored()).kept == REFRESH
    assert len(rig.issuer.calls) > calls
    assert set(rig.issuer.calls) == {REFRESH.reveal()}


async def test_after_a_loss_a_holder_gets_its_lease_first(rig: Rig) -> None:
    """The store forgot who has the lease: for six seconds nobody new takes it where a refresh token could be used."""
    rig.issuer.anew = Anew.ONCE
    await rig.put(record(7, kept=REFRESH, claimed=True))
    await rig.started(check_every=5)
    await rig.clock.advance(DUE - 1)
    rig.shaky.wipe()
    await rig.clock.advance(6)
    assert (rig.issuer.calls, rig.shaky.holder()) == ([], None)
    await rig.clock.advance(1.5)
    assert rig.issuer.calls == [REFRESH.reveal()]


async def test_nothing_of_value_means_no_wait_for_a_forgotten_lease(rig: Rig) -> None:
    """Where there is no refresh token the renewal goes on at once."""
    broker = await rig.started(check_every=5)
    await rig.clock.advance(4)
    rig.shaky.wipe()
    await rig.clock.advance(1.5)
    assert (await rig.stored()).token == broker.current()
    await asyncio.wait_for(broker.renew(), 10)
    assert len(rig.issuer.calls) == 2


async def test_a_publication_gives_way_to_who_was_faster(rig: Rig) -> None:
    """Somebody wrote between our look and our writing: the next look takes that over."""
    broker = await rig.started(check_every=10)
    rig.shaky.wipe()
    rig.shaky.refusing = True
    await rig.clock.advance(11)
    rig.shaky.refusing = False
    assert broker._holding.granted == 1
    await rig.put(record(2))
    await rig.clock.advance(11)
    assert broker.current() == token(2)


async def test_a_late_publication_does_not_hide_a_newer_token(rig: Rig) -> None:
    """If the token changes while the old one is written again, the new one is still to be written."""
    rig.shaky.writing = StoreError("disk full")
    broker = await rig.started(check_every=30)
    write = rig.shaky.write

    async def slow(key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        rig.shaky.write = write  # type: ignore[method-assign]
        await broker.renew()
        return True

    rig.shaky.write = slow  # type: ignore[method-assign]
    await rig.clock.advance(1)
    assert bare(broker.current()).values == access(2)
    assert broker._holding.unsaved
    rig.shaky.writing = None
    await rig.clock.advance(2)
    assert (await rig.stored()).token == broker.current()
    assert not broker._holding.unsaved


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


async def test_what_may_be_obtained_once_is_not_thrown_away_for_another(rig: Rig) -> None:
    """The grant has the only refresh token that is good: it is written over what came meanwhile."""
    rig.issuer.anew = Anew.ONCE
    rig.issuer.gate.clear()
    rig.issuer.default = {"kept": REFRESH}
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await rig.put(record(4))
    rig.issuer.gate.set()
    assert (await waiter).values == access(1)
    stored = await rig.stored()
    assert (stored.generation, stored.kept, stored.token) == (5, REFRESH, broker.current())


async def test_a_revocation_wins_over_a_renewal_under_way(rig: Rig) -> None:
    """What the issuer still grants to it is thrown away, on every instance, and the next renewal is a new one."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await rig.put(Record(generation=4, revoked=True))
    rig.issuer.gate.set()
    await rig.clock.advance(1)
    assert (await waiter).values == access(2)
    assert [event.detail for event in rig.renewals()] == ["an operator revoked the token while it was renewed", ""]
    assert (await rig.stored()).generation == 5


async def test_a_revocation_takes_a_token_that_is_not_stored_yet(rig: Rig) -> None:
    """A mark in the store is never written over by what memory has."""
    rig.shaky.writing = StoreError("disk full")
    broker = await rig.started(check_every=30)
    await rig.put(Record(generation=9, revoked=True))
    rig.shaky.writing = None
    rig.issuer.gate.clear()
    await rig.clock.advance(1)
    assert broker.current() is None
    assert (await rig.stored()).revoked


@pytest.mark.parametrize("once", [False, True])
async def test_of_two_that_renewed_without_the_store_one_is_for_all(rig: Rig, once: bool) -> None:
    """The stored one if it lasts; ours where it alone has the newest refresh token."""
    rig.issuer.anew = Anew.ONCE if once else Anew.FREE
    rig.issuer.gate.clear()
    rig.issuer.default = {"kept": REFRESH}
    broker = await rig.begun(check_every=30)
    rig.shaky.writing = StoreError("disk full")
    rig.issuer.gate.set()
    await settle()
    assert bare(broker.current()).values == access(1)
    await rig.put(record(9))
    rig.shaky.writing = None
    await rig.clock.advance(2)
    stored = await rig.stored()
    assert stored.token == broker.current()
    assert bare(broker.current()).values == (access(1) if once else token(9).values)
    assert stored.generation == (10 if once else 9)


async def test_a_record_that_is_of_less_use_than_ours_is_written_over(rig: Rig) -> None:
    """Without the store we got a token; what is there is over."""
    rig.shaky.writing = StoreError("disk full")
    broker = await rig.started(check_every=30)
    await rig.put(record(9, left=0))
    rig.shaky.writing = None
    await rig.clock.advance(1)
    assert bare(broker.current()).values == access(1)
    assert await rig.stored() == Record(generation=10, token=broker.current())


async def test_an_adopted_token_keeps_its_age(rig: Rig) -> None:
    """What another process was granted a while ago does not start a new life here, whatever the wall clock does."""
    rig.issuer.gate.clear()
    broker = await rig.begun(check_every=0)
    await rig.put(record(4, left=50))
    rig.issuer.gate.set()
    await settle()
    assert broker.status().generation == 4
    rig.clock.wall -= 3600
    await rig.clock.advance(USABLE - 50.1)
    assert broker.status().usable
    await rig.clock.advance(0.2)
    assert not broker.status().usable


@pytest.mark.parametrize("other", ["expired", "without a token", "unreadable"])
async def test_a_useless_newer_record_is_written_over(rig: Rig, other: str) -> None:
    """A newer record that helps nobody does not cost the token just granted, nor its refresh token."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    if other == "unreadable":
        await rig.put_bytes(b"garbage", 4)
    else:
        await rig.put(record(4, left=0) if other == "expired" else Record(generation=4))
    rig.issuer.gate.set()
    assert (await waiter).values == access(1)
    assert (await rig.stored()).token == await waiter
    assert (await rig.stored()).generation == 5
    assert len(rig.issuer.calls) == 1


async def test_a_store_that_always_has_a_newer_one_is_given_up(rig: Rig) -> None:
    """A store gone mad does not hold up the token: it is used from memory, and reported."""
    rig.shaky.refusing = True
    broker = await rig.started()
    assert broker.current() is not None
    assert rig.shaky.commands.count("write") == 3
    assert "in the way" in rig.troubles()[-1].detail


async def test_a_damaged_record_is_mended_from_memory(rig: Rig) -> None:
    """Whoever has the token still writes it over, and nobody asks the issuer for that."""
    broker = await rig.started(check_every=10)
    before = await rig.stored()
    await rig.put_bytes(b"garbage", 99)
    await rig.clock.advance(11)
    assert await rig.stored() == before
    assert broker.status().usable
    assert [trouble.operation for trouble in rig.troubles()] == ["read"]
    await rig.clock.advance(DUE - 11)
    assert len(rig.issuer.calls) == 2


@pytest.mark.parametrize(("generation", "mended"), [(7, True), (6, True), (8, False)])
async def test_damage_that_may_hide_a_newer_refresh_token_is_left(rig: Rig, generation: int, mended: bool) -> None:
    """Where the newest record alone will do, ours is only what it is mended with if nothing newer can be in it."""
    rig.issuer.anew = Anew.ONCE
    before = record(7, kept=REFRESH, claimed=True)
    await rig.put(before)
    broker = await rig.started(check_every=10)
    await rig.put_bytes(b"garbage", generation)
    await rig.clock.advance(11)
    found = await rig.store.read(KEY)
    assert (found.sealed != b"garbage") is mended
    assert broker.status().usable
    await rig.clock.advance(DUE - 11)
    assert rig.issuer.calls == ([REFRESH.reveal()] if mended else [])
    assert broker.status().state == ("valid" if mended else "rejected")


async def test_sqlite_from_end_to_end(rig: Rig, tmp_path: Path) -> None:
    """A token outlives its process in SQLite, sealed: nothing of it is in the files."""
    rig.store = SqliteStore(tmp_path)
    rig.issuer.default = {"kept": REFRESH}
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


# what this machine has seen

REJECTION = Rejection(at=WALL, secrets="s", salt="s", error="", message="no", count=1, until=None)


def marked(rig: Rig, tmp_path: Path) -> Marker:
    """Let brokers note what they have seen, and return where."""
    rig.issuer.anew, rig.marks = Anew.ONCE, tmp_path / "presented"
    rig.issuer.default = {"kept": REFRESH}
    return Marker(rig.marks, FIRST)


async def test_what_was_granted_is_noted_on_this_machine(rig: Rig, tmp_path: Path) -> None:
    """Before the first refresh token is presented, and again when its successor is stored."""
    marker = marked(rig, tmp_path)
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await until(lambda: len(rig.issuer.calls) == 1, "the call")
    assert await marker.read() == 1
    assert (await rig.stored()).claimed
    rig.issuer.gate.set()
    await waiter
    again = Marker(tmp_path / "presented", FIRST)
    assert await again.read() == (await rig.stored()).generation == 2


@pytest.mark.parametrize(
    ("fields", "noted"),
    [({"claimed": True}, 0), ({"kept": REFRESH}, 7), ({"rejection": REJECTION, "token": None}, 0)],
    ids=["claimed", "kept", "nothing"],
)
async def test_what_another_instance_presented_is_noted_too(
    rig: Rig, tmp_path: Path, fields: dict[str, object], noted: int
) -> None:
    """Its machine may be another; what nobody presented for leaves no mark."""
    marker = marked(rig, tmp_path)
    await rig.put(record(7, **fields))
    await rig.broker().recall()
    assert await marker.read() == noted


async def test_a_mark_that_cannot_be_written_is_told_of(rig: Rig, tmp_path: Path) -> None:
    """The token of another instance is of use all the same."""
    marked(rig, tmp_path)
    (tmp_path / "presented").symlink_to(tmp_path / "not-mounted")
    await rig.put(record(7, kept=REFRESH))
    broker = rig.broker()
    await broker.recall()
    assert broker.current() == token(7)
    assert [event.operation for event in rig.events if isinstance(event, StoreTrouble)] == ["write"]


@pytest.mark.parametrize(
    ("there", "why"),
    [(None, "the record is gone; this machine has seen generation 2"), (1, "is that of generation 1, an older one")],
)
async def test_a_store_that_lost_the_record_is_not_believed(
    rig: Rig, tmp_path: Path, there: int | None, why: str
) -> None:
    """After a restart nothing of an emptied store, or of one that was put back, is presented: it is spent."""
    marker = marked(rig, tmp_path)
    await marker.write(2)
    if there:
        await rig.put(record(there, kept=REFRESH, claimed=True))
    broker = rig.broker()
    with pytest.raises(Refusal, match=r"log in anew and set the new refresh_token") as caught:
        await broker.token(rig.after(60))
    assert why in caught.value.detail
    assert rig.issuer.calls == []
    assert broker.current() is None


async def test_a_living_instance_has_what_the_store_lost(rig: Rig, tmp_path: Path) -> None:
    """It is published again, and nobody has to see to it."""
    marked(rig, tmp_path)
    broker = rig.broker()
    await broker.token(rig.after(60))
    before = await rig.stored()
    rig.shaky.wipe()
    await broker.recall()
    assert await rig.stored() == before
    other = rig.broker()
    await other.recall()
    assert other.current() == broker.current()


async def test_a_mark_that_cannot_be_read_keeps_the_refresh_token(rig: Rig, tmp_path: Path) -> None:
    """It may say that the store is old; the file is named."""
    marked(rig, tmp_path)
    await rig.put(record(7, kept=REFRESH, claimed=True))
    await Marker(tmp_path / "presented", FIRST).write(7)
    (mark,) = (tmp_path / "presented").iterdir()
    mark.write_text("rubbish")
    broker = rig.broker()
    assert mark.name in (await refused(broker.token(rig.after(60)))).detail
    assert rig.issuer.calls == []


async def test_without_marks_nothing_is_presented(rig: Rig, tmp_path: Path) -> None:
    """A state directory that cannot be written keeps the first refresh token, and leaves the record as it was."""
    marked(rig, tmp_path)
    (tmp_path / "presented").symlink_to(tmp_path / "not-mounted")
    broker = rig.broker()
    with pytest.raises(IssuerUnavailable, match="cannot be noted, so that it is kept"):
        await broker.renew()
    assert rig.issuer.calls == []
    stored = await rig.stored()
    assert (stored.claimed, stored.presented) == (False, None)


@pytest.mark.parametrize(
    "answer", [IssuerUnavailable("busy"), Misplaced("a page"), ConfigurationError("no such file")], ids=str
)
async def test_a_mark_of_what_was_not_taken_is_withdrawn(rig: Rig, tmp_path: Path, answer: Exception) -> None:
    """The issuer saw nothing of the first refresh token: a store that is emptied then costs nothing."""
    marker = marked(rig, tmp_path)
    rig.issuer.answers.append(answer)
    broker = rig.broker()
    with pytest.raises(IssuerError):
        await broker.renew()
    assert list((tmp_path / "presented").iterdir()) == []
    assert (await rig.stored()).claimed is False
    assert await marker.read() == 0


@pytest.mark.parametrize("answer", [BrokenOff("gone"), CredentialRejected("invalid_grant", "no")], ids=str)
async def test_a_mark_of_what_may_be_spent_stays(rig: Rig, tmp_path: Path, answer: Exception) -> None:
    """Whoever was asked with it knows it now."""
    marker = marked(rig, tmp_path)
    await rig.put(Record(generation=3))
    rig.issuer.answers.append(answer)
    broker = rig.broker()
    with pytest.raises(IssuerError):
        await broker.renew()
    assert await marker.read() >= (4 if isinstance(answer, BrokenOff) else 0)


# what others leave in the store


async def test_a_foreign_record_is_left_alone(rig: Rig) -> None:
    """Another key sealed it, for instances that have it: ours gets a token for itself, until the operator says so."""
    sealed = KeyRing([Secret(new_key())]).seal(KEY, record(5).encode())
    await rig.put_bytes(sealed, 5)
    broker = await rig.started(check_every=30)
    await rig.clock.advance(DUE + 1)
    assert len(rig.issuer.calls) == 2
    assert await rig.store.read(KEY) == Stored(5, sealed)
    assert any("a key we do not have" in event.detail for event in rig.troubles())
    await broker.renew()
    assert (await rig.stored()).token == broker.current()
    assert (await rig.stored()).generation > 5


@pytest.mark.parametrize("anew", [Anew.ONCE, Anew.EVICTS])
async def test_behind_a_foreign_record_nothing_of_value_is_used(rig: Rig, anew: Anew) -> None:
    """Its instances have the refresh token, or the session: ours waits, and takes it up when it can be read."""
    rig.issuer.anew = anew
    await rig.put_bytes(KeyRing([Secret(new_key())]).seal(KEY, record(5).encode()), 5)
    broker = await rig.begun(check_every=5)
    await rig.clock.advance(30)
    assert rig.issuer.calls == []
    assert broker.status().state == "none"
    assert all("is not known here" in event.detail for event in rig.renewals())
    await rig.put(record(6))
    await rig.clock.advance(10)
    assert broker.current() == token(6)


async def test_a_record_of_a_newer_version_is_left_alone(rig: Rig) -> None:
    """A rolling update has both for a while."""
    sealed = rig.ring.seal(KEY, b'{"schema": 3}')
    await rig.put_bytes(sealed, 5)
    broker = await rig.started()
    assert broker.current() is not None
    assert await rig.store.read(KEY) == Stored(5, sealed)


async def test_a_revocation_is_above_what_it_finds(rig: Rig) -> None:
    """Another instance renewed since: that token is revoked too, and that the first one was claimed is kept."""
    rig.issuer.gate.clear()
    broker = rig.broker(check_every=0)
    await broker.recall()
    await rig.put(record(7, kept=REFRESH, claimed=True))
    await broker.revoke()
    assert await rig.stored() == Record(generation=8, revoked=True, claimed=True)


async def test_a_revocation_gives_way_to_a_faster_writer(rig: Rig) -> None:
    """And is above that then; after eight times it says so."""
    broker = await rig.started(check_every=0)
    write, lost = rig.shaky.write, 0

    async def faster(key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        nonlocal lost
        lost += 1
        if lost <= 7:
            await rig.put(record(generation))
        return await write(key, sealed, generation, after=after, release=release)

    rig.shaky.write = faster  # type: ignore[method-assign]
    await broker.revoke()
    assert await rig.stored() == Record(generation=9, revoked=True)
    assert broker._holding.record.generation == 9
    rig.shaky.refusing = True
    with pytest.raises(StoreError, match="ever newer records"):
        await broker.revoke()


async def test_a_revocation_needs_no_place_above_damage(rig: Rig) -> None:
    """A number that no record of ours has is written over from below."""
    broker = await rig.started(check_every=0)
    await rig.put_bytes(b"garbage", MAX_GENERATION)
    await broker.revoke()
    assert await rig.stored() == Record(generation=2, revoked=True)


@pytest.mark.parametrize("ahead", [-300.0, 300.0])
async def test_times_in_the_store_are_the_stores(rig: Rig, ahead: float) -> None:
    """An instance whose clock is minutes off sees the same token end at the same moment."""
    rig.shaky.ahead = ahead
    broker = await rig.started()
    used = await broker.token(0)
    await broker.after(used, rig.after(60))
    stored = await rig.stored()
    other = await rig.begun()
    assert stored.token is not None
    assert stored.token.issued_at == WALL + ahead
    assert stored.token.expires_at == WALL + LIFETIME + ahead
    assert stored.forced_at == WALL + ahead
    assert other.current() == broker.current() is not None
    assert other._holding.record.forced_at == WALL
    assert len(rig.issuer.calls) == 2


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
    await rig.put(record(3, left=LIFETIME - issued_before))
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
