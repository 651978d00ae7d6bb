"""The record of the release before: taken over, shown to its instances, and never used against them."""

import json
from pathlib import Path

import pytest

from sidecar.auth.grant import Anew
from sidecar.errors import CredentialRejected, Reason, StoreError
from sidecar.secret import Secret
from sidecar.settings import OAuth2
from sidecar.tokens.former import former_identity
from sidecar.tokens.record import Record
from sidecar.tokens.store import Stored, store_key
from tests.canary import canary
from tests.unit.broker_rig import (
    DUE,
    LIFETIME,
    REFRESH,
    TTL,
    WALL,
    Rig,
    access,
    bare,
    fleet_rig,
    refused,
    settle,
)

__all__ = ["fleet_rig"]

FORMER = canary("client-id of the release before")
OLD, NOTE = store_key(FORMER), store_key(FORMER, "note")
AN_OLD_ONE = "old/1"


@pytest.fixture
def rig(fleet_rig: Rig) -> Rig:
    fleet_rig.former = FORMER
    return fleet_rig


def plain(generation: int = 7, **members: object) -> dict[str, object]:
    """Return a record as the release before writes it."""
    return {
        "schema": 1,
        "access_token": canary(f"old-{generation}"),
        "issued_at": WALL,
        "expires_at": WALL + LIFETIME,
        "generation": generation,
        "refresh_token": REFRESH.reveal(),
        "scope": None,
        "lifetime_source": "expires_in",
        "grant": "refresh_token",
        "trigger": "due",
        "forced_at": None,
        "refused": False,
        "by": AN_OLD_ONE,
        "access_generation": generation,
    } | members


async def old(rig: Rig, generation: int = 7, **members: object) -> None:
    """Let an old instance write its record."""
    sealed = rig.ring.seal(OLD, json.dumps(plain(generation, **members)).encode())
    there = (await rig.store.read(OLD)).generation
    assert await rig.store.write(OLD, sealed, generation, after=there)


async def noted(rig: Rig, generation: int) -> None:
    """Let an old instance note that it is about to present the refresh token of its record."""
    there = (await rig.store.read(NOTE)).generation
    sealed = rig.ring.seal(NOTE, AN_OLD_ONE.encode())
    assert await rig.store.write(NOTE, sealed, generation, after=there)


async def shown(rig: Rig) -> dict[str, object]:
    """Return what old instances find."""
    found = await rig.store.read(OLD)
    members = json.loads(rig.ring.open(OLD, found.sealed))
    assert members["generation"] == found.generation
    assert members["schema"] == 1
    return dict(members)


def test_the_name_is_that_of_the_release_before() -> None:
    """To the letter: its instances have made their records under it."""
    oauth2 = OAuth2.model_validate(
        {
            "token_url": "https://plm.example.com/oauth/token",
            "grant": "password",
            "client_id": "sync",
            "client_secret": {"value": "x"},
            "username": "alice",
            "password": {"value": "x"},
            "scope": "b a",
            "extra": {"audience": "x"},
        }
    )
    assert former_identity(oauth2) == (
        '{"client_auth": "client_secret_basic", "client_id": "sync", "extra": {"audience": "x"}, "grant": "password", '
        '"scope": ["a", "b"], "token_url": "https://plm.example.com/oauth/token", "username": "alice"}'
    )
    assert '"scope": [], ' in former_identity(oauth2.model_copy(update={"scope": None}))


async def test_where_there_never_was_one_nothing_is_done(rig: Rig) -> None:
    """One look at the start, and no more; nothing is written under the old name."""
    await rig.started()
    assert rig.shaky.commands == ["read", "read", "take", "write"]
    rig.shaky.commands.clear()
    await rig.clock.advance(DUE)
    assert rig.shaky.commands == ["take", "write"]
    assert await rig.store.read(OLD) == Stored()


async def test_an_old_record_is_taken_over(rig: Rig) -> None:
    """With its token and refresh token, into the new place; the issuer is not asked."""
    await old(rig)
    broker = await rig.started()
    token = bare(broker.current())
    assert (token.values, token.by) == ({"access_token": Secret(canary("old-7"))}, AN_OLD_ONE)
    assert await rig.stored() == Record(generation=7, token=token, kept=REFRESH)
    assert rig.issuer.calls == []
    assert {name: value for name, value in (await shown(rig)).items() if name != "of"} == plain()


async def test_a_revocation_of_before_is_taken_over(rig: Rig) -> None:
    """It is a record as any."""
    rig.issuer.anew = Anew.ONCE
    sealed = rig.ring.seal(OLD, b'{"schema": 1, "revoked": true, "generation": 4}')
    await rig.store.write(OLD, sealed, 4, after=0)
    broker = await rig.begun()
    assert await rig.stored() == Record(generation=4, revoked=True)
    assert "revoked" in (await refused(broker.token(rig.after(60)))).detail


