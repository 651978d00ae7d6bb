"""Several instances of one credential: one renews, all use it, and none is taken down by another's end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sidecar.auth.token_answer import Unusable
from sidecar.auth.token_endpoint import BrokenOff
from sidecar.errors import CredentialRejected, IssuerUnavailable, Reason, Refusal, StoreError
from sidecar.events import StoreTrouble
from sidecar.secret import Secret
from sidecar.tokens.broker import Broker
from sidecar.tokens.seal import KeyRing, new_key
from sidecar.tokens.store import store_key
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.token import Token
from tests.canary import canary
from tests.unit.test_broker import DUE, IDENTITY, KEY, LIFETIME, USABLE, WALL, FakeIssuer, Rig, access, settle, token

NOTE = store_key(IDENTITY, "note")
LEASE = store_key(IDENTITY, "lease")
TTL = 10.0
REFRESH = Secret(canary("refresh"))


class Shaky(MemoryStore):
    """A store that is down while it is told so."""

    down = False
    silent = False
    ahead = 0.0

    @property
    def offset(self) -> float:
        return self.ahead

    def _open(self) -> dict[str, tuple[int, bytes]]:
        if self.down:
            raise StoreError("the store is down", silent=self.silent)
        return super()._open()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    made.store = Shaky(made.clock)
    yield made
    made.issuer.gate.set()
    made.clock.release()
    for broker in made.brokers:
        await broker.aclose()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await made.store.aclose()


def store_of(rig: Rig) -> Shaky:
    assert isinstance(rig.store, Shaky)
    return rig.store


async def kill(broker: Broker) -> None:
    """End a broker as SIGKILL does: nothing is given back, nothing is written."""
    lease = broker._renewing._obtaining._lease
    lease.give_back = _nothing  # type: ignore[method-assign]
    await broker._tasks.aclose()


async def _nothing() -> None:
    return None


async def holding_refresh_token(rig: Rig, *, left: float = LIFETIME) -> None:
    """Store a token with a refresh token, which has *left* seconds."""
    stored = replace(token(7), issued_at=WALL - LIFETIME + left, expires_at=WALL + left, refresh_token=REFRESH)
    await rig.put(stored)


# One renewal for all.


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

    assert {(await waiter).values for waiter in waiters} == {access(1)}
    assert len(rig.issuer.calls) == 1
    assert {broker.status().by for broker in brokers} == {"test/1"}
    assert len(rig.renewals()) == 1


async def test_instances_that_are_refused_at_once_make_one_call(rig: Rig) -> None:
    """A token that was revoked at the issuer is replaced once, whoever notices."""
    brokers = [await rig.started() for _ in range(4)]
    used = await brokers[0].token(0)
    rig.issuer.gate.clear()
    waiters = [rig.later(broker.after_unauthorized(used, rig.after(60))) for broker in brokers for _ in range(50)]
    await rig.clock.advance(1)
    rig.issuer.gate.set()
    await rig.clock.advance(1)

    assert {newer.values for waiter in waiters if (newer := await waiter)} == {access(2)}
    assert len(rig.issuer.calls) == 2


async def test_due_token_is_renewed_by_one(rig: Rig) -> None:
    """Who comes second finds the first one's token under the lease, and lets it be."""
    brokers = [await rig.started() for _ in range(5)]
    await rig.clock.advance(DUE)

    assert len(rig.issuer.calls) == 2
    await rig.clock.advance(30)
    assert {broker.current().granted for broker in brokers if broker.current()} == {2}


async def test_lease_lasts_as_long_as_a_slow_issuer(rig: Rig) -> None:
    """Signs of life keep it, so that 45 seconds of silence cause no second call."""
    rig.issuer.gate.clear()
    first, second = rig.broker(timeout="60s"), rig.broker(timeout="60s")
    await first.start()
    await second.start()
    await rig.clock.advance(45)
    assert len(rig.issuer.calls) == 1
    rig.issuer.gate.set()
    await rig.clock.advance(1)

    assert second.current() == first.current() is not None


async def test_lease_is_capped(rig: Rig) -> None:
    """A holder that waits beyond all measure does not keep the others from trying."""
    rig.issuer.gate.clear()
    first, second = rig.broker(timeout="10s"), rig.broker(timeout="10s")
    await first.start()
    await second.start()
    await rig.clock.advance(10 + 5 - 0.5)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(1)

    assert len(rig.issuer.calls) == 2


