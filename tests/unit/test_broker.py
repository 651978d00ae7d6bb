"""The broker: who waits for a token, what a 401 and an operator set off, and how it ends."""

import asyncio
from dataclasses import replace

import pytest

from sidecar.auth.grant import Grant
from sidecar.clock import SystemClock
from sidecar.errors import (
    ConfigurationError,
    CredentialRejected,
    IssuerUnavailable,
    Reason,
    SidecarError,
    StoreError,
)
from sidecar.secret import Secret
from sidecar.settings import Renew
from sidecar.tokens.broker import Broker
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.record import Record
from sidecar.tokens.seal import Keys
from sidecar.tokens.store import Stored
from tests.canary import canary
from tests.unit.broker_rig import (
    DUE,
    KEY,
    LIFETIME,
    REFRESH,
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


# start


async def test_start_does_not_wait_for_the_first_token(rig: Rig) -> None:
    """Start begins the first renewal and returns; requests wait for it."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    await asyncio.wait_for(broker.start(), 10)
    await settle()
    assert broker.current() is None
    assert (broker.status().state, broker.status().attempted, broker.status().usable) == ("none", False, False)
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    rig.issuer.gate.set()
    assert (await waiter).values == access(1)
    assert [event.trigger for event in rig.renewals()] == ["start"]
    assert (broker.status().state, broker.status().attempted, broker.status().usable) == ("valid", True, True)


async def test_start_takes_up_a_stored_token(rig: Rig) -> None:
    """A restart asks the issuer for nothing while the stored token lasts, and counts as a first attempt."""
    await rig.put(record(7))
    broker = await rig.started()
    assert broker.current() == token(7)
    assert rig.issuer.calls == []
    status = broker.status()
    assert (status.state, status.attempted, status.generation) == ("valid", True, 7)
    assert (status.expires_at, status.lifetime, status.last) == (WALL + LIFETIME, LIFETIME, None)


async def test_start_renews_an_expired_stored_token_with_its_refresh_token(rig: Rig) -> None:
    """An expired record still has the newest refresh token, and the generation to go on from."""
    await rig.put(record(7, kept=REFRESH, left=1))
    broker = await rig.started()
    assert rig.issuer.calls == [REFRESH.reveal()]
    assert (await rig.stored()).generation == 9  # the use was noted, then the answer
    assert broker.current() == (await rig.stored()).token
    assert [event.generation for event in rig.renewals()] == [9]


@pytest.mark.parametrize("damage", ["garbage", "cut", "name", "generation", "empty"])
async def test_a_record_that_cannot_be_read_is_a_miss(rig: Rig, damage: str) -> None:
    """Damaged, moved, rolled back: reported, never used, never deleted, written over."""
    plain = record(5).encode()
    sealed = {
        "garbage": b"garbage",
        "cut": rig.ring.seal(KEY, plain)[:-1],
        "name": rig.ring.seal(KEY + "x", plain),
        "generation": rig.ring.seal(KEY, record(4).encode()),
        "empty": b"",
    }[damage]
    await rig.put_bytes(sealed, 5)
    rig.issuer.gate.clear()
    broker = await rig.begun()
    assert broker.current() is None
    assert await rig.store.read(KEY) == Stored(5, sealed)
    assert {event.where for event in rig.troubles()} == {"token store of plm"}
    rig.issuer.gate.set()
    await settle()
    assert (await rig.stored()).generation == 6
    assert broker.current() == (await rig.stored()).token


# waiting


async def test_a_cold_start_asks_once(rig: Rig) -> None:
    """However many requests wait for the first token, the issuer is asked once and all get the same."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    waiters = [rig.later(broker.token(rig.after(60))) for _ in range(200)]
    await settle()
    rig.issuer.gate.set()
    assert {got.granted for got in await asyncio.gather(*waiters)} == {1}
    assert len(rig.issuer.calls) == 1


async def test_requests_ask_for_what_nobody_asked_for(rig: Rig) -> None:
    """Without a start, the first request begins the renewal."""
    broker = rig.broker()
    assert broker.current() is None
    assert rig.issuer.calls == []
    assert (await broker.token(rig.after(60))).trigger == "demand"
    assert len(rig.issuer.calls) == 1


async def test_who_leaves_disturbs_nobody(rig: Rig) -> None:
    """Half of the waiters are cancelled: the renewal goes on and the others get its token."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiters = [rig.later(broker.token(rig.after(60))) for _ in range(100)]
    await settle()
    for waiter in waiters[::2]:
        waiter.cancel()
    await settle()
    rig.issuer.gate.set()
    assert [(await waiter).values for waiter in waiters[1::2]] == [access(1)] * 50
    assert all(waiter.cancelled() for waiter in waiters[::2])
    assert len(rig.issuer.calls) == 1
    assert [event.result for event in rig.renewals()] == ["ok"]


async def test_a_deadline_ends_the_wait_not_the_renewal(rig: Rig) -> None:
    """At its deadline a request is refused with a time to come back; who has more time gets the token."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    patient = rig.later(broker.token(rig.after(60)))
    hasty = rig.later(refused(broker.token(rig.after(10))))
    await rig.clock.advance(9.9)
    assert not hasty.done()
    await rig.clock.advance(0.1)
    refusal = await hasty
    assert (refusal.reason, refusal.retry_after) == (Reason.TOKEN_UNAVAILABLE, 1)
    rig.issuer.gate.set()
    assert (await patient).granted == 1
    assert len(rig.issuer.calls) == 1


async def test_nobody_waits_for_what_comes_after_the_deadline(rig: Rig) -> None:
    """The issuer asked for 42.5 s: who has less is told at once when to come back, who has more waits."""
    rig.issuer.answers.append(IssuerUnavailable("down", retry_after=42.5))
    broker = await rig.begun()
    refusal = await refused(broker.token(rig.after(42)))
    assert (refusal.reason, refusal.retry_after) == (Reason.TOKEN_UNAVAILABLE, 43)
    waiter = rig.later(broker.token(rig.after(43)))
    await rig.clock.advance(10)
    assert not waiter.done()
    assert (await refused(broker.token(rig.after(1)))).retry_after == 33
    await rig.clock.advance(32.5)
    assert await waiter == broker.current()


async def test_a_deadline_that_is_over_does_not_wait(rig: Rig) -> None:
    """A request without time left gets its answer without the clock moving."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    assert (await refused(broker.token(rig.after(-1)))).reason is Reason.TOKEN_UNAVAILABLE


async def test_a_usable_token_is_given_without_waiting(rig: Rig) -> None:
    """With a token in memory nothing is awaited, even past the deadline."""
    broker = await rig.started()
    with pytest.raises(StopIteration) as caught:
        broker.token(rig.after(-1)).send(None)
    assert caught.value.value is broker.current()


# after a 401


async def test_a_401_is_answered_from_memory(rig: Rig) -> None:
    """A late 401 for a token that has a successor costs nothing: replay with the successor."""
    broker = await rig.started()
    old = broker.current()
    new = await broker.renew()
    assert old
    assert await broker.after(old, rig.after(60)) == new
    assert len(rig.issuer.calls) == 2
    assert broker.status().state == "valid"


async def test_a_401_is_answered_from_the_store(rig: Rig) -> None:
    """If another process has renewed already, its token is taken."""
    broker = await rig.started()
    old = broker.current()
    assert old
    await rig.put(record(5))
    assert await broker.after(old, rig.after(60)) == token(5)
    assert broker.current() == token(5)
    assert len(rig.issuer.calls) == 1


async def test_many_401s_look_at_the_store_once_a_second(rig: Rig) -> None:
    """A storm of 401s does not become a storm on the store."""
    broker = await rig.started(check_every=0)
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    await rig.clock.advance(1)
    rig.shaky.commands.clear()
    assert await asyncio.gather(*(broker.after(used, rig.after(60)) for _ in range(50))) == [None] * 50
    assert rig.shaky.commands == ["read"]
    await rig.clock.advance(0.9)
    await broker.after(used, rig.after(60))
    assert rig.shaky.commands == ["read"]
    await rig.clock.advance(0.1)
    await broker.after(used, rig.after(60))
    assert rig.shaky.commands == ["read"] * 2


async def test_many_401s_force_one_renewal(rig: Rig) -> None:
    """A revoked token: 200 requests at once cost one call, and each can replay with its token."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    waiters = [rig.later(broker.after(used, rig.after(60))) for _ in range(200)]
    await settle()
    assert len(rig.issuer.calls) == 2
    rig.issuer.gate.set()
    new = await broker.token(0)
    assert await asyncio.gather(*waiters) == [new] * 200
    assert (new.granted, new.trigger) == (2, "unauthorized")
    assert await rig.stored() == Record(generation=2, token=new, forced_at=WALL)
    assert [event.trigger for event in rig.renewals()] == ["start", "unauthorized"]


async def test_a_refused_token_is_withheld_while_it_is_renewed(rig: Rig) -> None:
    """Nobody runs into the same 401 while a better token is on its way."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    unauthorized = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert broker.current() is None
    assert (broker.status().state, broker.status().usable) == ("refused", False)
    other = rig.later(broker.token(rig.after(60)))
    await settle()
    assert not other.done()
    rig.issuer.gate.set()
    assert (await other).granted == 2
    assert await unauthorized == await other


async def test_a_second_401_within_the_interval_is_passed_on(rig: Rig) -> None:
    """An endpoint that refuses good tokens costs one renewal per interval, and other requests keep the token."""
    broker = await rig.started(min_interval=30)
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    await rig.clock.advance(29.9)
    assert await broker.after(used, rig.after(60)) is None
    assert broker.current() == used
    assert broker.status().state == "valid"
    assert len(rig.issuer.calls) == 2
    await rig.clock.advance(0.1)
    assert bare(await broker.after(used, rig.after(60))).granted == 3
    assert len(rig.issuer.calls) == 3


async def test_an_old_401_says_nothing_of_the_newest_token(rig: Rig) -> None:
    """Only the token that was refused is marked."""
    broker = await rig.started()
    old = await broker.token(0)
    await broker.renew()
    broker._holding.refuse(old)
    assert broker.status().state == "valid"


async def test_the_interval_outlives_renewals_and_restarts(rig: Rig) -> None:
    """When a 401 last forced a renewal is part of the record, and carried over by renewals for other reasons."""
    broker = await rig.started(min_interval=50)
    await broker.after(await broker.token(0), rig.after(60))
    await rig.clock.advance(10)
    await broker.renew()
    assert (await rig.stored()).forced_at == WALL
    restarted = await rig.started(min_interval=50)
    assert await restarted.after(await restarted.token(0), rig.after(60)) is None
    assert len(rig.issuer.calls) == 3


async def test_a_failed_forced_renewal_passes_the_401_on(rig: Rig) -> None:
    """The issuer stays down: others keep the token, the 401 goes on after `renew.timeout`, the campaign too."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = IssuerUnavailable("down")
    waiter = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert broker.current() == used
    assert (broker.status().state, broker.status().usable) == ("refused", True)
    await rig.clock.advance(9.9)
    assert not waiter.done()
    await rig.clock.advance(0.2)
    assert await waiter is None
    rig.issuer.default = {}
    await rig.clock.advance(30)
    assert bare(broker.current()).granted == 2
    assert broker.status().state == "valid"


async def test_a_moment_without_the_issuer_is_absorbed(rig: Rig) -> None:
    """One failed attempt does not pass the 401 on: who waits, and who comes meanwhile, gets the next one's token."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.answers.append(IssuerUnavailable("down"))
    first = rig.later(broker.after(used, rig.after(60)))
    await settle()
    second = rig.later(broker.after(used, rig.after(60)))
    await rig.clock.advance(0.5)
    tokens = [await first, await second]
    assert [token and token.granted for token in tokens] == [2, 2]
    assert len(rig.issuer.calls) == 3


async def test_a_failed_forced_renewal_gives_up_at_the_deadline(rig: Rig) -> None:
    """Who has less time than `renew.timeout` waits no longer than that."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = IssuerUnavailable("down")
    waiter = rig.later(broker.after(used, rig.after(2)))
    await rig.clock.advance(2.1)
    assert waiter.done()
    assert await waiter is None


async def test_a_refused_token_is_withheld_only_once(rig: Rig) -> None:
    """While the issuer hangs, one endpoint's 401s cannot hold up everybody again and again."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.answers.append(IssuerUnavailable("down"))
    first = rig.later(broker.after(used, rig.after(60)))
    await settle()
    rig.issuer.gate.clear()
    await rig.clock.advance(0.5)
    again = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert not again.done()
    assert broker.current() == used
    rig.issuer.gate.set()
    assert (await again or used).granted == 2
    assert (await first or used).granted == 2


async def test_a_401_joins_a_renewal_under_way(rig: Rig) -> None:
    """A renewal that has begun for another reason serves the 401 too, and does not count as forced."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    await rig.clock.advance(DUE)
    waiter = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert broker.current() is None
    rig.issuer.gate.set()
    new = await waiter
    assert new
    assert (new.granted, new.trigger, (await rig.stored()).forced_at) == (2, "due", None)
    assert len(rig.issuer.calls) == 2


async def test_a_401_joins_a_renewal_about_to_begin(rig: Rig) -> None:
    """A renewal that was started but has not run yet is under way."""
    broker = await rig.started(check_every=0)
    used = await broker.token(0)
    await broker.after(replace(used, granted=0), 0.0)  # the look of this second is done
    await rig.clock.advance(DUE)
    broker._refused._looked_at = rig.clock.mono
    assert broker.current() == used
    assert bare(await broker.after(used, rig.after(60))).granted == 2


async def test_an_expired_token_is_renewed_within_the_interval(rig: Rig) -> None:
    """A token whose time is over gives no reason for patience, and its renewal does not count as forced."""
    broker = await rig.started(min_interval=60, check_every=0)
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    rig.clock.wall += USABLE
    new = await broker.after(used, rig.after(60))
    assert new
    assert (new.granted, new.trigger, (await rig.stored()).forced_at) == (3, "demand", WALL)


async def test_a_revoked_token_is_renewed_within_the_interval(rig: Rig) -> None:
    """With no token at all there is nothing to be patient for."""
    broker = await rig.started()
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    await broker.revoke()
    assert bare(await broker.after(used, rig.after(60))).granted == 4


async def test_a_401_without_a_token_waits_to_its_deadline(rig: Rig) -> None:
    """Without any token the issuer's recovery is waited for; at the deadline the 401 is passed on."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = IssuerUnavailable("down")
    await rig.clock.advance(USABLE)
    waiter = rig.later(broker.after(used, rig.after(10)))
    await rig.clock.advance(9.9)
    assert not waiter.done()
    await rig.clock.advance(0.1)
    assert await waiter is None


async def test_a_401_of_a_rejected_credential_is_passed_on(rig: Rig) -> None:
    """A credential the issuer refused is not tried because of a 401; the token stays in use."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = CredentialRejected("invalid_client", "no")
    assert await broker.after(used, rig.after(60)) is None
    assert await broker.after(used, rig.after(60)) is None
    assert broker.current() == used
    assert len(rig.issuer.calls) == 2
    rig.issuer.default = {}
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(1)
    assert bare(await broker.after(used, rig.after(60))).values == access(3)


async def test_a_401_waits_no_longer_than_its_deadline(rig: Rig) -> None:
    """At the deadline the 401 is passed on; the renewal goes on, and so it does when the client leaves."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    waiter = rig.later(broker.after(used, rig.after(10)))
    leaver = rig.later(broker.after(used, rig.after(60)))
    await settle()
    leaver.cancel()
    await rig.clock.advance(10)
    assert waiter.done()
    assert await waiter is None
    rig.issuer.gate.set()
    await settle()
    assert bare(broker.current()).granted == 2


async def test_a_401_during_a_slow_look_keeps_its_deadline(rig: Rig) -> None:
    """A store that hangs does not hold a request; the look is not cut off with it."""
    stuck = asyncio.Event()
    stuck.set()

    class Slow(MemoryStore):
        async def read(self, key: str) -> Stored:
            found = await super().read(key)
            await stuck.wait()
            return found

    rig.store = Slow(rig.clock)
    broker = await rig.started(check_every=0)
    used = await broker.token(0)
    await broker.after(used, rig.after(60))
    used = await broker.token(0)
    await rig.clock.advance(2)
    stuck.clear()
    waiter = rig.later(broker.after(used, rig.after(5)))
    await rig.clock.advance(4.9)
    assert not waiter.done()
    await rig.clock.advance(0.1)
    assert waiter.done()
    assert broker.current() == used
    stuck.set()
    await rig.store.write(KEY, rig.ring.seal(KEY, record(9).encode()), 9, after=2)
    await rig.clock.advance(1)
    assert await broker.after(used, rig.after(5)) == token(9)


# the operator


async def test_an_operator_renews_at_once(rig: Rig) -> None:
    """A forced renewal needs no reason, is bound by no interval and does not count as forced by a 401."""
    broker = await rig.started()
    rig.issuer.gate.clear()
    renewed = rig.later(broker.renew())
    await settle()
    assert broker.current() is not None
    rig.issuer.gate.set()
    new = await renewed
    assert (new.granted, new.trigger, (await rig.stored()).forced_at) == (2, "forced", None)
    assert broker.current() == new == (await rig.stored()).token


async def test_an_operator_renews_although_another_process_did(rig: Rig) -> None:
    """Forced means a call to the issuer, on top of the newest record."""
    broker = await rig.started()
    await rig.put(record(5))
    assert (await broker.renew()).values == access(2)
    assert (await rig.stored()).generation == 6


async def test_an_operator_joins_a_renewal_under_way(rig: Rig) -> None:
    """Two calls at once would be one too many."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    renewed = [rig.later(broker.renew()) for _ in range(3)]
    await settle()
    rig.issuer.gate.set()
    assert {(await each).granted for each in renewed} == {1}
    assert len(rig.issuer.calls) == 1


async def test_an_operator_does_not_wait_out_a_backoff(rig: Rig) -> None:
    """A campaign that waits to try again tries at once, whatever the issuer asked for."""
    rig.issuer.answers.append(IssuerUnavailable("down", retry_after=600))
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(1)
    new = await broker.renew()
    assert (new.values, new.trigger) == (access(2), "forced")
    assert rig.issuer.at == [1000.0, 1001.0]
    assert [event.trigger for event in rig.renewals()] == ["start", "forced"]


async def test_an_operator_forgets_a_rejection(rig: Rig) -> None:
    """What the issuer refused may have been mended on its side: the operator says so by renewing."""
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker()
    await broker.start()
    await settle()
    assert (await broker.renew()).values == access(2)
    assert broker.status().state == "valid"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (CredentialRejected("invalid_client", "the issuer said no"), CredentialRejected),
        (IssuerUnavailable("the issuer said no"), IssuerUnavailable),
        (ConfigurationError("the issuer said no"), CredentialRejected),
    ],
)
async def test_an_operator_gets_the_cause(rig: Rig, answer: SidecarError, error: type[SidecarError]) -> None:
    """A forced renewal fails with the issuer's cause after one attempt; the good token stays, nothing is tried on."""
    broker = await rig.started()
    rig.issuer.default = answer
    for _ in range(2):
        with pytest.raises(error, match="the issuer said no"):
            await broker.renew()
    await rig.clock.advance(60)
    assert len(rig.issuer.calls) == 3
    assert bare(broker.current()).granted == 1


