"""Several instances of one credential: one renews, all use it, and none is taken down by another's end."""

from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.auth.grant import Anew
from sidecar.clock import Clock
from sidecar.errors import BrokenOff, CredentialRejected, IssuerUnavailable, Misplaced, Reason, StoreError, Unusable
from sidecar.events import StoreTrouble
from sidecar.policy import pauses
from sidecar.secret import Secret
from sidecar.settings import Renew
from sidecar.tokens.broker import Broker
from sidecar.tokens.presenting import KeptBack, Stuck
from sidecar.tokens.record import Presented, Record
from sidecar.tokens.seal import Keys, new_key, parse_keys
from tests.canary import canary
from tests.unit.broker_rig import (
    DEAD,
    DUE,
    KEY,
    LIFETIME,
    REFRESH,
    TTL,
    WALL,
    FakeIssuer,
    Rig,
    access,
    bare,
    fleet_rig,
    record,
    refused,
    settle,
    token,
)

__all__ = ["fleet_rig"]

NEXT = Secret(canary("next-refresh"))


@pytest.fixture
def rig(fleet_rig: Rig) -> Rig:
    return fleet_rig


async def holding(rig: Rig, anew: Anew = Anew.ONCE, **fields: object) -> Record:
    """Store a record with a refresh token that may be presented once, and return it."""
    rig.issuer.anew = anew
    before = record(7, kept=REFRESH, claimed=anew is Anew.ONCE)
    before = replace(before, **fields)  # type: ignore[arg-type]
    await rig.put(before)
    return before


# one renewal for all


@pytest.mark.parametrize("number", [2, 50])
async def test_instances_that_start_at_once_make_one_call(rig: Rig, number: int) -> None:
    """The others wait for it, and use what it brought."""
    rig.issuer.gate.clear()
    brokers = [rig.broker() for _ in range(number)]
    for broker in brokers:
        await broker.start()
    waiters = [rig.later(broker.token(rig.after(60))) for broker in brokers]
    await rig.clock.advance(2)
    rig.issuer.gate.set()
    await rig.clock.advance(1)

    assert [(await waiter).values for waiter in waiters] == [access(1)] * number
    assert len(rig.issuer.calls) == 1
    assert {bare(broker.current()).by for broker in brokers} == {"test/1"}
    assert len(rig.renewals()) == 1


async def test_instances_that_are_refused_at_once_make_one_call(rig: Rig) -> None:
    """A token that was revoked at the issuer is replaced once, whoever notices."""
    brokers = [await rig.started() for _ in range(4)]
    used = await brokers[0].token(0)
    rig.issuer.gate.clear()
    waiters = [rig.later(broker.after(used, rig.after(60))) for broker in brokers for _ in range(50)]
    await rig.clock.advance(1)
    rig.issuer.gate.set()
    await rig.clock.advance(1)

    assert [bare(await waiter).values for waiter in waiters] == [access(2)] * 200
    assert len(rig.issuer.calls) == 2


async def test_due_token_is_renewed_by_one(rig: Rig) -> None:
    """Who comes second finds the first one's token under the lease, and lets it be."""
    brokers = [await rig.started() for _ in range(5)]
    await rig.clock.advance(DUE)

    assert len(rig.issuer.calls) == 2
    await rig.clock.advance(30)
    assert {bare(broker.current()).granted for broker in brokers} == {2}


async def test_lease_lasts_as_long_as_a_slow_issuer(rig: Rig) -> None:
    """Signs of life keep it, so that 45 seconds of silence cause no second call."""
    rig.issuer.gate.clear()
    first, second = await rig.begun(timeout="60s"), await rig.begun(timeout="60s")
    await rig.clock.advance(45)
    assert len(rig.issuer.calls) == 1
    rig.issuer.gate.set()
    await rig.clock.advance(1)

    assert second.current() == first.current() is not None


async def test_a_sign_of_life_that_fails_is_not_the_last(rig: Rig) -> None:
    """The next one keeps the lease, if it is still ours."""
    rig.issuer.gate.clear()
    await rig.begun(timeout="60s")
    await rig.clock.advance(2)
    rig.shaky.fail()
    await rig.clock.advance(2)
    rig.shaky.failing = None
    await rig.clock.advance(20)

    assert rig.shaky.holder() == "test/1"


async def test_signs_of_life_end_with_the_lease(rig: Rig) -> None:
    """Another instance has it now: it is not fought over."""
    rig.issuer.gate.clear()
    await rig.begun(timeout="60s")
    rig.shaky._leases.clear()
    assert (await rig.shaky.take(KEY, "other", 60.0))[0]
    rig.shaky.commands.clear()
    await rig.clock.advance(20)

    assert rig.shaky.commands.count("take") == 1


