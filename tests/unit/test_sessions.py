"""The broker of sessions: endless and idle life, parts, values that roll, a seat that is taken, the end."""

import asyncio
import math
from collections.abc import Mapping

import pytest

from sidecar.auth.grant import Anew, Values
from sidecar.errors import CredentialRejected, IssuerUnavailable, Lapsed, Reason, Refusal
from sidecar.events import SeatContested
from sidecar.policy.reading import CSRF, Sign
from sidecar.policy.seat import Seat
from sidecar.secret import Secret
from sidecar.tokens.broker import Broker
from sidecar.tokens.store import store_key
from sidecar.tokens.token import Token
from tests.canary import canary
from tests.unit.broker_rig import IDENTITY, TTL, Rig, bare, fleet_rig, refused, rig, settle

__all__ = ["fleet_rig", "rig"]

IDLE = 1000.0
SEAT = Seat(within=10.0, rounds=3)
USE = store_key(IDENTITY, "use")
DAY = 86400.0


def secret(name: str) -> Secret:
    """Return a value of a recipe's: JSON text."""
    return Secret(f'"{canary(name)}"')


async def session(rig: Rig, *, idle: float | None = None, seat: Seat | None = None, anew: Anew = Anew.EVICTS) -> Broker:
    """Start a broker of an account whose sessions have no end of their own; it has one when this returns."""
    rig.issuer.anew = anew
    rig.issuer.default = {"lifetime": math.inf, "idle": idle, "source": "recipe", "how": "login"}
    made = rig.broker(session=True, seat=seat)
    await made.start()
    await settle()
    bare(made.current())
    return made


async def dies(rig: Rig, broker: Broker, patience: float = 30.0) -> Token:
    """Let an upstream call the session dead; return the next one."""
    return bare(await broker.after(bare(broker.current()), rig.after(patience)))


# life


async def test_a_session_without_an_end_is_held_until_an_upstream_says_that_it_is_dead(rig: Rig) -> None:
    """No timer renews it, nothing of its status is a number that JSON does not have, and a restart takes it up."""
    broker = await session(rig)
    await rig.clock.advance(30 * DAY)
    assert rig.issuer.calls == [None]
    status = broker.status()
    assert (status.state, status.expires_at, status.expires_in, status.lifetime) == ("valid", None, None, None)
    assert (await rig.stored()).token == broker.current()
    assert [event.lifetime for event in rig.renewals()] == [0.0]
    again = rig.broker(session=True)
    await again.start()
    await settle()
    assert (again.current(), rig.issuer.calls) == (broker.current(), [None])
    assert (await dies(rig, again)).granted > 1


async def test_a_session_that_is_not_used_is_over_and_the_next_request_gets_another(rig: Rig) -> None:
    """A little early, and not ahead of a request, however often the timer looks."""
    broker = await session(rig, idle=IDLE)
    await rig.clock.advance(IDLE - 6)
    assert broker.current() is not None
    await rig.clock.advance(2)
    assert broker.current() is None
    assert (broker.status().state, broker.status().usable) == ("expired", False)
    await rig.clock.advance(DAY)
    assert rig.issuer.calls == [None]
    assert (await broker.token(rig.after(10))).granted == 2
    assert [event.trigger for event in rig.renewals()] == ["start", "demand"]


@pytest.mark.parametrize("sign", [Sign.FINE, Sign.SCOPE, Sign.THROTTLED, Sign.EXHAUSTED])
async def test_every_answer_that_shows_a_session_alive_is_a_use_of_it(rig: Rig, sign: Sign) -> None:
    """Also one to a request of our own; the store is told now and then only."""
    broker = await session(rig, idle=IDLE)
    rig.shaky.commands.clear()
    for _ in range(400):
        broker.heard(bare(broker.current()), sign, own=True)
        await rig.clock.advance(5)
    assert broker.current() is not None
    assert rig.shaky.commands.count("write") <= 2000 / (IDLE / 20) + 1
    assert rig.issuer.calls == [None]