async def test_times_of_an_old_record_are_the_stores(rig: Rig) -> None:
    """As they were then."""
    rig.shaky.ahead = 500.0
    await old(rig, issued_at=WALL + 500, expires_at=WALL + 500 + LIFETIME)
    broker = await rig.started()
    assert bare(broker.current()).issued_at == WALL
    await broker.renew()
    assert (await shown(rig))["expires_at"] == WALL + 500 + LIFETIME


async def test_what_is_renewed_is_shown_to_old_instances(rig: Rig) -> None:
    """Theirs renew in turn, and ours take that over."""
    await old(rig)
    rig.issuer.default = {"kept": Secret(canary("new-refresh"))}
    broker = await rig.started(check_every=5)
    await rig.clock.advance(DUE)
    assert rig.issuer.calls == [REFRESH.reveal()]
    members = await shown(rig)
    assert (members["access_token"], members["refresh_token"]) == (
        access(1)["access_token"].reveal(),
        canary("new-refresh"),
    )
    assert members["generation"] == (await rig.stored()).generation
    await old(rig, 30, issued_at=WALL + DUE, expires_at=WALL + DUE + LIFETIME)
    await rig.clock.advance(6)
    assert bare(broker.current()).granted == 30
    assert (await rig.stored()).generation == 30


@pytest.mark.parametrize("generation", [6, 7])
async def test_an_old_record_that_is_no_newer_is_left(rig: Rig, generation: int) -> None:
    """Ours is what holds."""
    await old(rig, generation)
    await rig.put(Record(generation=7, kept=Secret(canary("ours"))))
    await rig.broker().recall()
    assert (await rig.stored()).kept == Secret(canary("ours"))


@pytest.mark.parametrize("damage", ["garbage", "generation", "foreign"])
async def test_an_old_record_that_cannot_be_read_is_left(rig: Rig, damage: str) -> None:
    """Ours begin with what is configured, as the release before did."""
    sealed = {
        "garbage": b"garbage",
        "generation": rig.ring.seal(OLD, json.dumps(plain(6)).encode()),
        "foreign": b"\x02" + b"x" * 60,
    }[damage]
    await rig.store.write(OLD, sealed, 7, after=0)
    broker = await rig.started()
    assert rig.issuer.calls == [None]
    assert bare(broker.current()).values == access(1)


@pytest.mark.parametrize("note", [None, 6, 7, 8])
async def test_a_refresh_token_that_an_old_instance_may_have_used(rig: Rig, note: int | None) -> None:
    """It noted its use of this record, or of a later one, and was cut off: ours do not present it."""
    rig.issuer.anew = Anew.ONCE
    await old(rig)
    if note:
        await noted(rig, note)
    broker = await rig.started()
    await rig.clock.advance(LIFETIME + 1)
    if note is None or note < 7:
        assert rig.issuer.calls == [REFRESH.reveal()]
        return
    assert rig.issuer.calls == []
    refusal = await refused(broker.token(rig.after(60)))
    assert refusal.reason is Reason.CREDENTIAL_REJECTED
    assert "an instance of the release before presented the refresh token" in refusal.detail


async def test_a_note_says_nothing_without_a_refresh_token(rig: Rig) -> None:
    """There was nothing to present."""
    rig.issuer.anew = Anew.EVICTS
    await old(rig, refresh_token=None)
    await noted(rig, 7)
    await rig.started()
    await rig.clock.advance(DUE)
    assert len(rig.issuer.calls) == 1


async def test_an_old_instance_that_renews_is_waited_for(rig: Rig) -> None:
    """Its lease is honoured, and our own is not kept meanwhile."""
    await old(rig)
    broker = await rig.started()
    await rig.clock.advance(DUE - 1)
    assert (await rig.store.take(OLD, AN_OLD_ONE, TTL))[0]
    await rig.clock.advance(5)
    assert rig.issuer.calls == []
    assert rig.shaky.holder() is None
    await old(rig, 8, issued_at=WALL + DUE, expires_at=WALL + DUE + LIFETIME)
    await rig.store.release(OLD, AN_OLD_ONE)
    await rig.clock.advance(1)
    assert rig.issuer.calls == []
    assert bare(broker.current()).granted == 8
    assert (rig.shaky.holder(), rig.shaky.holder(OLD)) == (None, None)


