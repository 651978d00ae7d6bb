"""Renewals: when they come, what a failure means for the next one, and what is told of them."""

import asyncio
from itertools import pairwise

import pytest

from sidecar.errors import ConfigurationError, CredentialRejected, IssuerUnavailable, Reason
from sidecar.events import LifetimeDiffers, Renewal, ScopeNarrower, Trouble
from sidecar.tokens.difference import likely_cause
from sidecar.tokens.record import Record
from sidecar.tokens.token import Token
from tests.canary import canary
from tests.unit.broker_rig import (
    DUE,
    LEASE_SIGN,
    LIFETIME,
    REFRESH,
    TURN,
    USABLE,
    WALL,
    Rig,
    access,
    bare,
    record,
    refused,
    rig,
    settle,
    token,
)

__all__ = ["rig"]


# ahead of time


async def test_the_timer_renews_when_due(rig: Rig) -> None:
    """A token is renewed at its end less the margin, with jitter, and not before; requests never see a gap."""
    broker = await rig.started()
    await rig.clock.advance(DUE - 0.1)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(0.1)
    assert len(rig.issuer.calls) == 2
    assert broker.current() == (await rig.stored()).token
    assert [event.trigger for event in rig.renewals()] == ["start", "due"]
    await rig.clock.advance(3 * DUE)
    assert len(rig.issuer.calls) == 5


async def test_a_shorter_successor_is_renewed_in_its_own_time(rig: Rig) -> None:
    """The timer goes by the newest token, whoever renewed it: an operator's shorter one is not slept through."""
    broker = await rig.started()
    await rig.clock.advance(10)
    rig.issuer.answers.append({"lifetime": 20.0})
    await broker.renew()
    await rig.clock.advance(16.9)
    assert len(rig.issuer.calls) == 2
    await rig.clock.advance(0.2)
    assert len(rig.issuer.calls) == 3


async def test_a_lifetime_that_changes_in_mid_run_is_followed(rig: Rig) -> None:
    """Each token is renewed in its own time, whatever the ones before it had and whatever is configured."""
    broker = await rig.started(configured_lifetime=100.0, check_every=3600)
    began, renewed = rig.clock.mono, [0.0]
    for lifetime in (1000.0, 20.0, 100.0, 400.0):
        rig.issuer.default = {"lifetime": lifetime}
        calls = len(rig.issuer.calls)
        while len(rig.issuer.calls) == calls:
            await rig.clock.advance(1)
        renewed.append(rig.issuer.at[-1] - began)
        assert broker.current() is not None

    assert renewed == [0.0, 85.0, 935.0, 952.0, 1037.0]
    told = [(event.configured, event.granted) for event in rig.events if isinstance(event, LifetimeDiffers)]
    assert told == [(100.0, 1000.0), (100.0, 20.0), (100.0, 400.0)]


@pytest.mark.parametrize("chance", [0.0, 0.999])
async def test_a_margin_too_small_leaves_no_gap(rig: Rig, chance: float) -> None:
    """Whatever margin is configured, a token is renewed before it can no longer be used."""
    rig.clock.chance = chance
    broker = await rig.started(margin="0s")
    for _ in range(3 * int(LIFETIME) * 2):
        await rig.clock.advance(0.5)
        assert broker.status().usable
    assert len(rig.issuer.calls) == 4


async def test_who_has_waited_leaves_nothing_behind(rig: Rig) -> None:
    """Neither one who got a token, nor one who left, nor an operator keeps a sleeper of the clock."""
    rig.issuer.gate.clear()
    broker = rig.broker(check_every=0)
    await broker.start()
    waiter, leaver = (rig.later(broker.token(rig.after(60))) for _ in range(2))
    operator = rig.later(broker.renew())
    await settle()
    assert rig.clock.sleeping() == [TURN, LEASE_SIGN, 60.0, 60.0]
    leaver.cancel()
    await settle()
    assert rig.clock.sleeping() == [TURN, LEASE_SIGN, 60.0]
    rig.issuer.gate.set()
    await asyncio.gather(waiter, operator)
    await settle()
    assert rig.clock.sleeping() == []


