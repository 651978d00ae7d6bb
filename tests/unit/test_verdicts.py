"""What follows from the verdicts of upstreams on the tokens: no storm of renewals, and what idleness costs."""

from dataclasses import replace

from sidecar.events import ForcedRenewals, IdleLimit
from sidecar.policy.reading import Sign
from sidecar.tokens.broker import Broker
from sidecar.tokens.token import Token
from tests.unit.broker_rig import DUE, LIFETIME, Rig, access, record, rig, settle

__all__ = ["rig"]

MINUTE = 60.0


async def one_more_refused(rig: Rig, broker: Broker, used: Token) -> Token:
    """Let a 401 force a renewal whose token is refused too; return that."""
    newer = await broker.after(used, rig.after(60))
    assert newer is not None
    broker.heard(newer, Sign.EXPIRED, again=True)
    return newer


async def stopped(rig: Rig, *, apart: float = 10, **settings: object) -> tuple[Broker, Token]:
    """Return a broker of whose renewed tokens so many were refused that none is forced any more, and the last."""
    broker = await rig.started(**{"min_interval": 10, **settings})  # type: ignore[arg-type]
    used = await broker.token(0)
    for number in range(5):
        assert broker.status().forced_renewals == "allowed"
        await rig.clock.advance(apart if number else 0)
        used = await one_more_refused(rig, broker, used)
    return broker, used


def changes(rig: Rig) -> list[tuple[bool, int]]:
    return [(event.stopped, event.refused) for event in rig.events if isinstance(event, ForcedRenewals)]


async def test_a_row_of_refused_tokens_stops_forced_renewals(rig: Rig) -> None:
    """So many new tokens were refused that another will not help; it is told once, and shown."""
    broker, used = await stopped(rig)
    calls = len(rig.issuer.calls)

    assert await broker.after(used, rig.after(60)) is None
    assert len(rig.issuer.calls) == calls == 6
    assert broker.status().forced_renewals == "stopped"
    assert changes(rig) == [(True, 5)]


async def test_requests_go_on_without_forced_renewals(rig: Rig) -> None:
    """The token is handed out as ever: there may be parts of the upstream that take it."""
    broker, used = await stopped(rig)
    await broker.after(used, rig.after(60))

    assert broker.current() == used
    assert broker.status().usable


async def test_probes_are_forced_ever_more_rarely(rig: Rig) -> None:
    """10 s after the last forced renewal, then 20 s, then 40 s, while none of their tokens is taken."""
    broker, used = await stopped(rig)
    began, tried = rig.clock.mono, list[float]()
    rig.issuer.default = {"lifetime": 3600.0}
    while rig.clock.mono < began + 75:
        newer = await broker.after(used, rig.after(60))
        if newer is not None:
            tried.append(rig.clock.mono - began)
            broker.heard(newer, Sign.EXPIRED, again=True)
            used = newer
        await rig.clock.advance(1)

    assert tried == [10, 30, 70]


async def test_a_probe_is_no_more_frequent_for_short_tokens(rig: Rig) -> None:
    """Half a lifetime bounds the interval of ordinary forced renewals only."""
    broker, used = await stopped(rig, min_interval=60, apart=LIFETIME / 2)
    await rig.clock.advance(LIFETIME / 2 + 1)
    assert await broker.after(used, rig.after(60)) is None
    await rig.clock.advance(9)

    assert await broker.after(used, rig.after(60)) is not None


async def test_a_token_that_is_taken_ends_the_stop(rig: Rig) -> None:
    """A probe whose token an upstream took, or any other renewal's; a 401 forces renewals as before."""
    broker, used = await stopped(rig)
    await rig.clock.advance(10)
    probe = await broker.after(used, rig.after(60))
    assert probe is not None
    broker.heard(probe, Sign.FINE)
    assert broker.status().forced_renewals == "allowed"
    assert changes(rig) == [(True, 5), (False, 0)]
    await rig.clock.advance(10)

    assert await broker.after(probe, rig.after(60)) is not None