async def test_a_forced_renewal_without_a_token_goes_on(rig: Rig) -> None:
    """If a token is needed anyway, the campaign goes on after it failed the operator."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    broker = rig.broker()
    with pytest.raises(IssuerUnavailable):
        await broker.renew()
    await rig.clock.advance(1)
    assert broker.current() is not None


async def test_revoking_forgets_everything(rig: Rig) -> None:
    """After a revocation neither token nor refresh token is left; who needs one gets a new one."""
    rig.issuer.answers.append({"kept": Secret(canary("refresh"))})
    broker = await rig.started(check_every=0)
    await broker.revoke()
    assert broker.current() is None
    assert await rig.stored() == Record(generation=2, revoked=True)
    assert broker.status().state == "none"
    await settle()
    assert len(rig.issuer.calls) == 1
    new = await broker.token(rig.after(60))
    assert (new.granted, (await rig.stored()).kept) == (3, None)
    assert rig.issuer.calls == [None, None]


async def test_the_timer_replaces_a_revoked_token(rig: Rig) -> None:
    """With background renewal a revoked token has its successor at once, so that readiness is not lost."""
    broker = await rig.started()
    await broker.revoke()
    await settle()
    assert bare(broker.current()).granted == 3


async def test_a_revoked_token_does_not_come_back(rig: Rig) -> None:
    """An old record that turns up in the store again is not taken up."""
    broker = await rig.started(check_every=30)
    old = await rig.stored()
    await broker.revoke()
    await rig.put(old)
    rig.issuer.gate.clear()
    await rig.clock.advance(31)
    assert broker.current() is None


async def test_revoking_gives_up_a_renewal_under_way(rig: Rig) -> None:
    """What was about to be granted is not used; requests that wait get what is granted after it."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    operator = rig.later(broker.renew())
    unauthorized = rig.later(broker.after(used, rig.after(60)))
    await settle()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await broker.revoke()
    rig.issuer.gate.set()
    assert (await waiter).values == access(3)
    assert (await rig.stored()).token == await waiter
    assert await unauthorized in (None, await waiter)
    with pytest.raises(IssuerUnavailable, match="cut off"):
        await operator
    assert [(event.result, event.detail) for event in rig.renewals()][1] == ("unavailable", "cut off")