async def test_the_first_token_is_got_when_it_is_its_turn(rig: Rig) -> None:
    """Until then the credential counts as not asked for; the turn is given back when the token is there."""
    turns = asyncio.Semaphore(0)
    broker = rig.broker(turns=turns)
    await broker.start()
    await settle()
    assert (rig.issuer.calls, broker.status().attempted) == ([], False)
    turns.release()
    await settle()
    assert (len(rig.issuer.calls), broker.status().usable) == (1, True)
    assert not turns.locked()


async def test_who_needs_a_token_waits_for_no_turn(rig: Rig) -> None:
    """A request has its token at once; the turn that comes later asks for no second one."""
    turns = asyncio.Semaphore(0)
    broker = rig.broker(turns=turns)
    await broker.start()
    assert (await broker.token(rig.after(1))).values == access(1)
    turns.release()
    await settle()
    assert len(rig.issuer.calls) == 1
    assert rig.renewals()[0].trigger == "demand"


async def test_a_slow_issuer_keeps_its_turn_for_a_second(rig: Rig) -> None:
    """Then the next begins, while the slow one is still waited for; what is got in the end is kept."""
    rig.issuer.gate.clear()
    turns = asyncio.Semaphore(1)
    broker = rig.broker(turns=turns)
    await broker.start()
    await settle()
    assert turns.locked()
    await rig.clock.advance(TURN)
    assert not turns.locked()
    assert broker.status().attempted is False
    rig.issuer.gate.set()
    await settle()
    assert broker.status().usable


async def test_a_failed_first_renewal_gives_its_turn_back(rig: Rig) -> None:
    """It waits to try again without a turn."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    turns = asyncio.Semaphore(1)
    broker = rig.broker(turns=turns)
    await broker.start()
    await settle()
    assert (broker.status().attempted, broker.status().usable) == (True, False)
    assert not turns.locked()


async def test_looks_at_the_store_take_turns(rig: Rig) -> None:
    """A thousand timers that began together do not all read at once: a token of another process is found in turn."""
    turns = asyncio.Semaphore(1)
    broker = rig.broker(turns=turns, check_every=30)
    await broker.start()
    await settle()
    await turns.acquire()
    await rig.put(record(7))
    await rig.clock.advance(30)
    assert broker.status().generation == 1
    turns.release()
    await settle()
    assert broker.status().generation == 7


async def test_a_renewal_is_two_commands(rig: Rig) -> None:
    """The lease with what is stored, and the write that gives it back; a timer does not read what it has written."""
    await rig.started()
    await rig.clock.advance(DUE)
    assert len(rig.issuer.calls) == 2
    assert rig.shaky.commands == ["read", "take", "write", "take", "write"]


async def test_a_renewal_with_a_refresh_token_is_three_commands(rig: Rig) -> None:
    """Its use is noted first."""
    rig.issuer.default = {"kept": REFRESH}
    await rig.started()
    rig.shaky.commands.clear()
    await rig.clock.advance(DUE)
    assert rig.issuer.calls == [None, REFRESH.reveal()]
    assert rig.shaky.commands == ["take", "write", "write"]


async def test_chance_is_drawn_once_per_token(rig: Rig) -> None:
    """The moment a token is due does not wander, however often it is looked at."""
    broker = await rig.started()
    for _ in range(100):
        broker.current()
    await rig.clock.advance(DUE / 2)
    assert rig.clock.jitters == 1


async def test_the_timer_looks_at_the_store(rig: Rig) -> None:
    """At least every check_every a newer token of another process is taken up, without asking the issuer."""
    broker = await rig.started(check_every=30)
    await rig.put(record(9))
    await rig.clock.advance(29.9)
    assert bare(broker.current()).granted == 1
    await rig.clock.advance(0.2)
    assert broker.current() == token(9)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(DUE - 30.2)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(0.2)
    assert len(rig.issuer.calls) == 2


async def test_an_older_record_is_not_taken_up(rig: Rig) -> None:
    """A store that was set back does not bring back an old token."""
    await rig.put(record(9))
    broker = await rig.started(check_every=30)
    rig.shaky.wipe()
    await rig.put(record(8))
    await rig.clock.advance(31)
    assert broker.current() == token(9)


async def test_without_a_timer_requests_renew_and_do_not_wait(rig: Rig) -> None:
    """check_every 0: nothing happens by itself; a request that finds the token due has it renewed and goes on."""
    broker = await rig.started(check_every=0)
    rig.issuer.gate.clear()
    await rig.clock.advance(DUE - 0.1)
    assert broker.current() is not None
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(0.2)
    assert broker.status().state == "due"
    await settle()
    assert len(rig.issuer.calls) == 1
    old = [broker.current() for _ in range(100)]
    assert {got.granted for got in old if got} == {1}
    await settle()
    assert len(rig.issuer.calls) == 2
    rig.issuer.gate.set()
    await settle()
    assert bare(broker.current()).trigger == "due"
    assert rig.clock.sleeping() == []


async def test_an_idle_timer_does_not_spin(rig: Rig) -> None:
    """With nothing to do but wait it sleeps; a rejected one looks at the store, since others may have a good secret."""
    await rig.started(check_every=30)
    assert rig.clock.sleeping() == [30.0]
    await rig.clock.advance(30)
    assert rig.clock.sleeping() == [30.0]
    await rig.brokers[0].revoke()
    rig.issuer.default = CredentialRejected("invalid_client", "no")
    broker = rig.broker(check_every=30)
    await broker.start()
    await settle()
    assert broker.status().state == "rejected"
    assert 5.0 in rig.clock.sleeping()


async def test_the_old_token_serves_to_its_last_moment(rig: Rig) -> None:
    """While the issuer is down the token is handed out until shortly before its end, then nobody gets it."""
    broker = await rig.started()
    rig.issuer.default = IssuerUnavailable("down")
    await rig.clock.advance(USABLE - 0.1)
    assert bare(broker.current()).granted == 1
    assert broker.status().state == "due"
    await rig.clock.advance(0.2)
    assert broker.current() is None
    assert (broker.status().state, broker.status().usable) == ("expired", False)
    waiter = rig.later(broker.token(rig.after(60)))
    rig.issuer.default = {}
    await rig.clock.advance(40)
    assert (await waiter).granted == 2


# failures


async def test_failures_are_spaced(rig: Rig) -> None:
    """Attempts of a campaign come after growing waits, and never before the issuer's Retry-After."""
    down = IssuerUnavailable("down")
    rig.issuer.answers.extend([down, down, down, IssuerUnavailable("slow down", retry_after=20.0)])
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(60)
    assert rig.issuer.at == [1000.0, 1000.5, 1001.5, 1003.5, 1023.5]
    assert broker.current() is not None
    assert [event.result for event in rig.renewals()] == ["unavailable"] * 4 + ["ok"]
    assert rig.renewals()[3].detail == "slow down"