async def test_an_expired_answer_is_no_use_of_a_session(rig: Rig) -> None:
    """It would keep what is dead."""
    broker = await session(rig, idle=IDLE)
    token = bare(broker.current())
    await rig.clock.advance(IDLE / 2)
    broker.heard(token, Sign.EXPIRED)
    await rig.clock.advance(IDLE / 2)
    assert broker.current() is None


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_session_that_another_instance_uses_is_not_over(rig: Rig, restarts: bool) -> None:
    """Who did not use it reads that before it logs in, which would end it for the other."""
    busy = await session(rig, idle=IDLE)
    quiet = rig.broker(session=True, check_every=0)
    await quiet.start()
    for _ in range(30):
        await rig.clock.advance(IDLE / 10)
        busy.heard(bare(busy.current()), Sign.FINE)
    if restarts:
        quiet = rig.broker(session=True, check_every=0)
        await quiet.start()
        assert quiet.current() is not None
    assert await quiet.token(rig.after(10)) == busy.current()
    assert rig.issuer.calls == [None]


async def test_a_session_is_renewed_ahead_of_its_end_while_it_is_used(rig: Rig) -> None:
    """`max` is an end as any other, by the margin; who lets the session lapse gets none ahead of need."""
    broker = await session(rig, idle=IDLE)
    rig.issuer.default = {"lifetime": 2000.0, "idle": IDLE}
    await broker.renew()
    for _ in range(18):
        broker.heard(bare(broker.current()), Sign.FINE)
        await rig.clock.advance(100)
    assert [event.trigger for event in rig.renewals()] == ["start", "forced", "due"]
    await rig.clock.advance(DAY)
    assert len(rig.issuer.calls) == 3


# parts


async def test_a_part_is_fetched_anew_once_for_all_who_ask(rig: Rig) -> None:
    """What comes is a newer token with the same times; the login stays, and the next instance need not ask."""
    broker = await session(rig, idle=IDLE)
    used = bare(broker.current())
    rig.issuer.fetches.append({"csrf": secret("csrf-2")})
    got = await asyncio.gather(*(broker.after(used, rig.after(10), CSRF) for _ in range(5)))
    await settle()
    newer = bare(got[0])
    assert got == [newer] * 5
    assert newer.values == {**used.values, "csrf": secret("csrf-2")}
    assert (newer.issued_at, newer.expires_at, newer.idle, newer.how) == (used.issued_at, math.inf, IDLE, "login")
    assert newer.granted > used.granted
    assert (rig.issuer.calls, rig.issuer.refetched) == ([None], [used.values])
    assert (await rig.stored()).token == newer
    assert len(rig.renewals()) == 1
    other = rig.broker(session=True)
    await other.recall()
    assert await other.after(used, rig.after(10), CSRF) == newer
    assert len(rig.issuer.refetched) == 1


async def test_a_plain_refusal_does_not_double_the_load(rig: Rig) -> None:
    """A refetch that brings nothing new is not written, and is not made again soon: 1 s, doubling to a minute."""
    broker = await session(rig)
    used = bare(broker.current())
    for _ in range(3600):
        assert await broker.after(used, rig.after(10), CSRF) is None
        await rig.clock.advance(0.5)
    assert 5 <= len(rig.issuer.refetched) <= 37
    assert (await rig.stored()).generation == used.granted
    rig.issuer.fetches.append({"csrf": secret("csrf-2")})
    await rig.clock.advance(60)
    newer = bare(await broker.after(used, rig.after(10), CSRF))
    rig.issuer.fetches.append({"csrf": secret("csrf-3")})
    assert bare(await broker.after(newer, rig.after(10), CSRF)).values["csrf"] == secret("csrf-3")


