"""A credential that the issuer refused: asked about now and then, by one instance for all with the same secrets."""

from dataclasses import replace

import pytest

from sidecar.auth.grant import Anew
from sidecar.errors import ConfigurationError, CredentialRejected, IssuerUnavailable, Reason
from sidecar.tokens.broker import Broker
from sidecar.tokens.record import Record, Rejection
from sidecar.tokens.rejection import again, said
from tests.unit.broker_rig import (
    DEAD,
    DUE,
    LIFETIME,
    REFRESH,
    WALL,
    FakeClock,
    Rig,
    access,
    fleet_rig,
    record,
    refused,
    settle,
)

__all__ = ["fleet_rig"]

PAUSE = 330.0  # five minutes, and a tenth by chance
NO = CredentialRejected("invalid_client", "the issuer said invalid_client")
SALT = "0123456789abcdef"


@pytest.fixture
def rig(fleet_rig: Rig) -> Rig:
    fleet_rig.issuer.default = NO
    return fleet_rig


async def fleet(rig: Rig, number: int) -> list[Broker]:
    """Start so many instances, and let them settle."""
    brokers = [await rig.begun() for _ in range(number)]
    await rig.clock.advance(number)
    return brokers


def states(brokers: list[Broker]) -> set[str]:
    return {broker.status().state for broker in brokers}