async def test_failed_attempts_end_when_another_has_renewed(rig: Rig) -> None:
    """Before each attempt the store is looked at: a token of another process is taken, the issuer left alone."""
    rig.issuer.default = IssuerUnavailable("down")
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await rig.put(record(3))
    await rig.clock.advance(1)
    assert await waiter == token(3)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(10)
    assert len(rig.issuer.calls) == 1


async def test_a_rejected_credential_is_not_tried_again(rig: Rig) -> None:
    """Everybody who waits is told at once, who comes later too, and for minutes the issuer is left in peace."""
    rig.issuer.gate.clear()
    rig.issuer.default = CredentialRejected("invalid_client", "the issuer said invalid_client")
    broker = rig.broker()
    await broker.start()
    waiters = [rig.later(refused(broker.token(rig.after(60)))) for _ in range(10)]
    await settle()
    rig.issuer.gate.set()
    assert {refusal.reason for refusal in await asyncio.gather(*waiters)} == {Reason.CREDENTIAL_REJECTED}
    await rig.clock.advance(299)
    late = await refused(broker.token(rig.after(60)))
    assert late.reason is Reason.CREDENTIAL_REJECTED
    assert late.detail == "the issuer said invalid_client"
    assert len(rig.issuer.calls) == 1
    assert (broker.status().state, broker.status().attempted) == ("rejected", True)
    assert [(event.result, event.detail) for event in rig.renewals()] == [
        ("rejected", "the issuer said invalid_client")
    ]


async def test_a_rejected_credential_keeps_its_valid_token(rig: Rig) -> None:
    """The token that is there serves until its end; only then requests are refused."""
    broker = await rig.started()
    rig.issuer.default = CredentialRejected("invalid_grant", "no")
    await rig.clock.advance(USABLE - 1)
    assert broker.current() is not None
    assert (await broker.token(rig.after(60))).granted == 1
    assert (broker.status().state, broker.status().usable) == ("rejected", True)
    await rig.clock.advance(2)
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.CREDENTIAL_REJECTED
    assert len(rig.issuer.calls) == 2