async def test_nobody_waits_for_a_probe_but_its_request(rig: Rig) -> None:
    """Other 401s are passed on at once meanwhile, however long the issuer takes."""
    broker, used = await stopped(rig)
    await rig.clock.advance(10)
    rig.issuer.gate.clear()
    probe = rig.later(broker.after(used, rig.after(60)))
    await settle()
    other = rig.later(broker.after(used, rig.after(60)))
    await settle()

    assert other.done()
    assert await other is None
    assert not probe.done()


async def test_due_renewals_go_on_without_forced_ones(rig: Rig) -> None:
    """The token is renewed when its time comes, and by an operator."""
    broker, used = await stopped(rig)
    await rig.clock.advance(DUE)
    current = await broker.token(0)
    assert current.granted == used.granted + 1

    assert (await broker.renew()).granted == used.granted + 2


async def test_an_expired_token_is_renewed_without_forced_renewals(rig: Rig) -> None:
    """There is nothing to lose by it."""
    broker, used = await stopped(rig, check_every=0)
    await rig.clock.advance(LIFETIME)

    newer = await broker.after(used, rig.after(60))
    assert newer is not None
    assert newer.granted == used.granted + 1


async def test_one_bad_endpoint_does_not_stop_renewals_for_the_others(rig: Rig) -> None:
    """What others take is no refused token; the bad one costs one renewal per interval, no more."""
    rig.issuer.default = {"lifetime": 36_000.0}
    broker = await rig.started(min_interval=60)
    for _ in range(60):
        used = await broker.token(0)
        broker.heard(used, Sign.FINE)
        newer = await broker.after(used, rig.after(60))
        if newer is not None:
            broker.heard(newer, Sign.EXPIRED, again=True)
            broker.heard(newer, Sign.FINE)
        await rig.clock.advance(10)

    assert changes(rig) == []
    assert len(rig.issuer.calls) == 1 + 10


async def test_many_instances_share_their_probes(rig: Rig) -> None:
    """In an hour of nothing but 401s three instances force no more renewals together than one would."""
    rig.issuer.default = {"lifetime": 36_000.0}
    brokers = [await rig.started(min_interval=60) for _ in range(3)]
    for _ in range(360):
        for broker in brokers:
            newer = await broker.after(await broker.token(0), rig.after(60))
            if newer is not None:
                broker.heard(newer, Sign.EXPIRED, again=True)
        await rig.clock.advance(10)

    assert {broker.status().forced_renewals for broker in brokers} == {"stopped"}
    assert 15 <= len(rig.issuer.calls) <= 22


# --- idleness -----------------------------------------------------------------------------------------------------


async def used_by_all(rig: Rig) -> Broker:
    """Return a broker whose tokens last for ten hours, and the first was taken."""
    rig.issuer.default = {"lifetime": 36_000.0}
    broker = await rig.started()
    broker.heard(await broker.token(0), Sign.FINE)
    return broker


async def dies_after(rig: Rig, broker: Broker, seconds: float) -> Token:
    """Let the token be refused after so long without use, and the next one be taken."""
    await rig.clock.advance(seconds)
    newer = await broker.after(await broker.token(0), rig.after(60))
    assert newer is not None
    broker.heard(newer, Sign.FINE)
    return newer


def limits(rig: Rig) -> list[IdleLimit]:
    return [event for event in rig.events if isinstance(event, IdleLimit)]


async def test_tokens_that_die_of_idleness_are_told_of_once(rig: Rig) -> None:
    """At the second death, with the time after which they were dead, and what to do."""
    broker = await used_by_all(rig)
    await rig.clock.advance(10 * MINUTE)
    broker.heard(await broker.token(0), Sign.FINE)
    await dies_after(rig, broker, 45 * MINUTE)
    assert limits(rig) == []
    for _ in range(3):
        await dies_after(rig, broker, 40 * MINUTE)

    (event,) = limits(rig)
    assert (event.upstream, event.survived, event.died) == ("plm", 10 * MINUTE, 40 * MINUTE)
    assert event.detail.startswith("tokens of plm die after about 40 minutes without use")
    assert "upstreams.plm.keepalive" in event.detail


async def test_a_short_limit_is_told_in_seconds(rig: Rig) -> None:
    """Not as a rounded minute."""
    broker = await used_by_all(rig)
    for _ in range(2):
        await dies_after(rig, broker, 90)

    assert "after about 90 seconds" in limits(rig)[0].detail