async def test_a_part_is_good_with_the_cookies_that_it_was_fetched_with(rig: Rig) -> None:
    """Cookies that were set since are no newer part; and those that come while it is fetched are left."""
    broker = await session(rig)
    first = bare(broker.current())
    rig.issuer.fetches.append({"csrf": secret("csrf-1"), "=jar": secret("jar-1")})
    used = bare(await broker.after(first, rig.after(10), CSRF))
    rolls(broker, used, "=jar", "jar-2")
    held = bare(broker.current())
    rig.issuer.fetches.append({"csrf": secret("csrf-2"), "=jar": secret("jar-2")})
    rig.issuer.gate = asyncio.Event()
    asked = asyncio.create_task(broker.after(used, rig.after(10), CSRF))
    await settle()
    rolls(broker, used, "=jar", "jar-3")
    rig.issuer.gate.set()
    newer = bare(await asked)
    assert newer.values == {**held.values, "csrf": secret("csrf-2"), "=jar": secret("jar-2")}


async def test_another_session_is_asked_at_once(rig: Rig) -> None:
    """A refetch that brought nothing new says nothing of the session that other cookies stand for."""
    broker = await session(rig)
    used = bare(broker.current())
    for _ in range(4):
        assert await broker.after(used, rig.after(10), CSRF) is None
    assert len(rig.issuer.refetched) == 1
    rolls(broker, used, "=jar", "jar-2")
    rig.issuer.fetches.append({"csrf": secret("csrf-2")})
    assert bare(await broker.after(bare(broker.current()), rig.after(10), CSRF)).values["csrf"] == secret("csrf-2")


async def test_a_part_whose_session_is_dead_comes_with_the_next_login(rig: Rig) -> None:
    """One login for all who ask, and no second refetch."""
    broker = await session(rig)
    used = bare(broker.current())
    rig.issuer.fetches.append(Lapsed("the session is dead"))
    got = await asyncio.gather(*(broker.after(used, rig.after(10), CSRF) for _ in range(3)))
    assert got == [broker.current()] * 3
    assert bare(got[0]).granted > used.granted
    assert (len(rig.issuer.calls), len(rig.issuer.refetched)) == (2, 1)


@pytest.mark.parametrize("store_is_down", [False, True])
async def test_a_part_that_cannot_be_fetched_leaves_the_answer_as_it_is(rig: Rig, store_is_down: bool) -> None:
    """The session stays; a store in trouble is no reason not to try."""
    broker = await session(rig)
    used = bare(broker.current())
    if store_is_down:
        rig.shaky.fail()
    rig.issuer.fetches.append(IssuerUnavailable("down"))
    assert await broker.after(used, rig.after(10), CSRF) is None
    await rig.clock.advance(2)
    rig.issuer.fetches.append({"csrf": secret("csrf-2")})
    assert bare(await broker.after(used, rig.after(10), CSRF)).values["csrf"] == secret("csrf-2")
    assert rig.issuer.calls == [None]


@pytest.mark.parametrize("shown", [False, True])
async def test_a_secret_that_is_shown_with_each_request_is_shown_no_more(rig: Rig, shown: bool) -> None:
    """A login has found it wrong: what is held goes too, here and in the store. Else other endpoints may take it."""
    broker = await session(rig)
    used = bare(broker.current())
    rig.issuer.default = refusal = CredentialRejected("", "wrong password", locks=True)
    refusal.shown = shown
    with pytest.raises(Refusal, match="wrong password"):
        await broker.after(used, rig.after(10))
    assert broker.current() == (None if shown else used)
    stored = await rig.stored()
    assert (stored.token is None, stored.rejection is None) == (shown, False)


# values that roll


def put(name: str, value: str) -> Mapping[str, Secret]:
    """Return what an answer changes."""
    return {name: secret(value)}


def rolls(broker: Broker, token: Token, name: str, value: str) -> None:
    """Let an answer to *token* change a value."""

    def change(values: Values) -> Values | None:
        return None if values.get(name) == secret(value) else {**values, **put(name, value)}

    broker.roll(token, change)