async def test_lease_is_capped(rig: Rig) -> None:
    """A holder that waits beyond all measure does not keep the others from trying."""
    rig.issuer.gate.clear()
    for _ in range(2):
        await rig.begun(timeout="10s")
    await rig.clock.advance(10 + 5 - 0.5)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(1)

    assert len(rig.issuer.calls) == 2


async def test_next_instance_takes_over_from_a_dead_one(rig: Rig) -> None:
    """Ten seconds after its last sign of life; its lease needs nobody to clear it away."""
    rig.issuer.gate.clear()
    first, second = await rig.begun(), await rig.begun()
    await rig.clock.advance(1)
    await rig.kill(first)
    rig.issuer.gate.set()
    await rig.clock.advance(TTL - 2)
    assert second.current() is None
    await rig.clock.advance(4)

    assert bare(second.current()).by == "test/2"


async def test_holder_that_slept_through_its_end_gives_way(rig: Rig) -> None:
    """What it brings late is refused by the store, and it goes on with what the other brought."""
    asleep = rig.issuer
    asleep.gate.clear()
    first = await rig.begun()
    keeper = first._renewing._obtaining._lease._keeper
    assert keeper
    keeper.cancel()
    rig.issuer = FakeIssuer(rig.clock)
    second = await rig.begun()
    await rig.clock.advance(TTL + 1)
    brought = second.current()
    asleep.gate.set()
    await settle()

    assert first.current() == brought == (await rig.stored()).token
    assert (len(asleep.calls), len(rig.issuer.calls)) == (1, 1)


async def test_token_of_another_ends_a_wait_to_try_again(rig: Rig) -> None:
    """Requests that wait for a token get it at the next look at the store, not when the issuer may be asked again."""
    rig.issuer.default = IssuerUnavailable("slow down", retry_after=800)
    broker = await rig.begun(check_every=5)
    waiter = rig.later(broker.token(rig.after(900)))
    await rig.clock.advance(20)
    await rig.put(record(3))
    await rig.clock.advance(6)

    assert waiter.done()
    assert await waiter == token(3)
    assert not broker._renewing.running


async def test_closing_waits_for_a_call_that_came_after_another_instances(rig: Rig) -> None:
    """It waited for the lease, and has it now: what the issuer grants is stored."""
    rig.issuer.gate.clear()
    first, second = await rig.begun(), await rig.begun()
    await rig.clock.advance(1)
    await rig.kill(first)
    await rig.clock.advance(TTL)
    assert len(rig.issuer.calls) == 2
    closing = rig.later(second.aclose())
    await settle()
    assert not closing.done()
    rig.issuer.gate.set()
    await closing

    assert bare((await rig.stored()).token).by == "test/2"


async def test_closing_does_not_wait_for_another_instance(rig: Rig) -> None:
    """An instance that waits for the one with the lease has nothing to finish."""
    rig.issuer.gate.clear()
    await rig.begun()
    second = await rig.begun()
    await rig.clock.advance(1)
    before = rig.clock.mono
    await second.aclose()

    assert rig.clock.mono == before
    assert len(rig.issuer.calls) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {},
        CredentialRejected("invalid_client", "no"),
        IssuerUnavailable("down"),
        IssuerUnavailable("busy", retry_after=5),
        BrokenOff("gone"),
        ZeroDivisionError(),
    ],
    ids=str,
)
async def test_lease_is_given_back(rig: Rig, answer: Exception | dict[str, object]) -> None:
    """After success and after failure, so that nobody waits for its end; no sign of life comes after."""
    rig.issuer.answers.append(answer)
    await rig.begun(check_every=0)

    assert len(rig.issuer.calls) == 1
    assert rig.shaky.holder() is None
    assert [left for left in rig.clock.sleeping() if left == 3.0] == []


async def test_lease_is_given_back_when_nothing_is_needed(rig: Rig) -> None:
    """Under the lease it turned out that another instance has renewed."""
    broker = await rig.started(check_every=0)
    await rig.put(record(5))
    await rig.clock.advance(DUE)
    await rig.put(record(6, left=LIFETIME + DUE))
    assert broker.current() is not None
    await settle()

    assert bare(broker.current()).granted == 6
    assert rig.shaky.holder() is None
    assert len(rig.issuer.calls) == 1


async def test_lease_of_a_record_that_cannot_be_resealed_is_given_back(rig: Rig) -> None:
    """Whatever goes wrong between the lease and what it is for, it is not kept."""

    class Broken(Exception):
        pass

    broker = rig.broker(check_every=0)

    async def opened(*_: object, **__: object) -> None:
        assert rig.shaky.holder() == "test/1"
        raise Broken

    broker._holding._sealed._opened = opened  # type: ignore[method-assign, assignment]
    with pytest.raises(Broken):
        await broker._holding._sealed.take()

    assert rig.shaky.holder() is None