async def test_revoking_takes_what_comes_at_the_same_moment(rig: Rig) -> None:
    """A renewal that ends while it is being given up leaves nothing behind either."""
    broker = await rig.started(check_every=0)
    rig.issuer.gate.clear()
    operator = rig.later(broker.renew())
    await settle()
    rig.issuer.gate.set()
    await broker.revoke()
    assert broker.current() is None
    assert (await rig.stored()).revoked
    await asyncio.gather(operator, return_exceptions=True)


async def test_revoking_ends_a_backoff(rig: Rig) -> None:
    """A campaign that waits to try again ends; nothing is asked for until somebody needs it."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    broker = rig.broker(check_every=0)
    await broker.start()
    await settle()
    await broker.revoke()
    await rig.clock.advance(60)
    assert len(rig.issuer.calls) == 1


async def test_revoking_says_when_the_store_keeps_the_record(rig: Rig) -> None:
    """A revocation that was only half of one is an error; the token is gone from memory, and tokens can be had."""
    store = rig.shaky
    broker = await rig.started()
    store.writing = StoreError("read-only")
    with pytest.raises(StoreError, match="read-only"):
        await broker.revoke()
    assert broker.current() is None
    assert (await broker.token(rig.after(60))).values == access(2)


# the end


async def test_closing_finishes_a_renewal_under_way(rig: Rig) -> None:
    """SIGTERM during a renewal: its token is stored, who waits for it gets it, the issuer is closed."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    closing = rig.later(broker.aclose())
    await rig.clock.advance(9)
    assert not closing.done()
    assert rig.issuer.closed == 0
    rig.issuer.gate.set()
    await closing
    assert (await rig.stored()).token == await waiter
    assert rig.issuer.closed == 1
    assert rig.clock.sleeping() == []