async def test_next_instance_takes_over_from_a_dead_one(rig: Rig) -> None:
    """Ten seconds after its last sign of life; its lease needs nobody to clear it away."""
    rig.issuer.gate.clear()
    first, second = rig.broker(), rig.broker()
    await first.start()
    await second.start()
    await rig.clock.advance(1)
    await kill(first)
    rig.issuer.gate.set()
    await rig.clock.advance(TTL - 2)
    assert second.current() is None
    await rig.clock.advance(4)

    assert second.status().by == "test/2"


async def test_holder_that_slept_through_its_end_gives_way(rig: Rig) -> None:
    """What it brings late is refused by the store, and it goes on with what the other brought."""
    asleep = rig.issuer
    asleep.gate.clear()
    first = rig.broker()
    await first.start()
    await settle()
    keeper = first._renewing._obtaining._lease._keeper
    assert keeper
    keeper.cancel()
    rig.issuer = FakeIssuer(rig.clock)
    second = rig.broker()
    await second.start()
    await rig.clock.advance(TTL + 1)
    brought = second.current()
    asleep.gate.set()
    await settle()

    assert first.current() == brought == (await rig.stored()).token
    assert (len(asleep.calls), len(rig.issuer.calls)) == (1, 1)


async def test_late_write_of_an_older_generation_is_refused(rig: Rig) -> None:
    """The store has the newer one for good, and the writer adopts it."""
    broker = await rig.started()
    await rig.put(record(5))
    saved = await broker._holding.save(token(2), born=rig.clock.mono)

    assert saved.granted == 5
    assert broker.status().generation == 5
    assert (await rig.stored()).generation == 5


async def test_pause_that_the_issuer_asked_for_is_for_all(rig: Rig) -> None:
    """429 with Retry-After 20: nobody asks again before, not even who starts meanwhile."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=20))
    first, second = rig.broker(), rig.broker()
    await first.start()
    await second.start()
    await rig.clock.advance(5)
    third = rig.broker()
    await third.start()
    await rig.clock.advance(14)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(3)

    assert len(rig.issuer.calls) == 2
    assert {broker.status().by for broker in (first, second, third)} == {"test/1"}


async def test_pause_is_there_before_the_next_one_may_ask(rig: Rig) -> None:
    """Many wait for the lease of the one that is told to wait, and look for it all the time."""
    rig.issuer.default = IssuerUnavailable("slow down", retry_after=20)
    rig.issuer.gate.clear()
    acquire = rig.store.acquire

    async def slow(key: str, owner: str, ttl: float) -> bool:
        if key == store_key(IDENTITY, "pause") and ttl > 1:
            await rig.clock.sleep(0.5)
        return await acquire(key, owner, ttl)

    rig.store.acquire = slow  # type: ignore[method-assign]
    for _ in range(10):
        await rig.broker().start()
    await rig.clock.advance(1)
    rig.issuer.gate.set()
    await rig.clock.advance(15)

    assert len(rig.issuer.calls) == 1


async def test_long_pause_is_for_all_and_costs_the_store_little(rig: Rig) -> None:
    """20 minutes: nobody asks before, and who waits looks at the store about once a second, not ten times."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=1200))
    first, second = rig.broker(), rig.broker()
    await first.start()
    await second.start()
    counted = Counter[str]()
    acquire = rig.store.acquire

    async def counting(key: str, owner: str, ttl: float) -> bool:
        counted[owner] += 1
        return await acquire(key, owner, ttl)

    rig.store.acquire = counting  # type: ignore[method-assign]
    await rig.clock.advance(1199)
    assert len(rig.issuer.calls) == 1
    assert 800 < counted["test/2"] < 2400

    rig.issuer.gate.clear()
    await rig.clock.advance(3)
    before = counted["test/2"]
    await rig.clock.advance(5)
    assert counted["test/2"] > before + 20  # the pause is over: somebody asks, and is nearly done
    rig.issuer.gate.set()
    await rig.clock.advance(1)
    assert len(rig.issuer.calls) == 2
    assert first.current() == second.current() is not None