async def test_a_changed_secret_is_tried(rig: Rig) -> None:
    """A rejected credential is looked at when it is needed, at most once a second; a change is tried at once."""
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker()
    await broker.start()
    await settle()
    looks = rig.issuer.looks
    for _ in range(10):
        await refused(broker.token(rig.after(60)))
    assert rig.issuer.looks == looks
    await rig.clock.advance(1)
    for _ in range(10):
        await refused(broker.token(rig.after(60)))
    assert rig.issuer.looks == looks + 1
    rig.issuer.secret = "secret-2"
    await refused(broker.token(rig.after(60)))
    await rig.clock.advance(1)
    assert (await broker.token(rig.after(60))).values == access(2)
    assert broker.status().state == "valid"


async def test_the_timer_finds_a_changed_secret(rig: Rig) -> None:
    """Without any request a changed credential is found within check_every: readiness may depend on it."""
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker(check_every=30)
    await broker.start()
    await settle()
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(30)
    assert broker.current() is not None


async def test_a_secret_changed_during_the_call_is_tried(rig: Rig) -> None:
    """What was rejected is the secret as it was when the call began."""
    rig.issuer.gate.clear()
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker()
    await broker.start()
    await settle()
    rig.issuer.secret = "secret-2"
    rig.issuer.gate.set()
    await rig.clock.advance(1)
    assert (await broker.token(rig.after(60))).values == access(2)


async def test_an_unreadable_secret_counts_as_rejected(rig: Rig) -> None:
    """A secret file that is gone is the operator's to mend: his text in the event, no more calls until it is back."""
    rig.issuer.secret = "unreadable"
    rig.issuer.answers.append(ConfigurationError("secret file is missing"))
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(299)
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.CREDENTIAL_REJECTED
    assert [(event.result, event.detail) for event in rig.renewals()] == [("rejected", "secret file is missing")]
    rig.issuer.secret = "secret-1"
    await rig.clock.advance(1)
    assert (await broker.token(rig.after(60))).values == access(2)
    assert (await rig.stored()).rejection is None


async def test_a_bug_of_the_issuer_is_weather(rig: Rig) -> None:
    """An exception nobody thought of is reported by its type alone, tried again, and kills no timer."""
    rig.issuer.answers.append(ZeroDivisionError(canary("in a message")))
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(0.5)
    assert broker.current() is not None
    assert [event.detail for event in rig.renewals()] == ["internal error: ZeroDivisionError", ""]
    rig.issuer.answers.append(ZeroDivisionError())
    await rig.clock.advance(3 * DUE)
    assert len(rig.issuer.calls) == 5
    assert broker.current() is not None


async def test_a_token_that_is_over_already_is_weather(rig: Rig) -> None:
    """An issuer that grants no time at all is not asked again and again without a pause."""
    rig.issuer.default = {"requested_at": WALL - 1000}
    broker = rig.broker()
    waiter = rig.later(refused(broker.token(rig.after(3))))
    await rig.clock.advance(3)
    assert (await waiter).reason is Reason.TOKEN_UNAVAILABLE
    assert len(rig.issuer.calls) == 3
    assert {event.result for event in rig.renewals()} == {"unavailable"}


async def test_an_unexpected_end_of_a_task_is_told(rig: Rig) -> None:
    """A bug in the broker itself does not die in silence, and shows no value."""
    broker = await rig.started(check_every=30)

    async def broken() -> None:
        raise KeyError(canary("value"))

    broker._holding.look = broken  # type: ignore[method-assign]
    await rig.clock.advance(30)
    assert rig.troubles() == [Trouble(where="timer of plm", detail="internal error: KeyError")]


async def test_without_a_token_the_end_of_an_outage_is_noticed_soon(rig: Rig) -> None:
    """While nothing can serve, the issuer is asked every eight seconds at least."""
    rig.clock.chance = 1.0
    rig.issuer.default = IssuerUnavailable("down")
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(120)

    waits = [later - before for before, later in pairwise(rig.issuer.at)]
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert set(waits[5:]) == {8.0}


# events