async def test_a_token_that_survived_as_long_did_not_die_of_idleness(rig: Rig) -> None:
    """It was revoked."""
    broker = await used_by_all(rig)
    await rig.clock.advance(50 * MINUTE)
    broker.heard(await broker.token(0), Sign.FINE)
    for _ in range(3):
        await dies_after(rig, broker, 40 * MINUTE)

    assert limits(rig) == []


async def test_a_token_that_was_kept_alive_was_not_idle(rig: Rig) -> None:
    """Its use for its own sake counts as use, and as none of a request's."""
    broker = await used_by_all(rig)
    used_at = broker.verdicts.used_at
    for _ in range(3):
        for _ in range(8):
            await rig.clock.advance(5 * MINUTE)
            broker.heard(await broker.token(0), Sign.FINE, own=True)
        assert broker.verdicts.used_at == used_at
        await dies_after(rig, broker, 20)
        used_at = broker.verdicts.used_at

    assert limits(rig) == []


async def test_an_endpoint_that_refuses_every_token_kills_none(rig: Rig) -> None:
    """The next token was refused there too."""
    broker = await used_by_all(rig)
    for _ in range(4):
        await rig.clock.advance(40 * MINUTE)
        newer = await broker.after(await broker.token(0), rig.after(60))
        assert newer is not None
        broker.heard(newer, Sign.EXPIRED, again=True)
        broker.heard(newer, Sign.FINE)

    assert limits(rig) == []


async def test_a_token_that_is_taken_after_a_401_was_not_dead(rig: Rig) -> None:
    """Another endpoint takes it while the 401 is on its way."""
    broker = await used_by_all(rig)
    for _ in range(3):
        await rig.clock.advance(40 * MINUTE)
        used = await broker.token(0)
        rig.issuer.gate.clear()
        waiter = rig.later(broker.after(used, rig.after(60)))
        await rig.clock.advance(1)
        broker.heard(used, Sign.FINE)
        rig.issuer.gate.set()
        newer = await waiter
        assert newer is not None
        broker.heard(newer, Sign.FINE)

    assert limits(rig) == []


async def test_a_token_at_its_end_did_not_die_early(rig: Rig) -> None:
    """Its time was over."""
    rig.issuer.default = {"lifetime": 40 * MINUTE}
    broker = await rig.started(check_every=0)
    broker.heard(await broker.token(0), Sign.FINE)
    for _ in range(3):
        used = broker.verdicts.token
        assert used is not None
        await rig.clock.advance(40 * MINUTE)
        newer = await broker.after(used, rig.after(60))
        assert newer is not None
        broker.heard(newer, Sign.FINE)

    assert limits(rig) == []


async def test_a_token_nobody_has_used_did_not_die_of_idleness(rig: Rig) -> None:
    """It may never have been good."""
    rig.issuer.default = {"lifetime": 36_000.0}
    broker = await rig.started()
    for _ in range(3):
        await rig.clock.advance(40 * MINUTE)
        await broker.after(await broker.token(0), rig.after(60))

    assert limits(rig) == []


async def test_a_token_that_another_instance_replaced_did_not_die_of_idleness(rig: Rig) -> None:
    """Some issuers end a token when they grant the next."""
    broker = await used_by_all(rig)
    for number in range(3):
        await rig.clock.advance(40 * MINUTE)
        used = await broker.token(0)
        next_one = replace(used, granted=used.granted + 1, values=access(50 + number))
        await rig.put(record(next_one.granted, token=next_one))
        assert await broker.after(used, rig.after(60)) == next_one
        broker.heard(next_one, Sign.FINE)

    assert limits(rig) == []


async def test_many_401s_of_one_token_are_one_death(rig: Rig) -> None:
    """However many requests meet it."""
    broker = await used_by_all(rig)
    await rig.clock.advance(40 * MINUTE)
    used = await broker.token(0)
    waiters = [rig.later(broker.after(used, rig.after(60))) for _ in range(50)]
    for waiter in waiters:
        newer = await waiter
        assert newer is not None
        broker.heard(newer, Sign.FINE)

    assert limits(rig) == []
    assert (await broker.token(0)).values == access(2)
