"""What may be presented to an issuer, of all that can be known of its refresh tokens."""

from itertools import product

import pytest

from sidecar.auth.grant import Anew
from sidecar.errors import CredentialRejected
from sidecar.secret import Secret
from sidecar.tokens.presenting import KeptBack, Stuck, check_known, choose
from sidecar.tokens.record import Presented, Record
from sidecar.tokens.sealed import Unreadable
from tests.canary import WORD, canary

KEPT = Secret(canary("kept"))
ME = "test/me"
OURS, OTHER, LOST = Presented(by=ME), Presented(by="test/other"), Presented(by="test/other", lost=True)

BOTH = list(product([False, True], repeat=2))
KEEP = "kept back"
STUCK = "a person"
FIRST = "what is configured"
REST = "the kept one"

# doubt, kept, claimed, revoked, rotates, forced, lasts -> what is done
ONCE = {
    # The configured first one: once in its life.
    (None, False, False, False, None): FIRST,
    (None, False, True, False, None): STUCK,
    (None, False, False, True, None): STUCK,
    (None, False, True, True, None): STUCK,
    # A kept one, nothing in doubt.
    (None, True, True, False, True): REST,
    (None, True, True, False, False): REST,
    (None, True, False, False, None): REST,
    # Presented, and known to us: this process did it, or its answer was lost on the wire.
    (OURS, True, True, False, True): REST,
    (LOST, True, True, False, True): REST,
    (OURS, False, True, False, None): FIRST,
    (LOST, False, True, False, None): FIRST,
    # Its issuer has shown that it takes the same one again.
    (OTHER, True, True, False, False): REST,
}


@pytest.mark.parametrize(("known", "done"), ONCE.items(), ids=str)
@pytest.mark.parametrize(("forced", "lasts"), BOTH)
def test_a_refresh_token_for_once(known: tuple[object, ...], done: str, forced: bool, lasts: bool) -> None:
    """Whatever an operator says and however long the token lasts: what is not in doubt is presented, and claimed."""
    doubt, kept, claimed, revoked, rotates = known
    before = _record(doubt, kept, claimed=claimed, revoked=revoked, rotates=rotates)
    if done == STUCK:
        with pytest.raises(Stuck, match="log in anew and set the new refresh_token"):
            choose(before, Anew.ONCE, ME, forced=forced, lasts=lasts)
        return
    presented, after = choose(before, Anew.ONCE, ME, forced=forced, lasts=lasts)
    assert presented == (KEPT if done == REST else None)
    assert after == _record(OURS, kept, claimed=claimed or done == FIRST, revoked=revoked, rotates=rotates), (
        "all else stays"
    )


@pytest.mark.parametrize("anew", [Anew.ONCE, Anew.EVICTS])
@pytest.mark.parametrize("rotates", [None, True])
@pytest.mark.parametrize(
    ("forced", "lasts", "done"),
    [(False, True, KEEP), (False, False, STUCK), (True, True, None), (True, False, None)],
)
@pytest.mark.parametrize("kept", [False, True])
def test_what_another_presented_and_did_not_live_to_tell(
    kept: bool, forced: bool, lasts: bool, done: str | None, rotates: bool | None, anew: Anew
) -> None:
    """The token that lasts is served; then a person is asked for, who may have it presented once more."""
    before = _record(OTHER, kept, claimed=True, rotates=rotates)
    if done == KEEP:
        with pytest.raises(KeptBack, match="test/other presented the refresh token and was cut off"):
            choose(before, anew, ME, forced=forced, lasts=lasts)
    elif done == STUCK:
        with pytest.raises(Stuck, match="auth-sidecar token renew"):
            choose(before, anew, ME, forced=forced, lasts=lasts)
    elif anew is Anew.ONCE:
        presented, after = choose(before, anew, ME, forced=forced, lasts=lasts)
        assert presented == (KEPT if kept else None)
        assert after == _record(OURS, kept, claimed=True, rotates=rotates)
    else:
        assert choose(before, anew, ME, forced=forced, lasts=lasts) == (None, before)


@pytest.mark.parametrize("doubt", [OURS, OTHER, LOST])
@pytest.mark.parametrize(("forced", "lasts"), BOTH)
def test_what_is_free_takes_no_risk(doubt: Presented, forced: bool, lasts: bool) -> None:
    """A refresh token in any doubt is dropped for what is configured; one that is not is presented."""
    before = _record(doubt, kept=True)
    assert choose(before, Anew.FREE, ME, forced=forced, lasts=lasts) == (None, Record(generation=7))
    good = _record(None, kept=True)
    assert choose(good, Anew.FREE, ME, forced=forced, lasts=lasts) == (KEPT, _record(OURS, kept=True))
    assert choose(Record(), Anew.FREE, ME, forced=forced, lasts=lasts) == (None, Record())


def test_a_login_presents_no_refresh_token() -> None:
    """What it costs is everybody's session; nothing is noted for it."""
    before = _record(None, kept=True)
    assert choose(before, Anew.EVICTS, ME, forced=False, lasts=False) == (None, before)


def test_what_the_store_has_is_known_first() -> None:
    """A record for others is waited for, a lost one needs a person, and ours must be stored."""
    check_known(None, Anew.ONCE, unsaved=False)
    with pytest.raises(KeptBack, match="a key we do not have"):
        check_known(Unreadable(5, "a record sealed with a key we do not have", foreign=True), Anew.ONCE, unsaved=True)
    with pytest.raises(Stuck, match="it is gone; log in anew"):
        check_known(Unreadable(5, "it is gone"), Anew.ONCE, unsaved=True)
    with pytest.raises(KeptBack, match="not stored yet"):
        check_known(None, Anew.ONCE, unsaved=True)


def test_who_is_stuck_was_rejected() -> None:
    """Requests are refused for it, and no error code of an issuer is made up."""
    stuck = Stuck("gone")
    assert isinstance(stuck, CredentialRejected)
    assert (stuck.error, stuck.locks) == ("", False)


def test_no_error_shows_a_refresh_token() -> None:
    """They go out to clients."""
    before = _record(OTHER, kept=True, claimed=True)
    for lasts in (False, True):
        with pytest.raises((KeptBack, Stuck)) as caught:
            choose(before, Anew.ONCE, ME, forced=False, lasts=lasts)
        assert WORD not in f"{caught.value} {caught.value!r}"


def _record(doubt: object, kept: object, **fields: object) -> Record:
    return Record(generation=7, presented=doubt, kept=KEPT if kept else None, **fields)  # type: ignore[arg-type]