async def test_a_rolled_value_is_here_at_once_and_in_the_store_soon(rig: Rig) -> None:
    """It is a newer token, of the same age, and no renewal."""
    broker = await session(rig, idle=IDLE)
    first = bare(broker.current())
    await rig.clock.advance(IDLE / 2)
    for number in range(20):
        rolls(broker, first, "=jar", f"jar-{number}")
    newest = bare(broker.current())
    assert newest.values == {**first.values, "=jar": secret("jar-19")}
    assert broker.newer(first) == newest
    await settle()
    assert (await rig.stored()).token == newest
    assert [event.trigger for event in rig.renewals()] == ["start"]
    await rig.clock.advance(IDLE / 2)
    assert broker.current() is None


async def test_many_values_that_roll_at_once_are_written_together(fleet_rig: Rig) -> None:
    """One write at a time, of the latest; and nothing where an answer brings what is known."""
    rig = fleet_rig
    broker = await session(rig)
    first = bare(broker.current())
    rig.shaky.commands.clear()
    for number in range(100):
        rolls(broker, first, "=jar", f"jar-{number}")
    await settle()
    assert (await rig.stored()).token == broker.current()
    assert rig.shaky.commands.count("write") == 1
    rolls(broker, first, "=jar", "jar-99")
    await settle()
    assert rig.shaky.commands.count("write") == 1


async def test_what_is_rolled_in_two_instances_becomes_one(rig: Rig) -> None:
    """Each change is applied to what the other has stored meanwhile."""
    one = await session(rig)
    two = rig.broker(session=True)
    await two.start()
    token = bare(one.current())
    rolls(one, token, "left", "a")
    rolls(two, token, "right", "b")
    await settle()
    await one.recall()
    values = {**token.values, "left": secret("a"), "right": secret("b")}
    assert bare(one.current()).values == bare(two.current()).values == values
    assert bare((await rig.stored()).token).values == values


async def test_another_login_wins_over_what_is_rolled(rig: Rig) -> None:
    """What an answer to the session before says is of no interest, here and in the store."""
    one = await session(rig)
    two = rig.broker(session=True)
    await two.start()
    token = bare(one.current())
    newest = await two.renew()
    rolls(one, token, "=jar", "late")
    await settle()
    assert (one.current(), (await rig.stored()).token) == (newest, newest)
    rolls(two, token, "=jar", "late")
    assert two.current() == newest


async def test_a_value_rolled_during_a_login_does_not_undo_it(rig: Rig) -> None:
    """Late answers to the old session come while the new one is obtained, at another instance too."""
    one = await session(rig)
    two = rig.broker(session=True)
    await two.start()
    token = bare(one.current())
    rig.issuer.gate.clear()
    waiting = rig.later(one.after(token, rig.after(30)))
    await settle()
    rolls(one, token, "=jar", "one")
    rolls(two, token, "=jar", "two")
    await settle()
    rig.issuer.gate.set()
    newest = bare(await waiting)
    assert newest.login > token.login
    assert (await rig.stored()).token == newest
    await settle()
    assert one.current() == newest
    assert len(rig.issuer.calls) == 2


async def test_an_operators_login_is_not_taken_for_done_because_a_value_rolled(rig: Rig) -> None:
    """What rolls is newer, and the same login."""
    broker = await session(rig)
    token = bare(broker.current())
    rig.issuer.gate.clear()
    waiting = rig.later(broker.renew())
    await settle()
    rolls(broker, token, "=jar", "one")
    await settle()
    assert not waiting.done()
    rig.issuer.gate.set()
    assert (await waiting).login > token.login


async def test_a_value_that_cannot_be_stored_serves_on_and_is_stored_later(rig: Rig) -> None:
    """Memory goes on while the store is away, as with all else."""
    broker = await session(rig)
    token = bare(broker.current())
    rig.shaky.fail()
    rolls(broker, token, "=jar", "one")
    await settle()
    rig.shaky.failing = None
    await rig.clock.advance(2)
    assert bare((await rig.stored()).token).values["=jar"] == secret("one")
    assert broker.current() == (await rig.stored()).token