async def test_closing_waits_no_longer_than_a_call_may_take(rig: Rig) -> None:
    """An issuer that hangs does not hold up the stop longer than renew.timeout, and a second to store its answer."""
    rig.issuer.gate.clear()
    broker = rig.broker(timeout=7)
    waiter = rig.later(refused(broker.token(rig.after(60))))
    await settle()
    closing = rig.later(broker.aclose())
    await rig.clock.advance(7.9)
    assert not closing.done()
    await rig.clock.advance(0.1)
    await closing
    assert (await waiter).reason is Reason.SHUTTING_DOWN
    assert [event.detail for event in rig.renewals()] == ["cut off"]


async def test_closing_does_not_try_again(rig: Rig) -> None:
    """An attempt that fails during the stop is the last; who waits is told that we are stopping."""
    rig.issuer.gate.clear()
    rig.issuer.default = IssuerUnavailable("down")
    broker = rig.broker()
    waiter = rig.later(refused(broker.token(rig.after(60))))
    await settle()
    closing = rig.later(broker.aclose())
    await settle()
    rig.issuer.gate.set()
    await settle()
    assert closing.done()
    assert (await waiter).reason is Reason.SHUTTING_DOWN
    await rig.clock.advance(60)
    assert len(rig.issuer.calls) == 1


