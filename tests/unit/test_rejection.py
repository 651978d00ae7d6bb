"""A credential that the issuer refused: asked about now and then, by one instance for all with the same secrets."""

import json

import pytest

from sidecar.errors import CredentialRejected, IssuerUnavailable, Reason
from sidecar.tokens.broker import Broker
from sidecar.tokens.rejection import ASK_AGAIN
from sidecar.tokens.store import store_key
from tests.unit.test_broker import IDENTITY, LIFETIME, WALL, Rig, access, refused, token
from tests.unit.test_fleet import rig as shaky_rig
from tests.unit.test_fleet import store_of

COPY = store_key(IDENTITY, "rejected")
NO = CredentialRejected("invalid_client", "the issuer said invalid_client")


@pytest.fixture
def rig(shaky_rig: Rig) -> Rig:
    shaky_rig.issuer.default = NO
    return shaky_rig


__all__ = ["shaky_rig"]


async def fleet(rig: Rig, number: int) -> list[Broker]:
    """Start so many instances, and let them settle."""
    brokers = [rig.broker() for _ in range(number)]
    for broker in brokers:
        await broker.start()
    await rig.clock.advance(number)
    return brokers


def states(brokers: list[Broker]) -> set[str]:
    return {broker.status().state for broker in brokers}


async def copied(rig: Rig, **said: object) -> None:
    """Put a copy of a rejection into the store, as another instance would."""
    whole = {"at": rig.clock.wall, "secrets": rig.issuer.secret, "generation": 0, "error": "e", "message": "m"} | said
    number = int(rig.clock.wall * 1000)
    await rig.store.write(COPY, number, rig.ring.seal(COPY, json.dumps(whole).encode()))


async def test_instances_with_the_same_secrets_are_refused_once(rig: Rig) -> None:
    """The issuer is asked by the first one that starts; the others learn of it from the store."""
    brokers = await fleet(rig, 20)

    assert len(rig.issuer.calls) == 1
    assert states(brokers) == {"rejected"}
    for broker in brokers:
        assert (await refused(broker.token(rig.after(60)))).reason is Reason.CREDENTIAL_REJECTED
    details = [event.detail for event in rig.renewals()]
    assert details[0] == "the issuer said invalid_client"
    assert all(detail.startswith("the issuer said invalid_client (said ") for detail in details[1:])


async def test_one_instance_asks_again_for_all(rig: Rig) -> None:
    """At most once in five minutes, however many there are, with or without requests."""
    brokers = await fleet(rig, 10)
    began = rig.clock.mono
    for _ in range(60):
        for broker in brokers:
            await refused(broker.token(rig.after(60)))
        await rig.clock.advance(60)

    assert 8 <= len(rig.issuer.calls) <= 12
    gaps = [after - before for before, after in zip(rig.issuer.at, rig.issuer.at[1:], strict=False)]
    assert min(gaps) >= ASK_AGAIN
    assert rig.issuer.at[-1] > began + 3000


async def test_an_issuer_that_was_put_right_is_found(rig: Rig) -> None:
    """The next one who asks gets a token, and none of the others counts as rejected after that."""
    brokers = await fleet(rig, 10)
    rig.issuer.default = {}
    await rig.clock.advance(ASK_AGAIN * 1.2 + 10)

    assert len(rig.issuer.calls) == 2
    assert {broker.current() for broker in brokers} == {await rig.stored()}
    assert states(brokers) == {"valid"}


async def test_a_rejection_that_is_over_is_forgotten(rig: Rig) -> None:
    """When the token that came after it has ended, requests wait for the next one as ever."""
    (broker,) = await fleet(rig, 1)
    rig.issuer.default = {}
    await rig.clock.advance(ASK_AGAIN * 1.2)
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
    await rig.clock.advance(ASK_AGAIN * 1.2)
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

    assert (await first.renew()).access_token == access(3)


async def test_a_changed_secret_is_not_held_up(rig: Rig) -> None:
    """What was refused was another one."""
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


async def test_what_is_left_of_the_time_counts_for_who_comes_late(rig: Rig) -> None:
    """It asks when the five minutes of the first are over, not its own."""
    (first,) = await fleet(rig, 1)
    await first.aclose()
    await rig.clock.advance(ASK_AGAIN - 50)
    await fleet(rig, 1)
    await rig.clock.advance(50 + 0.2 * ASK_AGAIN)

    assert len(rig.issuer.calls) == 2


async def test_without_the_store_each_asks_for_itself(rig: Rig) -> None:
    """Nobody can tell them; each waits its five minutes."""
    store_of(rig).down = True
    await fleet(rig, 3)
    assert len(rig.issuer.calls) == 3
    await rig.clock.advance(ASK_AGAIN - 10)

    assert len(rig.issuer.calls) == 3


@pytest.mark.parametrize(
    "said",
    [
        {"at": WALL - ASK_AGAIN},
        {"at": WALL + 60},
        {"at": float("nan")},
        {"at": None},
        {"secrets": "others"},
        {"generation": -1},
        {"generation": None},
    ],
    ids=str,
)
async def test_a_copy_that_says_nothing_of_now_is_passed_over(rig: Rig, said: dict[str, object]) -> None:
    """An old one, one of the future, one of other secrets, one from before a newer token, one of a wrong type."""
    rig.issuer.default = {}
    await copied(rig, **said)
    (broker,) = await fleet(rig, 1)

    assert broker.current() is not None


async def test_a_copy_of_this_moment_counts(rig: Rig) -> None:
    """The near miss of the ones above."""
    rig.issuer.default = {}
    await copied(rig)
    await fleet(rig, 1)

    assert rig.issuer.calls == []


async def test_a_copy_that_cannot_be_opened_is_passed_over(rig: Rig) -> None:
    """Nobody without the store key can keep us from the issuer."""
    rig.issuer.default = {}
    await rig.store.write(COPY, 1, b"rubbish")
    (broker,) = await fleet(rig, 1)

    assert broker.current() is not None


async def test_a_token_since_then_means_that_it_may_be_asked(rig: Rig) -> None:
    """Another instance, with another secret perhaps, got one after the rejection."""
    await fleet(rig, 1)
    await rig.put(token(3))
    await rig.clock.advance(20)
    rig.issuer.default = {}
    (late,) = await fleet(rig, 1)
    await rig.clock.advance(100)

    assert len(rig.issuer.calls) == 2
    assert late.current() is not None


async def test_times_of_copies_are_the_stores(rig: Rig) -> None:
    """An instance whose clock is off takes the same five minutes for over."""
    store_of(rig).ahead = 1000.0
    rig.issuer.default = {}
    await copied(rig, at=WALL + 1000.0)
    await fleet(rig, 1)

    assert rig.issuer.calls == []


async def test_the_latch_shows_until_a_newer_token_is_here(rig: Rig) -> None:
    """A token of before the rejection does not mean that the credential is well."""
    await rig.put(token(3))
    (broker,) = await fleet(rig, 1)
    assert states([broker]) == {"valid"}
    with pytest.raises(CredentialRejected):
        await broker.renew()
    assert states([broker]) == {"rejected"}
    await rig.put(token(4))
    await rig.clock.advance(6)

    assert states([broker]) == {"valid"}