def rejection(rig: Rig, **fields: object) -> Rejection:
    """Return a no to what is configured now, as another instance got it a moment ago."""
    plain = Rejection(
        at=WALL, secrets=rig.issuer.fingerprint(SALT), salt=SALT, error="e", message="m", count=1, until=WALL + 300
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


async def test_instances_with_the_same_secrets_are_refused_once(rig: Rig) -> None:
    """The issuer is asked by the first one that starts; the others learn of it from the store."""
    brokers = await fleet(rig, 20)

    assert len(rig.issuer.calls) == 1
    assert states(brokers) == {"rejected"}
    for broker in brokers:
        assert (await refused(broker.token(rig.after(60)))).reason is Reason.CREDENTIAL_REJECTED
    details = [event.detail for event in rig.renewals()]
    assert details[0] == "the issuer said invalid_client"
    assert details[1] == (
        "the issuer said invalid_client (said 0 s ago; not asked again for 330 s, but by auth-sidecar token renew)"
    )
    assert len(details) == 20


async def test_what_was_said_is_recorded(rig: Rig) -> None:
    """With the secrets as they were when the call began, of which nothing can be told without them."""
    rig.issuer.default = CredentialRejected("invalid_grant", "no", skew=-40.0)
    await fleet(rig, 1)
    stored = await rig.stored()
    assert stored.rejection is not None
    assert stored == Record(
        generation=1,
        rejection=Rejection(
            at=WALL,
            secrets=rig.issuer.fingerprint(stored.rejection.salt),
            salt=stored.rejection.salt,
            error="invalid_grant",
            message="no",
            count=1,
            until=WALL + PAUSE,
            skew=-40.0,
        ),
    )
    assert len(stored.rejection.salt) == 16


async def test_pauses_grow_while_the_answer_is_no(rig: Rig) -> None:
    """From five minutes to six hours, over all instances together, with or without requests."""
    brokers = await fleet(rig, 3)
    for _ in range(70):
        for broker in brokers:
            await refused(broker.token(rig.after(60)))
        await rig.clock.advance(5 * 60)
    gaps = [after - before for before, after in zip(rig.issuer.at, rig.issuer.at[1:], strict=False)]

    assert [round(gap / PAUSE, 1) for gap in gaps[:6]] == pytest.approx([1, 2, 4, 8, 16, 32], abs=0.3)
    assert len(rig.issuer.calls) == 7


async def test_another_secret_begins_anew(rig: Rig) -> None:
    """It may be refused once, not at once for hours; the salt stays, so that all see what it is of."""
    (broker,) = await fleet(rig, 1)
    await rig.clock.advance(PAUSE + 10)
    before = (await rig.stored()).rejection
    assert before is not None
    assert before.count == 2
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(10)
    after = (await rig.stored()).rejection
    assert after is not None
    assert (after.count, after.salt) == (1, before.salt)
    assert after.secrets != before.secrets
    assert broker.status().state == "rejected"


async def test_an_issuer_that_was_put_right_is_found(rig: Rig) -> None:
    """The next one who asks gets a token, and none of the others counts as rejected after that."""
    brokers = await fleet(rig, 10)
    rig.issuer.default = {}
    await rig.clock.advance(PAUSE + 10)

    assert len(rig.issuer.calls) == 2
    stored = await rig.stored()
    assert [broker.current() for broker in brokers] == [stored.token] * 10
    assert stored.rejection is None
    assert states(brokers) == {"valid"}


async def test_a_rejection_that_is_over_is_forgotten(rig: Rig) -> None:
    """When the token that came after it has ended, requests wait for the next one as ever."""
    (broker,) = await fleet(rig, 1)
    rig.issuer.default = {}
    await rig.clock.advance(PAUSE + 10)
    assert broker.current() is not None
    rig.issuer.default = IssuerUnavailable("down")
    await rig.clock.advance(LIFETIME)
    waiter = rig.later(refused(broker.token(rig.after(5))))
    await rig.clock.advance(4)
    assert not waiter.done()
    await rig.clock.advance(2)

    assert (await waiter).reason is Reason.TOKEN_UNAVAILABLE
    assert states([broker]) == {"expired"}


async def test_requests_do_not_wait_while_it_is_asked_again(rig: Rig) -> None:
    """They are refused at once, as before: most likely nothing has changed."""
    (broker,) = await fleet(rig, 1)
    rig.issuer.gate.clear()
    await rig.clock.advance(PAUSE + 10)
    assert len(rig.issuer.calls) == 2

    assert (await refused(broker.token(rig.after(60)))).reason is Reason.CREDENTIAL_REJECTED
    assert states([broker]) == {"rejected"}


async def test_an_operator_asks_at_once(rig: Rig) -> None:
    """Whatever lies in the store."""
    first, second = await fleet(rig, 2)
    with pytest.raises(CredentialRejected):
        await second.renew()
    assert len(rig.issuer.calls) == 2
    rig.issuer.default = {}

    assert (await first.renew()).values == access(3)


@pytest.mark.parametrize("locks", [False, True])
async def test_a_changed_secret_is_not_held_up(rig: Rig, locks: bool) -> None:
    """What was refused was another one."""
    rig.issuer.default = CredentialRejected("invalid_grant", "no", locks=locks)
    (broker,) = await fleet(rig, 1)
    rig.issuer.default = {}
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(6)

    assert broker.current() is not None


async def test_a_restart_is_no_reason_to_ask(rig: Rig) -> None:
    """A process that is started again and again does not get the account locked."""
    for _ in range(10):
        (broker,) = await fleet(rig, 1)
        await broker.aclose()
        await rig.clock.advance(20)

    assert len(rig.issuer.calls) == 1


async def test_what_may_lock_an_account_is_never_asked_again(rig: Rig) -> None:
    """Not after hours, not by a restart, not by another instance: only with another secret, or by an operator."""
    rig.issuer.default = CredentialRejected("invalid_grant", "wrong password", locks=True)
    first, second = await fleet(rig, 2)
    await rig.clock.advance(7 * 3600)
    await refused(second.token(rig.after(60)))
    await fleet(rig, 1)
    assert len(rig.issuer.calls) == 1
    stored = (await rig.stored()).rejection
    assert stored is not None
    assert stored.until is None
    refusal = await refused((await rig.begun()).token(rig.after(60)))
    assert "not asked again until it or the configuration changes, but by auth-sidecar token renew" in refusal.detail
    rig.issuer.default = {}

    assert (await first.renew()).values == access(2)


async def test_a_clock_that_was_set_is_another_try(rig: Rig) -> None:
    """Where the issuer's clock was another: an assertion of ours was not valid yet, or no longer."""
    rig.issuer.default = CredentialRejected("invalid_client", "no", skew=-3600.0)
    (broker,) = await fleet(rig, 1)
    await rig.clock.advance(60)
    assert len(rig.issuer.calls) == 1
    rig.clock.wall -= 4
    await rig.clock.advance(10)
    assert not broker._renewing.can_start()
    rig.clock.wall -= 3600
    await rig.clock.advance(10)
    assert len(rig.issuer.calls) == 2
    assert not broker._renewing.can_start()
    await rig.clock.advance(300)
    assert len(rig.issuer.calls) == 2


async def test_a_clock_that_was_set_is_no_reason_where_it_was_right(rig: Rig) -> None:
    """The no had another reason."""
    (broker,) = await fleet(rig, 1)
    rig.clock.wall += 20
    await rig.clock.advance(2)

    assert not broker._renewing.can_start()


async def test_what_is_left_of_the_time_counts_for_who_comes_late(rig: Rig) -> None:
    """It asks when the five minutes of the first are over, not its own."""
    (first,) = await fleet(rig, 1)
    await first.aclose()
    await rig.clock.advance(PAUSE - 50)
    await fleet(rig, 1)
    await rig.clock.advance(60)

    assert len(rig.issuer.calls) == 2


async def test_without_the_store_each_asks_for_itself(rig: Rig) -> None:
    """Nobody can tell them; each waits its five minutes."""
    rig.shaky.fail()
    await fleet(rig, 3)
    assert len(rig.issuer.calls) == 3
    await rig.clock.advance(PAUSE - 10)

    assert len(rig.issuer.calls) == 3


async def test_without_the_store_a_no_is_counted_too(rig: Rig) -> None:
    """In memory: the second pause is longer than the first."""
    rig.shaky.fail()
    await fleet(rig, 1)
    await rig.clock.advance(PAUSE * 2)
    assert len(rig.issuer.calls) == 2
    await rig.clock.advance(PAUSE * 0.8)

    assert len(rig.issuer.calls) == 2


@pytest.mark.parametrize(
    "fields",
    [{"until": WALL}, {"until": WALL - 1}, {"secrets": "of others"}, {"salt": "another"}],
    ids=str,
)
async def test_a_no_that_says_nothing_of_now_is_passed_over(rig: Rig, fields: dict[str, object]) -> None:
    """One whose pause is over, one to other secrets."""
    rig.issuer.default = {}
    await rig.put(Record(generation=3, rejection=rejection(rig, **fields)))
    (broker,) = await fleet(rig, 1)

    assert broker.current() is not None
    assert (await rig.stored()).rejection is None


@pytest.mark.parametrize("fields", [{}, {"until": None}, {"until": WALL + 0.5}], ids=str)
async def test_a_no_of_this_moment_counts(rig: Rig, fields: dict[str, object]) -> None:
    """The near miss of the ones above."""
    rig.issuer.default = {}
    await rig.put(Record(generation=3, rejection=rejection(rig, **fields)))
    await rig.begun()

    assert rig.issuer.calls == []


async def test_a_no_is_said_with_its_code(rig: Rig) -> None:
    """Whoever repeats it: `diagnose` goes by the code."""
    clock = FakeClock()
    no = said(CredentialRejected("invalid_grant", "no", locks=False), None, SALT, "f", clock)
    clock.wall += 30
    repeated = again(no, clock.wall)
    assert (repeated.error, str(repeated)) == (
        "invalid_grant",
        "no (said 30 s ago; not asked again for 300 s, but by auth-sidecar token renew)",
    )


async def test_a_token_since_then_means_that_it_may_be_asked(rig: Rig) -> None:
    """Another instance, with another secret perhaps, got one after the rejection."""
    await fleet(rig, 1)
    await rig.put(record(3))
    await rig.clock.advance(20)
    rig.issuer.default = {}
    (late,) = await fleet(rig, 1)
    await rig.clock.advance(100)

    assert len(rig.issuer.calls) == 2
    assert late.current() is not None


async def test_times_of_a_no_are_the_stores(rig: Rig) -> None:
    """An instance whose clock is off takes the same five minutes for over."""
    rig.shaky.ahead = 1000.0
    rig.issuer.default = {}
    no = rejection(rig, at=WALL + 1000, until=WALL + 1300)
    await rig.put(Record(generation=3, rejection=no))
    await fleet(rig, 1)
    assert rig.issuer.calls == []
    await rig.clock.advance(310)

    assert len(rig.issuer.calls) == 1


async def test_the_latch_shows_until_a_newer_token_is_here(rig: Rig) -> None:
    """A token of before the rejection does not mean that the credential is well."""
    await rig.put(record(3))
    (broker,) = await fleet(rig, 1)
    assert states([broker]) == {"valid"}
    with pytest.raises(CredentialRejected):
        await broker.renew()
    assert states([broker]) == {"rejected"}
    await rig.put(record(9))
    await rig.clock.advance(6)

    assert states([broker]) == {"valid"}


async def test_a_token_that_is_over_lifts_no_latch(rig: Rig) -> None:
    """It is of no use to anybody."""
    (broker,) = await fleet(rig, 1)
    await rig.put(record(9, left=0))
    await rig.clock.advance(6)

    assert states([broker]) == {"rejected"}


async def test_a_secret_that_cannot_be_read_is_no_answer_of_the_issuer(rig: Rig) -> None:
    """It stands for this process alone, and the record stays as it was, so that who has the secret goes on."""
    rig.issuer.anew = Anew.ONCE
    before = record(7, kept=REFRESH, claimed=True)
    await rig.put(before)
    rig.issuer.default = ConfigurationError("no such file")
    (broker,) = await fleet(rig, 1)
    await rig.clock.advance(DUE)
    assert states([broker]) == {"rejected"}
    stored = await rig.stored()
    assert stored == replace(before, generation=stored.generation)
    rig.issuer.default = {}
    (other,) = await fleet(rig, 1)
    await rig.clock.advance(3)

    assert rig.issuer.calls == [REFRESH.reveal()] * 2
    assert states([other]) == {"valid"}


async def test_who_is_stuck_looks_again(rig: Rig) -> None:
    """Nothing is asked of the issuer, and no no of it is recorded: another instance may mend it."""
    rig.issuer.anew, rig.issuer.default = Anew.ONCE, {}
    before = record(7, left=0, kept=REFRESH, claimed=True, presented=DEAD)
    await rig.put(before)
    (broker,) = await fleet(rig, 1)
    assert states([broker]) == {"rejected"}
    assert await rig.stored() == before
    await rig.put(replace(before, generation=8, presented=None))
    await rig.clock.advance(310)

    assert rig.issuer.calls == [REFRESH.reveal()]
    assert states([broker]) == {"valid"}
    await settle()