# what an issuer asks for


async def test_pause_that_the_issuer_asked_for_is_for_all(rig: Rig) -> None:
    """429 with Retry-After 20: nobody asks again before, not even who starts meanwhile."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=20))
    first, second = await rig.begun(), await rig.begun()
    await rig.clock.advance(5)
    third = await rig.begun()
    await rig.clock.advance(14)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(3)

    assert len(rig.issuer.calls) == 2
    assert {bare(broker.current()).by for broker in (first, second, third)} == {bare(first.current()).by}
    assert (await rig.stored()).not_before is None


async def test_pause_is_there_before_the_next_one_may_ask(rig: Rig) -> None:
    """Many wait for the lease of the one that is told to wait: with the lease they get the pause."""
    rig.issuer.default = IssuerUnavailable("slow down", retry_after=20)
    rig.issuer.gate.clear()
    for _ in range(10):
        await rig.begun()
    await rig.clock.advance(1)
    rig.issuer.gate.set()
    await rig.clock.advance(15)

    assert len(rig.issuer.calls) == 1


async def test_long_pause_is_for_all_and_costs_the_store_little(rig: Rig) -> None:
    """20 minutes: nobody asks before, and who waits does not look for it all the time."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=1200))
    first, second = await rig.begun(), await rig.begun()
    await rig.clock.advance(10)
    rig.shaky.commands.clear()
    await rig.clock.advance(1180)
    assert len(rig.issuer.calls) == 1
    assert len(rig.shaky.commands) < 20
    await rig.clock.advance(11)

    assert len(rig.issuer.calls) == 2
    assert first.current() == second.current() is not None


async def test_no_issuer_is_left_alone_for_more_than_an_hour(rig: Rig) -> None:
    """One that asks for a day made a mistake; so did who wrote that into the record."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=86400))
    await rig.begun()
    await rig.clock.advance(pauses.LONGEST - 1)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(2)
    assert len(rig.issuer.calls) == 2

    await rig.put(Record(generation=99, not_before=rig.clock.wall + pauses.LONGEST + 60))
    await rig.begun()
    assert len(rig.issuer.calls) == 3


async def test_pause_outlives_the_campaign_that_was_asked_for_it(rig: Rig) -> None:
    """A token that somebody put into the store ends the wait, not the pause: the next renewal comes after it."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=600))
    broker = await rig.begun(check_every=5)
    await rig.clock.advance(10)
    await rig.put(record(3, not_before=WALL + 600))
    await rig.clock.advance(10)
    used = await broker.token(0)
    assert used == token(3)
    asked = rig.later(broker.after(used, rig.after(5)))
    await rig.clock.advance(560)
    assert await asked is None
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(30)

    assert len(rig.issuer.calls) == 2