async def test_a_refused_session_is_refused_whatever_rolls(rig: Rig) -> None:
    """Its last answers bring cookies; it is replaced all the same."""
    broker = await session(rig)
    token = bare(broker.current())
    rig.issuer.gate.clear()
    waiting = rig.later(broker.after(token, rig.after(30)))
    await settle()
    rolls(broker, token, "=jar", "anonymous")
    await settle()
    assert broker.current() is None
    assert not waiting.done()
    rig.issuer.gate.set()
    assert bare(await waiting).login > token.login


# what a session that is dead costs


async def test_a_session_is_replaced_as_often_as_it_dies(rig: Rig) -> None:
    """`min_interval` is for tokens that an upstream may refuse for other reasons."""
    broker = await session(rig)
    for number in range(2, 5):
        token = await dies(rig, broker)
        assert token.granted == number
        broker.heard(token, Sign.FINE)
    assert len(rig.issuer.calls) == 4


async def test_why_there_is_no_other_session_is_said_instead_of_none(rig: Rig) -> None:
    """The answer that says that it is dead helps no client."""
    broker = await session(rig)
    rig.issuer.default = CredentialRejected("", "the password is wrong")
    refusal = await refused(dies(rig, broker))
    assert (refusal.reason, refusal.detail) == (Reason.CREDENTIAL_REJECTED, "the password is wrong")
    rig.issuer.default = IssuerUnavailable("the login page is down")
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(2)
    waiting = rig.later(refused(dies(rig, broker)))
    await rig.clock.advance(31)
    refusal = await waiting
    assert refusal.reason is Reason.TOKEN_UNAVAILABLE
    assert "the login page is down" in refusal.detail


@pytest.mark.parametrize("silent", [False, True])
async def test_nobody_logs_in_without_the_store_and_its_return_is_waited_for(rig: Rig, silent: bool) -> None:
    """A login would end the session that another instance may have just begun."""
    broker = await session(rig)
    rig.shaky.fail(silent=silent)
    token = bare(broker.current())
    early = rig.later(refused(broker.after(token, rig.after(12))))
    late = rig.later(broker.after(token, rig.after(60)))
    await rig.clock.advance(13)
    refusal = await early
    assert (refusal.reason, rig.issuer.calls) == (Reason.TOKEN_UNAVAILABLE, [None])
    assert "without the store: the store is down" in refusal.detail
    rig.shaky.failing = None
    await rig.clock.advance(15)
    assert bare(await late).granted > token.granted


async def test_who_has_no_session_waits_for_the_store_too(rig: Rig) -> None:
    """As those do whose session is dead."""
    rig.issuer.anew = Anew.EVICTS
    rig.shaky.fail()
    broker = rig.broker(session=True)
    await broker.start()
    early, late = rig.later(refused(broker.token(rig.after(5)))), rig.later(broker.token(rig.after(60)))
    await rig.clock.advance(6)
    refusal = await early
    assert (refusal.reason, rig.issuer.calls) == (Reason.TOKEN_UNAVAILABLE, [])
    assert "the store is down" in refusal.detail
    rig.shaky.failing = None
    await rig.clock.advance(15)
    assert (await late, rig.issuer.calls) == (broker.current(), [None])


async def test_a_session_begun_as_the_store_went_away_is_told_of_before_another_is_begun(rig: Rig) -> None:
    """One had the lease and logged in, and could not store it; the other was told that its session is dead."""
    one = await session(rig)
    two = rig.broker(session=True)
    await two.start()
    token = bare(two.current())
    rig.issuer.gate.clear()
    first = rig.later(one.after(token, rig.after(30)))
    await settle()
    rig.shaky.fail()
    rig.issuer.gate.set()
    newest = bare(await first)
    second = rig.later(two.after(token, rig.after(90)))
    await rig.clock.advance(2 * TTL)
    rig.shaky.failing = None
    await rig.clock.advance(40)
    assert (await second) == newest
    assert len(rig.issuer.calls) == 2