async def test_closing_cuts_a_backoff_short(rig: Rig) -> None:
    """Nobody waits for an attempt that will not be made."""
    rig.issuer.default = IssuerUnavailable("down")
    broker = rig.broker()
    await broker.start()
    waiter = rig.later(refused(broker.token(rig.after(60))))
    await settle()
    await broker.aclose()
    assert (await waiter).reason is Reason.SHUTTING_DOWN
    assert rig.clock.sleeping() == []


async def test_closed_means_closed(rig: Rig) -> None:
    """Afterwards the token in memory serves requests in flight and nothing is renewed; a second close is none."""
    broker = await rig.started()
    await broker.aclose()
    await broker.aclose()
    used = await broker.token(rig.after(60))
    assert await broker.after(used, rig.after(60)) is None
    with pytest.raises(IssuerUnavailable, match="cut off"):
        await broker.renew()
    await rig.clock.advance(DUE)
    assert broker.current() == used
    await rig.clock.advance(USABLE - DUE)
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.SHUTTING_DOWN
    await broker.revoke()
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.SHUTTING_DOWN
    assert len(rig.issuer.calls) == 1


async def test_closing_right_after_the_start(rig: Rig) -> None:
    """A renewal that was started but has not run yet is no trap."""
    broker = rig.broker()
    await broker.start()
    await broker.aclose()
    other = rig.broker()
    rig.issuer.gate.clear()
    await other.start()
    await other.revoke()
    rig.issuer.gate.set()
    assert (await other.token(rig.after(60))).granted >= 1


async def test_on_the_machines_own_clock(rig: Rig) -> None:
    """The fake clock hides nothing: the same works with real time."""
    clock = SystemClock()

    async def obtain(kept: Secret | None, seconds: float) -> Grant:
        await asyncio.sleep(0.001)
        return Grant(
            values=access(1),
            kept=None,
            requested_at=clock.now(),
            lifetime=100,
            source="expires_in",
            how="client_credentials",
            scope=None,
            asked=None,
        )

    rig.issuer.obtain = obtain  # type: ignore[method-assign]
    broker = Broker(
        "plm",
        rig.issuer,
        rig.store,
        Keys(lambda: rig.ring, clock),
        Renew(),
        owner="test/1",
        clock=clock,
        emit=rig.events.append,
        configured_lifetime=None,
    )
    await broker.start()
    used = await broker.token(clock.monotonic() + 5)
    newer = await broker.after(used, clock.monotonic() + 5)
    assert (used.granted, (newer or used).granted) == (1, 2)
    await broker.aclose()