async def test_operator_does_not_wait_out_a_pause(rig: Rig) -> None:
    """Whoever was asked for it."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=600))
    await rig.begun()
    other = await rig.begun(check_every=5)
    await rig.clock.advance(10)
    assert len(rig.issuer.calls) == 1

    assert (await other.renew()).values == access(2)


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        (Misplaced("a page"), [33.0, 66.0, 132.0, 264.0, 528.0, 660.0, 660.0]),
        (Unusable("over already", None), [132.0, 264.0, 528.0, 1056.0, 1980.0]),
        (Misplaced("a page", retry_after=300), [300.0, 300.0, 300.0, 300.0, 528.0]),
    ],
    ids=["misplaced", "unusable", "asked"],
)
async def test_odd_answers_are_asked_for_ever_more_rarely(rig: Rig, answer: Exception, waits: list[float]) -> None:
    """By all instances together; one good answer, or an ordinary failure, begins anew."""
    rig.issuer.default = answer
    broker = await rig.begun()
    await rig.clock.advance(sum(waits) + 1)
    gaps = [after - before for before, after in zip(rig.issuer.at, rig.issuer.at[1:], strict=False)]
    assert gaps == pytest.approx(waits)

    rig.issuer.answers.append(IssuerUnavailable("down"))
    await rig.clock.advance(2000)
    calls = len(rig.issuer.calls)
    assert rig.issuer.at[-1] - rig.issuer.at[-2] <= waits[1] or calls > len(waits) + 2
    rig.issuer.default = {}
    await broker.renew()
    assert (await rig.stored()).not_before is None


# without the store


async def test_grant_that_starts_anew_needs_no_lease(rig: Rig) -> None:
    """Each instance gets a token of its own while the store is down; one is for all when it is back."""
    rig.shaky.fail()
    first, second = await rig.started(), await rig.started()
    assert len(rig.issuer.calls) == 2
    assert first.current() != second.current()
    rig.shaky.failing = None
    await rig.clock.advance(12)

    assert first.current() == second.current() == (await rig.stored()).token
    assert len(rig.issuer.calls) == 2


async def test_silent_store_is_given_time_at_the_start(rig: Rig) -> None:
    """A machine that is busy starting many instances is slow for a moment; none of them asks the issuer for that."""
    rig.shaky.fail(silent=True)
    first, second = await rig.begun(), await rig.begun()
    await rig.clock.advance(1)
    assert rig.issuer.calls == []
    rig.shaky.failing = None
    await rig.clock.advance(2)

    assert first.current() is not None
    assert first.current() == second.current()
    assert len(rig.issuer.calls) == 1


async def test_silent_store_is_not_waited_for_long(rig: Rig) -> None:
    """What stays silent is down: each instance gets a token of its own."""
    rig.shaky.fail(silent=True)
    broker = await rig.begun()
    await rig.clock.advance(2)

    assert broker.current() is not None
    assert len(rig.issuer.calls) == 1
    assert [event.operation for event in rig.events if isinstance(event, StoreTrouble)] == ["read", "lease", "write"]


async def test_one_slow_answer_of_the_store_is_not_its_end(rig: Rig) -> None:
    """The lease is asked for twice before anybody goes on without."""
    broker = await rig.started(check_every=0)
    take, failed = rig.shaky.take, 0

    async def slow(*args: object) -> object:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise StoreError("slow", silent=True)
        return await take(*args)  # type: ignore[arg-type]

    rig.shaky.take = slow  # type: ignore[method-assign, assignment]
    await broker.renew()

    assert failed == 2
    assert rig.troubles() == []


async def test_silent_store_is_not_waited_for_after_a_401(rig: Rig) -> None:
    """Somebody waits for that token."""
    broker = await rig.started()
    rig.shaky.fail(silent=True)
    await broker.after(await broker.token(0), rig.after(5))

    assert len(rig.issuer.calls) == 2


async def test_store_that_dies_in_mid_life_fails_no_request(rig: Rig) -> None:
    """The token in memory serves, is renewed when due, and is published once when the store is back."""
    broker = await rig.started()
    rig.shaky.fail()
    await rig.clock.advance(DUE + 1)
    assert broker.current() is not None
    assert len(rig.issuer.calls) == 2
    await broker.after(await broker.token(0), rig.after(5))
    rig.shaky.failing = None
    await rig.clock.advance(6)

    assert (await rig.stored()).token == broker.current()


@pytest.mark.parametrize("anew", [Anew.ONCE, Anew.EVICTS])
async def test_without_the_store_nothing_of_value_is_used(rig: Rig, anew: Anew) -> None:
    """Another instance may use the refresh token, or the session, too: not even when the token at hand is over."""
    await holding(rig, anew)
    broker = await rig.started()
    rig.shaky.fail()
    await rig.clock.advance(LIFETIME + 60)
    assert rig.issuer.calls == []
    assert broker.current() is None
    assert isinstance(broker._renewing.failure, KeptBack)
    assert "nothing is asked of the issuer without the store: the store is down" in rig.renewals()[-1].detail
    rig.shaky.failing = None
    await rig.clock.advance(15)

    assert len(rig.issuer.calls) == 1
    assert broker.current() is not None


async def test_a_401_is_not_held_up_by_what_is_kept_back(rig: Rig) -> None:
    """Nobody knows when the store is back."""
    await holding(rig)
    broker = await rig.started(check_every=0)
    rig.shaky.fail()

    assert await broker.after(await broker.token(0), rig.after(60)) is None


async def test_refresh_token_is_left_where_another_grant_will_do(rig: Rig) -> None:
    """With the store down a new start is safer than a second use."""
    await holding(rig, Anew.FREE)
    await rig.started()
    rig.shaky.fail()
    await rig.clock.advance(DUE + 1)

    assert rig.issuer.calls == [None]


async def test_refresh_token_is_left_where_its_use_cannot_be_noted(rig: Rig) -> None:
    """The store gave the lease and takes no record: what costs nothing is used, what is for once is kept."""
    await holding(rig, Anew.FREE)
    await rig.started()
    rig.shaky.writing = StoreError("disk full")
    await rig.clock.advance(DUE + 0.1)
    assert rig.issuer.calls == [None]


async def test_refresh_token_for_once_is_kept_where_its_use_cannot_be_noted(rig: Rig) -> None:
    """It is presented when the store takes the note."""
    before = await holding(rig)
    await rig.started()
    rig.shaky.writing = StoreError("disk full")
    await rig.clock.advance(DUE + 5)
    assert rig.issuer.calls == []
    assert await rig.stored() == before
    assert rig.shaky.holder() is None
    rig.shaky.writing = None
    await rig.clock.advance(8)

    assert rig.issuer.calls == [REFRESH.reveal()]


async def test_refresh_token_is_kept_when_another_was_faster(rig: Rig) -> None:
    """The record changed under our lease: somebody holds it too, and has noted a use first."""
    await holding(rig)
    broker = await rig.started(check_every=0)
    rig.shaky.refusing = True
    with pytest.raises(KeptBack, match="another instance was faster"):
        await broker.renew()

    assert rig.issuer.calls == []


async def test_newest_refresh_token_is_stored_before_it_is_used(rig: Rig) -> None:
    """An answer could not be written: until it is, nobody presents its refresh token."""
    await holding(rig)
    rig.issuer.default = {"kept": NEXT}
    rig.issuer.gate.clear()
    broker = await rig.started(check_every=0)
    forced = rig.later(broker.renew())
    await settle()
    rig.shaky.writing = StoreError("disk full")
    rig.issuer.gate.set()
    await forced
    with pytest.raises(KeptBack, match="is not stored yet"):
        await broker.renew()
    rig.shaky.writing = None
    await rig.clock.advance(60)
    await broker.renew()

    assert rig.issuer.calls == [REFRESH.reveal(), NEXT.reveal()]


async def test_lease_that_a_store_forgot_is_its_holders_first(rig: Rig) -> None:
    """The store lost all while one instance presents the refresh token: the other, now due, does not present it too."""
    await holding(rig)
    rig.issuer.gate.clear()
    rig.issuer.default = {"kept": NEXT}
    first, second = await rig.started(check_every=0), await rig.started(check_every=0)
    await rig.clock.advance(DUE)
    first.current()
    await settle()
    assert rig.issuer.calls == [REFRESH.reveal()]
    rig.shaky.wipe()
    second.current()
    await rig.clock.advance(5)
    rig.issuer.gate.set()
    await rig.clock.advance(5)

    assert rig.issuer.calls == [REFRESH.reveal()]
    assert first.current() == second.current() == (await rig.stored()).token
    assert (await rig.stored()).kept == NEXT


# a refresh token is used once


@pytest.mark.parametrize("anew", [Anew.FREE, Anew.ONCE])
async def test_use_of_a_refresh_token_is_noted_before(rig: Rig, anew: Anew) -> None:
    """So that whoever comes after a crash knows that it may be gone; the answer takes the note away."""
    before = await holding(rig, anew)
    rig.issuer.gate.clear()
    await rig.started()
    await rig.clock.advance(DUE + 1)
    assert rig.issuer.calls == [REFRESH.reveal()]
    assert await rig.stored() == replace(before, generation=8, presented=Presented(by="test/1"))
    rig.issuer.gate.set()
    await settle()

    assert (await rig.stored()).presented is None


async def test_time_of_a_call_is_bounded(rig: Rig) -> None:
    """`renew.timeout` is for all that is asked for one token."""
    await holding(rig, Anew.FREE)
    rig.issuer.gate.clear()
    rig.issuer.answers.append(CredentialRejected("invalid_grant", "no"))
    await rig.started(timeout="9s")
    await rig.clock.advance(DUE + 4)
    rig.issuer.gate.set()
    await settle()

    assert rig.issuer.given == [9.0, 5.0]


async def dead_in_the_middle(rig: Rig, anew: Anew, **fields: object) -> Broker:
    """Return an instance beside one that died after it had noted its use of the refresh token."""
    await holding(rig, anew, **fields)
    rig.issuer.gate.clear()
    first = await rig.started(margin="50s")
    await rig.clock.advance(64)
    assert len(rig.issuer.calls) == 1
    await rig.kill(first)
    rig.issuer.gate.set()
    return await rig.begun(margin="50s")


async def test_refresh_token_of_a_dead_instance_is_left_for_another_grant(rig: Rig) -> None:
    """It may have been used; a second use would end the whole grant at a strict issuer. It is gone for good."""
    second = await dead_in_the_middle(rig, Anew.FREE)
    await rig.clock.advance(TTL + 1)
    assert rig.issuer.calls == [REFRESH.reveal(), None]
    assert bare(second.current()).by == "test/2"
    assert (await rig.stored()).kept is None
    await second.renew()

    assert rig.issuer.calls == [REFRESH.reveal(), None, None]


async def test_refresh_token_of_a_dead_instance_needs_a_person(rig: Rig) -> None:
    """The token serves to its end, then requests are refused with what to do; an operator may have it tried once."""
    second = await dead_in_the_middle(rig, Anew.ONCE)
    await rig.clock.advance(TTL + 2)
    assert second.current() is not None
    assert "test/1 presented the refresh token and was cut off" in rig.renewals()[-1].detail
    await rig.clock.advance(600)
    assert rig.issuer.calls == [REFRESH.reveal()]
    refusal = await refused(second.token(rig.after(60)))
    assert refusal.reason is Reason.CREDENTIAL_REJECTED
    assert "auth-sidecar token renew" in refusal.detail
    assert second.status().state == "rejected"

    assert (await second.renew()).values == access(2)
    assert rig.issuer.calls == [REFRESH.reveal()] * 2
    assert (await rig.stored()).presented is None


async def test_refresh_token_that_does_not_rotate_outlives_its_user(rig: Rig) -> None:
    """The issuer has shown that it takes the same one again and again."""
    await dead_in_the_middle(rig, Anew.ONCE, rotates=False)
    await rig.clock.advance(TTL + 1)

    assert rig.issuer.calls == [REFRESH.reveal()] * 2


async def test_a_restarted_instance_is_another_one(rig: Rig) -> None:
    """Two instances never have one name, so that a note of ours is from this process."""
    await holding(rig, presented=DEAD, token=None)
    broker = await rig.begun()

    assert rig.issuer.calls == []
    assert broker.status().state == "rejected"


@pytest.mark.parametrize("answer", [IssuerUnavailable("busy"), Misplaced("a page")], ids=str)
@pytest.mark.parametrize("anew", [Anew.FREE, Anew.ONCE])
async def test_note_is_taken_back_when_the_issuer_took_nothing(rig: Rig, anew: Anew, answer: Exception) -> None:
    """It said so: the refresh token is as good as before, for every instance."""
    before = await holding(rig, anew)
    rig.issuer.answers.append(answer)
    await rig.started()
    await rig.clock.advance(DUE)
    stored = await rig.stored()
    assert replace(stored, not_before=None) == replace(before, generation=9)
    assert rig.shaky.holder() is None
    await rig.clock.advance(40)

    assert rig.issuer.calls == [REFRESH.reveal()] * 2


async def test_doubt_of_before_is_not_lifted_by_an_issuer_that_was_busy(rig: Rig) -> None:
    """An operator's try that came to nothing says no more than was known."""
    await holding(rig, presented=DEAD)
    rig.issuer.answers.append(IssuerUnavailable("busy"))
    broker = await rig.started(check_every=0)
    with pytest.raises(IssuerUnavailable):
        await broker.renew()

    assert (await rig.stored()).presented == DEAD