async def test_two_that_start_at_once_log_in_once(fleet_rig: Rig) -> None:
    """Under the lease; who comes second takes up what is there."""
    rig = fleet_rig
    rig.issuer.anew = Anew.EVICTS
    one, two = rig.broker(session=True), rig.broker(session=True)
    await asyncio.gather(one.start(), two.start())
    await rig.clock.advance(1)
    assert bare(one.current()) == two.current()
    assert rig.issuer.calls == [None]


async def test_a_damaged_record_of_a_session_is_replaced_by_another_login(rig: Rig) -> None:
    """Nobody can read it, so that it is nobody's session."""
    await rig.put_bytes(b"damage", 7)
    broker = await session(rig)
    assert (await rig.stored()).token == broker.current()


# a seat that is taken


async def test_another_login_again_and_again_pauses_ours(rig: Rig) -> None:
    """1 + 3 logins, then half a minute without; the detail says why, and the event, and the status."""
    broker = await session(rig, seat=SEAT)
    other = rig.broker(session=True, seat=SEAT)
    await other.start()
    for _ in range(3):
        await rig.clock.advance(2)
        await dies(rig, broker)
    await rig.clock.advance(2)
    refusal = await refused(dies(rig, broker))
    assert (refusal.reason, refusal.retry_after) == (Reason.SEAT_TAKEN, 30)
    assert "another login" in refusal.detail
    assert broker.status().state == "seat_taken"
    told = [event for event in rig.events if isinstance(event, SeatContested)]
    assert [(event.taken, event.wait) for event in told] == [(4, 30)]
    assert "another login" in told[0].detail
    await rig.clock.advance(5)
    assert (await refused(dies(rig, broker))).retry_after == 25
    await other.recall()
    assert (await refused(dies(rig, other))).reason is Reason.SEAT_TAKEN
    assert len(rig.issuer.calls) == 4


async def test_after_the_pause_one_login_is_made_when_a_request_needs_it(rig: Rig) -> None:
    """Not by a timer; if that session is taken too, the next pause is longer, ten minutes at most."""
    broker = await session(rig, seat=SEAT)
    for _ in range(3):
        await dies(rig, broker)
    waits = []
    for _ in range(8):
        waits.append((await refused(dies(rig, broker))).retry_after)
        before = len(rig.issuer.calls)
        await rig.clock.advance(700)
        assert len(rig.issuer.calls) == before
        await dies(rig, broker)
        assert len(rig.issuer.calls) == before + 1
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]


async def test_a_session_that_lived_ends_the_row(rig: Rig) -> None:
    """Which is told once; what dies later dies for other reasons."""
    broker = await session(rig, seat=SEAT)
    for _ in range(3):
        await dies(rig, broker)
    await refused(dies(rig, broker))
    await rig.clock.advance(31)
    token = await dies(rig, broker)
    broker.heard(token, Sign.FINE)
    await rig.clock.advance(11)
    broker.heard(token, Sign.FINE)
    broker.heard(token, Sign.FINE)
    assert [event.taken for event in rig.events if isinstance(event, SeatContested)] == [4, 0]
    for _ in range(4):
        await dies(rig, broker)
    assert (await rig.stored()).taken == 3
    assert (await refused(dies(rig, broker))).reason is Reason.SEAT_TAKEN


async def test_an_operator_logs_in_all_the_same(rig: Rig) -> None:
    """Once, which ends the pause and not the count: if that is taken too, the next pause begins at once."""
    broker = await session(rig, seat=SEAT)
    for _ in range(3):
        await dies(rig, broker)
    await refused(dies(rig, broker))
    assert (await broker.renew()).granted > 4
    assert broker.status().state == "valid"
    assert (await refused(dies(rig, broker))).retry_after == 60


async def test_a_death_counts_once_however_often_the_login_fails(rig: Rig) -> None:
    """Weather is no other login."""
    broker = await session(rig, seat=SEAT)
    rig.issuer.answers.extend([IssuerUnavailable("down", retry_after=0.5)] * 4)
    waiting = rig.later(dies(rig, broker, 300.0))
    await rig.clock.advance(120)
    await waiting
    assert (await rig.stored()).taken <= 1