async def test_pause_outlives_the_campaign_that_was_asked_for_it(rig: Rig) -> None:
    """A token that somebody put into the store ends the wait, not the pause: the next renewal comes after it."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=600))
    broker = rig.broker(check_every=5)
    await broker.start()
    await rig.clock.advance(10)
    await rig.put(record(3))
    await rig.clock.advance(10)
    used = await broker.token(0)
    assert used == token(3)
    asked = rig.later(broker.after_unauthorized(used, rig.after(5)))
    await rig.clock.advance(560)
    assert await asked is None
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(30)

    assert len(rig.issuer.calls) == 2


async def test_operator_does_not_wait_out_a_pause(rig: Rig) -> None:
    """Not even one that outlived its campaign."""
    rig.issuer.answers.append(IssuerUnavailable("slow down", retry_after=600))
    broker = rig.broker(check_every=5)
    await broker.start()
    await rig.clock.advance(10)
    await rig.put(record(3))
    await rig.clock.advance(10)
    forced = rig.later(broker.renew())
    await rig.clock.advance(1)

    assert forced.done()
    assert (await forced).granted == 4


async def test_token_of_another_ends_a_wait_to_try_again(rig: Rig) -> None:
    """Requests that wait for a token get it at the next look at the store, not when the issuer may be asked again."""
    rig.issuer.default = IssuerUnavailable("slow down", retry_after=1000)
    broker = rig.broker(check_every=5)
    await broker.start()
    waiter = rig.later(broker.token(rig.after(900)))
    await rig.clock.advance(20)
    await rig.put(record(3))
    await rig.clock.advance(6)

    assert waiter.done()
    assert await waiter == token(3)
    assert not broker._renewing.running


async def test_closing_does_not_wait_for_another_instance(rig: Rig) -> None:
    """An instance that waits for the one with the lease has nothing to finish."""
    rig.issuer.gate.clear()
    first, second = rig.broker(), rig.broker()
    await first.start()
    await second.start()
    await rig.clock.advance(1)
    before = rig.clock.mono
    await second.aclose()

    assert rig.clock.mono == before
    assert len(rig.issuer.calls) == 1


async def test_lease_is_given_back(rig: Rig) -> None:
    """After success and after failure, so that nobody waits for its end."""
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    first, second = rig.broker(), rig.broker()
    await first.start()
    await settle()
    rig.issuer.secret = "secret-2"
    await second.start()
    await settle()

    assert second.current() is not None
    assert LEASE not in store_of(rig)._leases


# Without the store.


async def test_grant_that_starts_anew_needs_no_lease(rig: Rig) -> None:
    """Each instance gets a token of its own while the store is down; one is for all when it is back."""
    store_of(rig).down = True
    first, second = await rig.started(), await rig.started()
    assert len(rig.issuer.calls) == 2
    assert first.current() != second.current()
    store_of(rig).down = False
    await rig.clock.advance(12)

    assert first.current() == second.current() == (await rig.stored()).token
    assert len(rig.issuer.calls) == 2


async def test_silent_store_is_given_time_at_the_start(rig: Rig) -> None:
    """A machine that is busy starting many instances is slow for a moment; none of them asks the issuer for that."""
    store_of(rig).down = store_of(rig).silent = True
    first, second = rig.broker(), rig.broker()
    await first.start()
    await second.start()
    await rig.clock.advance(1)
    assert rig.issuer.calls == []
    store_of(rig).down = False
    await rig.clock.advance(2)

    assert first.current() is not None
    assert first.current() == second.current()
    assert len(rig.issuer.calls) == 1


async def test_silent_store_is_not_waited_for_long(rig: Rig) -> None:
    """What stays silent is down: each instance gets a token of its own."""
    store_of(rig).down = store_of(rig).silent = True
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(2)

    assert broker.current() is not None
    assert len(rig.issuer.calls) == 1
    assert "lease" in {event.operation for event in rig.events if isinstance(event, StoreTrouble)}


async def test_silent_store_is_not_waited_for_after_a_401(rig: Rig) -> None:
    """Somebody waits for that token."""
    broker = await rig.started()
    store_of(rig).down = store_of(rig).silent = True
    await broker.after_unauthorized(await broker.token(0), rig.after(5))

    assert len(rig.issuer.calls) == 2


async def test_store_that_dies_in_mid_life_fails_no_request(rig: Rig) -> None:
    """The token in memory serves, is renewed when due, and is published once when the store is back."""
    broker = await rig.started()
    store_of(rig).down = True
    await rig.clock.advance(DUE + 1)
    assert broker.current() is not None
    assert len(rig.issuer.calls) == 2
    await broker.after_unauthorized(await broker.token(0), rig.after(5))
    store_of(rig).down = False
    await rig.clock.advance(6)

    assert (await rig.stored()).token == broker.current()


async def test_refresh_token_is_kept_while_the_store_is_down(rig: Rig) -> None:
    """It may be taken only once, and others may use it too: the token at hand serves up to its last minutes."""
    rig.issuer.starts_anew = False
    await holding_refresh_token(rig)
    broker = await rig.started()
    store_of(rig).down = True
    await rig.clock.advance(USABLE - 6)
    assert rig.issuer.calls == []
    assert broker.current() is not None
    assert any("is kept for the last minutes" in event.detail for event in rig.renewals())
    await rig.clock.advance(35)

    assert rig.issuer.calls == [REFRESH.reveal()]


async def test_backoff_does_not_jump_over_the_last_minutes(rig: Rig) -> None:
    """They may be shorter than a backoff: ten seconds of a token of a hundred."""
    rig.issuer.starts_anew, rig.clock.chance = False, 0.99
    await holding_refresh_token(rig)
    broker = await rig.started(margin="50s")
    store_of(rig).down = True
    await rig.clock.advance(0.9 * LIFETIME - 0.1)
    assert rig.issuer.calls == []
    assert any("is kept for the last minutes" in event.detail for event in rig.renewals())
    await rig.clock.advance(0.3)

    assert rig.issuer.calls == [REFRESH.reveal()]
    assert broker.current() is not None


async def test_refresh_token_is_left_where_another_grant_will_do(rig: Rig) -> None:
    """With the store down a new start is safer than a second use."""
    await holding_refresh_token(rig)
    await rig.started()
    store_of(rig).down = True
    await rig.clock.advance(DUE + 1)

    assert rig.issuer.calls == [None]


# A refresh token is used once.


async def test_refresh_token_that_was_left_aside_is_gone(rig: Rig) -> None:
    """Where it was in doubt and another grant gave a token without one, no later renewal takes it for a good one."""
    await holding_refresh_token(rig)
    await rig.store.write(NOTE, 7, rig.ring.seal(NOTE, b"dead/1"))
    broker = await rig.started()
    await rig.clock.advance(DUE)
    assert rig.issuer.calls == [None]
    await broker.renew()

    assert rig.issuer.calls == [None, None]
    assert (await rig.stored()).refresh_token is None


async def test_refresh_token_is_noted_before_it_is_used(rig: Rig) -> None:
    """So that whoever comes after a crash knows that it may be gone."""
    await holding_refresh_token(rig)
    rig.issuer.gate.clear()
    await rig.started()
    await rig.clock.advance(DUE + 1)
    assert rig.issuer.calls == [REFRESH.reveal()]
    record = await rig.store.read(NOTE)
    assert record is not None

    assert record[0] == 7
    assert rig.ring.open(NOTE, record[1]) == b"test/1"


async def dead_in_the_middle(rig: Rig) -> Broker:
    """Return an instance beside one that died after it had noted its use of the refresh token."""
    await holding_refresh_token(rig)
    rig.issuer.gate.clear()
    first = await rig.started()
    await rig.clock.advance(DUE + 1)
    assert len(rig.issuer.calls) == 1
    await kill(first)
    rig.issuer.gate.set()
    second = rig.broker()
    await second.start()
    return second


async def test_refresh_token_of_a_dead_instance_is_left_for_another_grant(rig: Rig) -> None:
    """It may have been used; a second use would end the whole grant at a strict issuer."""
    second = await dead_in_the_middle(rig)
    await rig.clock.advance(TTL + 1)

    assert rig.issuer.calls == [REFRESH.reveal(), None]
    assert second.status().by == "test/2"


async def test_refresh_token_of_a_dead_instance_is_tried_at_last(rig: Rig) -> None:
    """Where there is no other grant: not while the token lasts, and then once, because nothing is left to lose."""
    rig.issuer.starts_anew = False
    second = await dead_in_the_middle(rig)
    await rig.clock.advance(LIFETIME - DUE - 12)
    assert rig.issuer.calls == [REFRESH.reveal()]
    assert second.current() is not None
    await rig.clock.advance(40)

    assert rig.issuer.calls == [REFRESH.reveal()] * 2


@pytest.mark.parametrize(("left", "calls"), [(LIFETIME, []), (-1.0, [None])])
async def test_new_credential_is_tried_where_the_refresh_token_is_lost(
    rig: Rig, left: float, calls: list[str | None]
) -> None:
    """Two others tried it and are gone: when its token is over what is configured is used, by then perhaps another."""
    rig.issuer.starts_anew = False
    await holding_refresh_token(rig, left=left)
    for key, owner in ((NOTE, b"dead/1"), (store_key(IDENTITY, "last"), b"dead/2")):
        await rig.store.write(key, 7, rig.ring.seal(key, owner))
    broker = rig.broker(check_every=5)
    await broker.start()
    await rig.clock.advance(DUE + 6)
    assert rig.issuer.calls[:1] == calls
    await rig.clock.advance(30)

    assert rig.issuer.calls[0] is None
    assert broker.status().state == "valid"


async def test_note_is_taken_back_when_the_issuer_was_only_busy(rig: Rig) -> None:
    """It said so, and gave nothing: the refresh token is as good as before, for every instance."""
    rig.issuer.answers.append(IssuerUnavailable("busy"))
    await holding_refresh_token(rig)
    await rig.started()
    await rig.clock.advance(DUE)

    assert await rig.store.read(NOTE) is None or len(rig.issuer.calls) > 1
    assert rig.issuer.calls[0] == REFRESH.reveal()


@pytest.mark.parametrize(("anew", "then"), [(True, None), (False, REFRESH.reveal())])
async def test_note_stays_when_the_answer_was_lost(rig: Rig, anew: bool, then: str | None) -> None:
    """The same instance may ask again with it if there is no other grant; another one may not."""
    rig.issuer.starts_anew = anew
    rig.issuer.answers.append(BrokenOff("gone"))
    await holding_refresh_token(rig)
    await rig.started()
    await rig.clock.advance(DUE)
    assert await rig.store.read(NOTE) is not None
    await rig.clock.advance(3)

    assert rig.issuer.calls == [REFRESH.reveal(), then]


# A grant whose access token cannot be used.

NEXT = Secret(canary("next-refresh"))


def useless(refresh_token: Secret | None = NEXT) -> Unusable:
    return Unusable("the issuer granted a token that cannot be used", refresh_token)


@pytest.mark.parametrize("anew", [False, True])
async def test_next_refresh_token_is_kept_without_its_access_token(rig: Rig, anew: bool) -> None:
    """The one that was presented is spent; the old access token serves on, and the next call has the new one."""
    rig.issuer.starts_anew = anew
    rig.issuer.answers.append(useless())
    await holding_refresh_token(rig)
    broker = await rig.started()
    await rig.clock.advance(DUE)
    stored = await rig.stored()
    assert rig.issuer.calls == [REFRESH.reveal()]
    assert (stored.refresh_token, stored.values) == (NEXT, token(7).values)
    assert (stored.granted, stored.granted, stored.by) == (8, 7, "test/1")
    assert (stored.issued_at, stored.expires_at) == (token(7).issued_at, token(7).expires_at)
    assert broker.current() == stored
    await rig.clock.advance(2)

    assert rig.issuer.calls == [REFRESH.reveal(), NEXT.reveal()]
    assert (await rig.stored()).generation == 9
    assert (await rig.stored()).refresh_token == NEXT


async def test_next_refresh_token_is_for_every_instance(rig: Rig) -> None:
    """The one who got it may die: the others use it, and never the spent one."""
    rig.issuer.starts_anew = False
    rig.issuer.answers.append(useless())
    await holding_refresh_token(rig)
    first = await rig.started()
    second = await rig.started()
    await rig.clock.advance(DUE)
    await kill(first)
    await rig.clock.advance(TTL + 5)

    assert rig.issuer.calls == [REFRESH.reveal(), NEXT.reveal()]
    assert second.status().by == "test/2"


async def test_next_refresh_token_is_kept_without_any_access_token(rig: Rig) -> None:
    """Of the first grant of all: it is stored alone, and nothing is handed out."""
    rig.issuer.starts_anew = False
    rig.issuer.answers.append(useless())
    broker = rig.broker()
    await broker.start()
    await settle()
    assert (await rig.stored()).refresh_token == NEXT
    assert broker.current() is None
    assert (broker.status().state, broker.status().usable) == ("expired", False)
    await rig.clock.advance(1)

    assert rig.issuer.calls == [None, NEXT.reveal()]
    assert (await broker.token(0)).values == access(2)


async def test_useless_grant_of_an_issuer_that_starts_anew_leaves_nothing(rig: Rig) -> None:
    """Without a token there is nothing to keep it with, and no need."""
    rig.issuer.answers.append(useless())
    broker = rig.broker()
    await broker.start()
    await settle()
    assert await rig.store.read(KEY) is None
    await rig.clock.advance(1)

    assert rig.issuer.calls == [None, None]
    assert broker.current() is not None


async def test_useless_grant_without_a_refresh_token_spends_none(rig: Rig) -> None:
    """RFC 6749 section 6: the old one stays good; the note of its use is taken back."""
    rig.issuer.answers.append(useless(None))
    await holding_refresh_token(rig)
    await rig.started()
    await rig.clock.advance(DUE)
    assert await rig.store.read(NOTE) is None
    await rig.clock.advance(1)

    assert rig.issuer.calls == [REFRESH.reveal(), REFRESH.reveal()]


async def test_same_access_token_is_no_newer_one(rig: Rig) -> None:
    """With another refresh token beside it it is not sent again after a 401, nor is an operator told that it is new."""
    await holding_refresh_token(rig)
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.answers.append(useless())
    with pytest.raises(IssuerUnavailable, match="cannot be used"):
        await broker.renew()
    assert (await broker.token(0)).granted == 8
    rig.issuer.default = useless()
    waiter = rig.later(broker.after_unauthorized(used, rig.after(60)))
    await rig.clock.advance(15)

    assert waiter.done()
    assert await waiter is None
    assert broker.status().state == "refused"


async def test_refusal_of_a_spent_refresh_token_is_not_the_last_word(rig: Rig) -> None:
    """Another instance exchanged it meanwhile, and its token is due as well: the next attempt has that one's."""
    await holding_refresh_token(rig)
    rig.issuer.gate.clear()
    rig.issuer.answers.append(CredentialRejected("invalid_grant", "it was used already"))
    broker = await rig.started()
    await rig.clock.advance(DUE)
    await rig.put(replace(token(8), refresh_token=NEXT))
    rig.issuer.gate.set()
    await rig.clock.advance(2)

    assert rig.issuer.calls == [REFRESH.reveal(), NEXT.reveal()]
    assert broker.status().state == "valid"