@pytest.mark.parametrize("anew", [Anew.FREE, Anew.ONCE])
async def test_refresh_token_whose_answer_was_lost(rig: Rig, anew: Anew) -> None:
    """The process lived to note that: where there is no other grant it is presented again, by any instance."""
    await holding(rig, anew)
    rig.issuer.answers.append(BrokenOff("gone"))
    first = await rig.started()
    await rig.clock.advance(DUE)
    assert (await rig.stored()).presented == Presented(by="test/1", lost=True)
    await rig.kill(first)
    await rig.begun()
    await rig.clock.advance(15)

    assert rig.issuer.calls == [REFRESH.reveal(), REFRESH.reveal() if anew is Anew.ONCE else None]


# a grant whose access token cannot be used


@pytest.mark.parametrize("anew", [Anew.ONCE, Anew.FREE])
async def test_next_refresh_token_is_kept_without_its_access_token(rig: Rig, anew: Anew) -> None:
    """The one that was presented is spent; the old access token serves on, and the next call has the new one."""
    before = await holding(rig, anew)
    rig.issuer.answers.append(Unusable("no use", NEXT))
    broker = await rig.started()
    await rig.clock.advance(DUE)
    assert rig.issuer.calls == [REFRESH.reveal()]
    stored = await rig.stored()
    assert stored.not_before == pytest.approx(rig.clock.wall + 132)
    assert replace(stored, not_before=None) == replace(before, generation=9, kept=NEXT)
    assert broker.current() == token(7)
    await rig.clock.advance(133)

    assert rig.issuer.calls == [REFRESH.reveal(), NEXT.reveal()]
    assert (await rig.stored()).kept == NEXT