# a credential that an upstream refused


async def test_a_refused_credential_is_used_no_more_by_anybody_until_it_changes(rig: Rig) -> None:
    """A password that is wrong three times locks the account; a restart does not forget it."""
    broker = await session(rig, anew=Anew.FREE)
    other = rig.broker(session=True)
    await other.start()
    token = bare(broker.current())
    broker.heard(token, Sign.REJECTED)
    assert broker.current() is None
    broker.heard(token, Sign.REJECTED)
    assert broker.status().state == "rejected"
    assert (await refused(broker.token(rig.after(30)))).reason is Reason.CREDENTIAL_REJECTED
    await settle()
    await other.recall()
    again = rig.broker(session=True)
    await again.start()
    for each in (other, again):
        refusal = await refused(each.token(rig.after(30)))
        assert (refusal.reason, each.current()) == (Reason.CREDENTIAL_REJECTED, None)
    await rig.clock.advance(DAY)
    assert rig.issuer.calls == [None]
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(10)
    for each in (broker, other, again):
        assert await each.token(rig.after(30)) == broker.current()


async def test_an_answer_to_an_older_session_rejects_nothing(rig: Rig) -> None:
    """It says nothing of what is held now."""
    broker = await session(rig)
    token = bare(broker.current())
    newest = await dies(rig, broker)
    broker.heard(token, Sign.REJECTED)
    assert broker.current() == newest


async def test_an_operator_has_a_refused_credential_tried_once_more(rig: Rig) -> None:
    """And it serves again until it is refused again."""
    broker = await session(rig)
    broker.heard(bare(broker.current()), Sign.REJECTED)
    await settle()
    token = await broker.renew()
    assert broker.current() == token
    broker.heard(token, Sign.REJECTED)
    await settle()
    assert broker.current() is None
    assert (await rig.stored()).token is None


# the end


async def test_a_session_that_is_revoked_is_logged_out_first(rig: Rig) -> None:
    """Then it is dropped, and whoever needs one gets another."""
    broker = await session(rig)
    token = bare(broker.current())
    await broker.revoke()
    assert rig.issuer.released == [token.values]
    assert (await broker.token(rig.after(10))).granted > token.granted


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_logout_ends_whatever_comes_of_it(rig: Rig, hangs: bool) -> None:
    """In time, told when it fails; the session is in no record any more, and no other is begun here."""
    broker = await session(rig)
    token = bare(broker.current())
    rig.issuer.releasing = IssuerUnavailable("no answer to the logout")
    if hangs:
        rig.issuer.gate.clear()
    work = rig.later(broker.logout())
    await rig.clock.advance(11)
    await work
    assert rig.issuer.released == [token.values]
    assert [event.where for event in rig.troubles()] == ["logout of plm"]
    assert (await rig.stored()).revoked
    assert (await refused(broker.token(rig.after(10)))).reason is Reason.SHUTTING_DOWN
    await broker.logout()
    assert len(rig.issuer.released) == 1


async def test_a_bearer_token_is_not_logged_out(rig: Rig) -> None:
    """Only sessions are; for the others revoking is what it was."""
    broker = await rig.started()
    await broker.revoke()
    assert rig.issuer.released == []


async def test_a_session_that_is_over_is_not_logged_out(rig: Rig) -> None:
    """There is nothing to end; it is dropped all the same."""
    broker = await session(rig, idle=IDLE)
    await rig.clock.advance(IDLE)
    await broker.logout()
    assert rig.issuer.released == []
    assert (await rig.stored()).revoked


async def test_a_session_whose_values_rolled_is_replaced_when_it_dies(rig: Rig) -> None:
    """It is refused as its login, whatever has become of its values."""
    broker = await session(rig)
    rolls(broker, bare(broker.current()), "=jar", "one")
    await settle()
    token = bare(broker.current())
    assert (await dies(rig, broker)).login > token.login
    assert len(rig.issuer.calls) == 2