# What others leave in the store.


async def test_foreign_record_is_left_alone(rig: Rig) -> None:
    """Another key sealed it, for instances that have it: ours gets a token for itself, until the operator says so."""
    sealed = KeyRing([Secret(new_key())]).seal(KEY, token(5).encode())
    await rig.store.write(KEY, 5, sealed)
    broker = await rig.started(check_every=30)
    await rig.clock.advance(DUE + 1)
    assert len(rig.issuer.calls) == 2
    assert await rig.store.read(KEY) == (5, sealed)
    assert any("a key we do not have" in event.detail for event in rig.troubles())
    await broker.renew()

    assert (await rig.stored()).token == broker.current()
    assert (await rig.stored()).generation > 5


async def test_record_of_a_newer_version_is_left_alone(rig: Rig) -> None:
    """A rolling update has both for a while."""
    sealed = rig.ring.seal(KEY, b'{"schema": 2}')
    await rig.store.write(KEY, 5, sealed)
    broker = await rig.started()

    assert broker.current() is not None
    assert await rig.store.read(KEY) == (5, sealed)


async def test_key_that_was_rotated_is_picked_up(rig: Rig) -> None:
    """A record under a newer key makes the process read its keys again."""
    broker = await rig.started(check_every=30)
    old, rig.ring = rig.ring, KeyRing([Secret(new_key())])
    del old
    await rig.put(record(5))
    await rig.clock.advance(31)

    assert broker.status().generation == 5
    assert len(rig.issuer.calls) == 1


async def test_revocation_reaches_every_instance(rig: Rig) -> None:
    """None goes on with the token, and none puts it back into the store."""
    first, second = await rig.started(check_every=30), await rig.started(check_every=30)
    assert second.current() == first.current()
    rig.issuer.gate.clear()
    await first.revoke()
    await rig.clock.advance(31)

    assert second.current() is None
    assert await rig.revoked() == 2
    with pytest.raises(Refusal) as caught:
        await second.token(rig.clock.mono)
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE


@pytest.mark.parametrize("ahead", [-300.0, 300.0])
async def test_times_in_the_store_are_the_stores(rig: Rig, ahead: float) -> None:
    """An instance whose clock is minutes off sees the same token end at the same moment."""
    store_of(rig).ahead = ahead
    broker = await rig.started()
    stored = await rig.stored()
    other = rig.broker()
    await other.start()

    assert stored.issued_at == WALL + ahead
    assert stored.expires_at == WALL + LIFETIME + ahead
    assert other.current() == broker.current()
    assert isinstance(other.current(), Token)
    assert len(rig.issuer.calls) == 1