async def test_next_refresh_token_is_for_every_instance(rig: Rig) -> None:
    """The one who got it may die: the others use it, and never the spent one."""
    await holding(rig)
    rig.issuer.answers.append(Unusable("no use", NEXT))
    first, second = await rig.started(), await rig.started()
    await rig.clock.advance(DUE)
    await rig.kill(first)
    await rig.clock.advance(140)

    assert rig.issuer.calls == [REFRESH.reveal(), NEXT.reveal()]
    assert bare(second.current()).by == "test/2"


async def test_next_refresh_token_is_kept_without_any_access_token(rig: Rig) -> None:
    """Of the first grant of all: it is stored alone, and nothing is handed out."""
    rig.issuer.anew = Anew.ONCE
    rig.issuer.answers.append(Unusable("no use", NEXT))
    broker = await rig.begun()
    assert (await rig.stored()).kept == NEXT
    assert broker.current() is None
    assert (broker.status().state, broker.status().usable) == ("none", False)
    await rig.clock.advance(133)

    assert rig.issuer.calls == [None, NEXT.reveal()]
    assert (await broker.token(0)).values == access(2)


@pytest.mark.parametrize("first", [False, True])
async def test_useless_grant_without_a_refresh_token_spends_none(rig: Rig, first: bool) -> None:
    """RFC 6749 section 6: the one that was presented stays good, the configured one too."""
    rig.issuer.anew = Anew.ONCE
    if not first:
        await holding(rig)
    rig.issuer.answers.append(Unusable("no use", None))
    await rig.begun()
    await rig.clock.advance(DUE)
    stored = await rig.stored()
    presented = rig.issuer.configured if first else REFRESH
    assert (stored.kept, stored.presented) == (presented, None)
    await rig.clock.advance(133)

    assert rig.issuer.calls[1] == presented.reveal()