async def test_every_call_ends_in_an_event(rig: Rig) -> None:
    """A Renewal says why, how it ended, how long it took and what was granted; status repeats the last."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(2)
    rig.issuer.gate.set()
    await rig.clock.advance(1)
    assert rig.renewals() == [
        Renewal(upstream="plm", trigger="start", result="unavailable", seconds=2.0, detail="down"),
        Renewal(
            upstream="plm",
            trigger="start",
            result="ok",
            seconds=0.0,
            generation=1,
            lifetime=LIFETIME,
            grant="client_credentials",
        ),
    ]
    last = broker.status().last
    assert last is not None
    assert (last.time, last.trigger, last.result, last.seconds, last.detail) == (WALL + 2.5, "start", "ok", 0.0, "")


async def test_what_is_granted_is_recorded(rig: Rig) -> None:
    """The record holds what the issuer said, counted from the request on."""
    rig.issuer.gate.clear()
    rig.issuer.answers.append({"scope": "b a", "asked": "a c b d", "kept": REFRESH, "source": "jwt"})
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(3)
    rig.issuer.gate.set()
    await settle()
    granted = Token(
        values=access(1),
        issued_at=WALL,
        expires_at=WALL + LIFETIME,
        granted=1,
        scope="b a",
        missing="c d",
        source="jwt",
        how="client_credentials",
        trigger="start",
        by="test/1",
    )
    assert await rig.stored() == Record(generation=1, token=granted, kept=REFRESH)
    await rig.clock.advance(USABLE - 3)
    assert bare(broker.current()).values == access(2)


@pytest.mark.parametrize(("scope", "asked"), [(None, "a b"), ("a", None), ("a b", "b a")])
async def test_a_scope_as_asked_for_lacks_nothing(rig: Rig, scope: str | None, asked: str | None) -> None:
    """No scope in the answer means the one asked for (RFC 6749 section 5.1)."""
    rig.issuer.default = {"scope": scope, "asked": asked}
    broker = await rig.started()
    assert bare(broker.current()).missing == ""
    assert not [event for event in rig.events if isinstance(event, ScopeNarrower)]


async def test_a_narrower_scope_is_told_once(rig: Rig) -> None:
    """Each time that something else is missing."""
    rig.issuer.answers.extend({"scope": scope, "asked": "a b c"} for scope in ("a", "a", "b a", "a"))
    broker = await rig.started()
    for _ in range(3):
        await broker.renew()
    assert [event for event in rig.events if isinstance(event, ScopeNarrower)] == [
        ScopeNarrower(upstream="plm", granted="a", missing="b c"),
        ScopeNarrower(upstream="plm", granted="b a", missing="c"),
    ]


async def test_another_lifetime_is_told_once(rig: Rig) -> None:
    """A lifetime more than 5 % off the configured one is told with a likely cause, once per pair of numbers."""
    rig.issuer.answers.extend(
        [{"lifetime": 60.0, "scope": "offline"}, {"lifetime": 60.4}, {"lifetime": 200.0}, {"lifetime": 60.0}]
    )
    broker = await rig.started(configured_lifetime=100.0)
    for _ in range(3):
        await broker.renew()
    differences = [event for event in rig.events if isinstance(event, LifetimeDiffers)]
    assert differences == [
        LifetimeDiffers(
            upstream="plm",
            configured=100.0,
            granted=60.0,
            source="expires_in",
            cause=likely_cause(100, 60, "offline"),
        ),
        LifetimeDiffers(
            upstream="plm", configured=100.0, granted=200.0, source="expires_in", cause=likely_cause(100, 200, None)
        ),
    ]


def test_the_likely_cause_names_the_scope() -> None:
    """A scope with a lifetime of its own is the usual cause, else the issuer's policy; longer or shorter is said."""
    assert "scope offline" in likely_cause(100, 60, "offline")
    assert "policy" in likely_cause(100, 60, None)
    assert "shorter" in likely_cause(100, 60, None)
    assert "longer" in likely_cause(100, 200, None)


@pytest.mark.parametrize(("configured", "granted"), [(100.0, 95.0), (100.0, 105.0), (None, 5.0)])
async def test_the_expected_lifetime_is_not_told(rig: Rig, configured: float | None, granted: float) -> None:
    """Within 5 %, or with nothing configured, there is nothing to tell."""
    rig.issuer.default = {"lifetime": granted}
    await rig.started(configured_lifetime=configured)
    assert not [event for event in rig.events if isinstance(event, LifetimeDiffers)]