async def test_old_instances_are_kept_out_while_ours_renews(rig: Rig) -> None:
    """Both leases are held, and kept, for as long as the issuer takes; a note tells of the refresh token in use."""
    await old(rig)
    rig.issuer.gate.clear()
    await rig.started(timeout="60s")
    await rig.clock.advance(DUE + 30)
    assert rig.issuer.calls == [REFRESH.reveal()]
    assert (rig.shaky.holder(), rig.shaky.holder(OLD)) == ("test/1", "test/1")
    note = await rig.store.read(NOTE)
    assert (note.generation, rig.ring.open(NOTE, note.sealed)) == (7, b"test/1")
    assert (await shown(rig))["generation"] == 7
    rig.issuer.gate.set()
    await settle()
    assert (rig.shaky.holder(), rig.shaky.holder(OLD)) == (None, None)
    assert (await shown(rig))["generation"] == 9


async def test_leases_end_after_a_failure_too(rig: Rig) -> None:
    """Old instances may try then."""
    await old(rig, refresh_token=None)
    rig.issuer.default = ZeroDivisionError()
    await rig.started()
    await rig.clock.advance(DUE)
    assert len(rig.issuer.calls) == 1
    assert (rig.shaky.holder(), rig.shaky.holder(OLD)) == (None, None)


async def test_a_later_note_is_not_lowered(rig: Rig) -> None:
    """What an old instance noted since stands."""
    await old(rig)
    broker = await rig.started()
    await noted(rig, 99)
    await broker.renew()
    note = await rig.store.read(NOTE)
    assert (note.generation, rig.ring.open(NOTE, note.sealed)) == (99, AN_OLD_ONE.encode())


async def test_what_an_old_instance_wrote_meanwhile_is_not_written_over(rig: Rig) -> None:
    """A record that we have not seen yet may have the newest refresh token; the next look takes it over."""
    await old(rig, refresh_token=None)
    rig.issuer.gate.clear()
    broker = await rig.started(check_every=5)
    await rig.clock.advance(DUE)
    await old(rig, 50, issued_at=WALL + DUE, expires_at=WALL + DUE + LIFETIME)
    rig.issuer.gate.set()
    await settle()
    assert (await shown(rig))["generation"] == 50
    await rig.clock.advance(6)
    assert bare(broker.current()).granted == 50


async def test_a_revocation_is_for_old_instances_too(rig: Rig) -> None:
    """They drop their token at their next look."""
    await old(rig)
    broker = await rig.started(check_every=0)
    await broker.revoke()
    members = await shown(rig)
    assert (members["revoked"], members["generation"]) == (True, 8)


async def test_a_refused_credential_keeps_the_old_record_good(rig: Rig) -> None:
    """A no is no record of the release before: what it shows is the token that still serves."""
    await old(rig, refresh_token=None)
    rig.issuer.default = CredentialRejected("invalid_client", "no")
    await rig.started()
    await rig.clock.advance(DUE)
    members = await shown(rig)
    assert (members["access_token"], members["generation"]) == (canary("old-7"), 8)


async def test_two_credentials_that_had_one_name_are_kept_apart(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users of one client were one to the release before: the one who came first has its record, the other none."""
    await old(rig)
    first = await rig.started(check_every=5)
    monkeypatch.setattr(type(rig.issuer), "identity", lambda _: "bob")
    rig.issuer.default = {"kept": Secret(canary("of bob"))}
    second = await rig.started(check_every=5)
    assert bare(second.current()).values == access(1)
    assert (await rig.store.read(store_key("bob"))).generation == 1
    await first.renew()
    await second.renew()
    await rig.clock.advance(12)
    assert bare(first.current()).values == access(2)
    assert bare(second.current()).values == access(3)
    assert (await shown(rig))["access_token"] == access(2)["access_token"].reveal()
    assert rig.issuer.calls == [None, REFRESH.reveal(), canary("of bob")]


async def test_a_store_in_trouble_is_trouble(rig: Rig) -> None:
    """The old record may be there: it is asked for again until that is known."""
    await old(rig)
    rig.shaky.reading = StoreError("down")
    broker = rig.broker()
    await broker.recall()
    assert broker.current() is None
    rig.shaky.reading = None
    await broker.recall()
    assert bare(broker.current()).granted == 7


async def test_an_old_refresh_token_marks_this_machine(rig: Rig, tmp_path: Path) -> None:
    """It is spent when it was used here, whatever becomes of the store."""
    rig.issuer.anew, rig.marks = Anew.ONCE, tmp_path
    await old(rig)
    broker = rig.broker()
    await broker.recall()
    rig.shaky.wipe()
    other = rig.broker()
    assert "is gone" in (await refused(other.token(rig.after(60)))).detail
    assert rig.issuer.calls == []