async def test_same_access_token_is_no_newer_one(rig: Rig) -> None:
    """With another refresh token beside it it is not sent again after a 401, nor is an operator told that it is new."""
    await holding(rig, Anew.FREE)
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = Unusable("no use", NEXT)
    with pytest.raises(IssuerUnavailable, match="no use"):
        await broker.renew()
    assert await broker.token(0) == used
    waiter = rig.later(broker.after(used, rig.after(60)))
    await rig.clock.advance(15)

    assert waiter.done()
    assert await waiter is None


# a no to a refresh token


async def test_a_refused_refresh_token_moves_on_to_another_grant(rig: Rig) -> None:
    """Where that costs nothing; what was refused is gone."""
    await holding(rig, Anew.FREE, rotates=True)
    rig.issuer.answers.append(CredentialRejected("invalid_grant", "spent"))
    broker = await rig.started()
    await rig.clock.advance(DUE)
    assert rig.issuer.calls == [REFRESH.reveal(), None]
    stored = await rig.stored()
    assert (stored.kept, stored.presented, stored.rotates, stored.rejection) == (None, None, None, None)

    assert broker.status().state == "valid"


async def test_a_refused_client_moves_on_to_nothing(rig: Rig) -> None:
    """It would be refused again: the refresh token is kept for the day that its secret is put right."""
    await holding(rig, Anew.FREE)
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = await rig.started()
    await rig.clock.advance(DUE)
    assert rig.issuer.calls == [REFRESH.reveal()]
    assert (await rig.stored()).kept == REFRESH
    assert broker.status().state == "rejected"
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(10)

    assert rig.issuer.calls == [REFRESH.reveal()] * 2


async def test_a_refused_refresh_token_moves_on_to_the_configured_one_if_it_is_new(rig: Rig) -> None:
    """The record is of the release before, and its first one was never claimed here."""
    await holding(rig, claimed=False)
    rig.issuer.answers.append(CredentialRejected("invalid_grant", "spent"))
    await rig.started()
    await rig.clock.advance(DUE)
    assert rig.issuer.calls == [REFRESH.reveal(), None]
    stored = await rig.stored()

    assert (stored.claimed, stored.kept) == (True, rig.issuer.configured)


@pytest.mark.parametrize("error", ["", "invalid_scope", "unauthorized_client", "access_denied", "invalid_client"])
async def test_a_login_that_may_live_is_not_risked_for_the_configured_token(rig: Rig, error: str) -> None:
    """The release before may have presented it: an issuer that sees it again would end what only said no today."""
    await holding(rig, claimed=False)
    rig.issuer.answers.append(CredentialRejected(error, "no"))
    await rig.started()
    await rig.clock.advance(DUE)
    stored = await rig.stored()

    assert rig.issuer.calls == [REFRESH.reveal()]
    assert (stored.claimed, stored.kept, stored.presented) == (False, REFRESH, None)


async def test_a_refused_refresh_token_is_kept_where_it_is_all_there_is(rig: Rig) -> None:
    """Its issuer may be wrong; it is asked again after a long pause, by one instance."""
    before = await holding(rig)
    rig.issuer.default = CredentialRejected("invalid_grant", "no")
    broker = await rig.started()
    await rig.clock.advance(DUE + 290)
    assert rig.issuer.calls == [REFRESH.reveal()]
    stored = await rig.stored()
    assert replace(stored, rejection=None) == replace(before, generation=9)
    assert broker.status().state == "rejected"
    await rig.clock.advance(100)

    assert rig.issuer.calls == [REFRESH.reveal()] * 2


async def test_a_spent_refresh_token_is_not_the_last_word(rig: Rig) -> None:
    """Another instance exchanged it meanwhile: its token, and its refresh token, count."""
    await holding(rig)
    rig.issuer.gate.clear()
    rig.issuer.answers.append(CredentialRejected("invalid_grant", "it was used already"))
    broker = await rig.started()
    await rig.clock.advance(DUE)
    await rig.put(record(9, left=DUE + LIFETIME, kept=NEXT, claimed=True))
    rig.issuer.gate.set()
    await rig.clock.advance(2)
    assert broker.status().state == "valid"
    assert (await rig.stored()).kept == NEXT
    await broker.renew()

    assert rig.issuer.calls == [REFRESH.reveal(), NEXT.reveal()]


async def test_a_revoked_credential_needs_another_first_refresh_token(rig: Rig) -> None:
    """On every instance, and after a restart; not even an operator presents the revoked one."""
    await holding(rig)
    first = await rig.started(check_every=5)
    second = await rig.started(check_every=5)
    await first.revoke()
    await rig.clock.advance(10)
    for broker in (first, second, await rig.begun()):
        assert "an operator revoked the credential" in (await refused(broker.token(rig.after(60)))).detail
    with pytest.raises(Stuck, match="set the new refresh_token"):
        await second.renew()

    assert rig.issuer.calls == []


async def test_a_revoked_session_is_got_anew(rig: Rig) -> None:
    """What is configured is enough for it."""
    await holding(rig, Anew.EVICTS, kept=None)
    broker = await rig.started(check_every=0)
    await broker.revoke()

    assert (await broker.token(rig.after(60))).values == access(1)


# what others leave in the store


async def test_a_revocation_reaches_every_instance(rig: Rig) -> None:
    """None goes on with the token, and none puts it back into the store."""
    first, second = await rig.started(check_every=30), await rig.started(check_every=30)
    assert second.current() == first.current()
    rig.issuer.gate.clear()
    await first.revoke()
    await rig.clock.advance(31)
    assert second.current() is None
    assert await rig.stored() == Record(generation=2, revoked=True)
    assert (await refused(second.token(rig.clock.mono))).reason is Reason.TOKEN_UNAVAILABLE


async def test_key_that_was_rotated_is_picked_up(rig: Rig, tmp_path: Path) -> None:
    """A record under a newer key makes the process read its keys again; its own next one is under that key."""
    file = tmp_path / "keys"
    file.write_text(new_key())
    clock: Clock = rig.clock
    keys = Keys(lambda: parse_keys([Secret(file.read_text())]), clock, [file])
    broker = Broker(
        "plm",
        rig.issuer,
        rig.store,
        keys,
        Renew(),
        owner="test/1",
        clock=clock,
        emit=rig.events.append,
        configured_lifetime=None,
    )
    rig.brokers.append(broker)
    await broker.recall()
    newer = new_key()
    rig.ring = parse_keys([Secret(newer)])
    await rig.put(record(5))
    file.write_text(f"{newer}\n{file.read_text()}")
    await broker.recall()

    assert broker.current() == token(5)
    assert broker.status().sealed_with == rig.ring.place((await rig.store.read(KEY)).sealed)
    await broker.renew()
    assert (await rig.stored()).token == broker.current()


async def test_record_of_an_older_key_is_sealed_anew(rig: Rig) -> None:
    """At a look, so that the old key can go; who has a store that says no does so later."""
    old, new = new_key(), new_key()
    rig.ring = parse_keys([Secret(old)])
    await rig.put(record(5))
    rig.ring = parse_keys([Secret(new), Secret(old)])
    broker = rig.broker()
    rig.shaky.writing = StoreError("read-only")
    await broker.recall()
    assert broker.current() == token(5)
    assert broker.status().sealed_with == rig.ring.place((await rig.store.read(KEY)).sealed)
    assert _place(broker) == 2
    rig.shaky.writing = None
    await broker.recall()
    assert _place(broker) == 1
    rig.ring = parse_keys([Secret(new)])
    assert await rig.stored() == record(5)
    rig.shaky.commands.clear()
    await broker.recall()

    assert rig.shaky.commands == ["read"]


def _place(broker: Broker) -> int | None:
    sealed_with = broker.status().sealed_with
    assert sealed_with is not None
    return sealed_with[0]
