"""An issuer's no to a credential, and its wish to be left alone: both stand for all instances until they are over.

A no stands until its pause ends, or what was refused becomes another: a secret, the configuration, a wrong clock.
"""

from sidecar.clock import Clock
from sidecar.errors import CredentialRejected, IssuerUnavailable, StoreError
from sidecar.policy import pauses
from sidecar.tokens.holding import Holding
from sidecar.tokens.presenting import Stuck
from sidecar.tokens.protocols import Issuer
from sidecar.tokens.record import Record, Rejection
from sidecar.tokens.token import Token

_AGAIN = 300.0
"""Seconds after which what needs a person is looked at again; the issuer is not asked for that."""
_WRITES = 8
_LOOK = 1.0
"""Seconds between two looks at the secrets of a rejected credential."""
_STEP = 5.0
"""Seconds by which the wall clock must have been set to be another one."""


class Waiting(IssuerUnavailable):
    """Some instance was asked to wait a moment ago: nothing was asked now."""


def said(
    refusal: CredentialRejected, earlier: Rejection | None, salt: str, fingerprint: str, clock: Clock
) -> Rejection:
    """Return what *refusal* means for the next call, after the *earlier* one, if it was of the same secrets."""
    same = earlier is not None and earlier.secrets == fingerprint
    count = earlier.count + 1 if earlier is not None and same else 1
    pause = _AGAIN if isinstance(refusal, Stuck) else pauses.rejected(count, clock.jitter())
    return Rejection(
        at=clock.now(),
        secrets=fingerprint,
        salt=salt,
        error=refusal.error,
        message=str(refusal),
        count=count,
        until=None if refusal.locks else clock.now() + pause,
        skew=refusal.skew,
    )


def refused_upstream(earlier: Rejection | None, salt: str, fingerprint: str, now: float) -> Rejection:
    """Return the no of an upstream that refused the credential itself: it stands until a secret changes."""
    same = earlier is not None and earlier.secrets == fingerprint
    return Rejection(
        at=now,
        secrets=fingerprint,
        salt=salt,
        error="",
        message="the upstream refused the credential",
        count=earlier.count + 1 if earlier is not None and same else 1,
        until=None,
    )


async def tell(no: Rejection, token: Token, holding: Holding) -> None:
    """Write *no* for all instances, and drop *token* there; one of another login stays. Trouble is reported."""
    try:
        for _ in range(_WRITES):
            if holding.token is not None and not holding.token.same_login(token):
                return
            holding.reject(no)
            if await holding.write(holding.record):
                return
            await holding.refetch()
    except StoreError as error:
        holding.report("write", error)


def told(record: Record, issuer: Issuer, now: float, void: Rejection | None) -> Rejection | None:
    """Return the no that still stands by what *record* says; raises Waiting while the issuer is to be left alone.

    *void*: one that does not stand any more, whatever the record says.
    """
    no = record.rejection
    if no is not None and void is not None and (no.secrets, no.count) == (void.secrets, void.count):
        no = None
    if no is not None and (no.until is None or no.until > now) and issuer.fingerprint(no.salt) == no.secrets:
        return no
    if record.not_before is not None and 0 < (left := record.not_before - now) <= pauses.LONGEST:
        raise Waiting(f"the issuer is left alone for another {left:.0f} s", retry_after=left)
    return None


def again(no: Rejection, now: float) -> CredentialRejected:
    """Return the error that repeats *no* without a call."""
    wait = "until it or the configuration changes" if no.until is None else f"for {max(0.0, no.until - now):.0f} s"
    when = f"said {max(0.0, now - no.at):.0f} s ago; not asked again {wait}, but by auth-sidecar token renew"
    return CredentialRejected(no.error, f"{no.message} ({when})")


class Latch:
    """The no that stands in this process; `void`: the one that was due to a clock which has been set since."""

    def __init__(self, issuer: Issuer, holding: Holding, clock: Clock) -> None:
        self._issuer = issuer
        self._holding = holding
        self._clock = clock
        self._no: Rejection | None = None
        self.void: Rejection | None = None
        self._ask_at = 0.0
        self._looked_at = 0.0
        self._wall = 0.0
        self._login = 0

    @property
    def rejected(self) -> bool:
        """Whether the credential is, as far as is known without a look, and nobody had a token since."""
        return self._no is not None and not self._overtaken()

    def set(self, no: Rejection, login: int) -> None:
        """Take note of *no*; *login*: that of the newest token that was known when the issuer was asked."""
        now = self._clock.monotonic()
        self._no, self._login = no, login
        self._ask_at = float("inf") if no.until is None else now + max(0.0, no.until - self._clock.now())
        self._looked_at, self._wall = now, self._clock.now() - now

    def lift(self) -> None:
        """Forget it: the issuer gave a token, or an operator insists."""
        self._no = None

    def stands(self) -> bool:
        """Tell whether the issuer must not be asked; at most once a second this looks whether a secret has changed."""
        now, no = self._clock.monotonic(), self._no
        if no is not None and now - self._looked_at >= _LOOK:
            self._looked_at = now
            stepped = no.skew and abs(self._clock.now() - now - self._wall) > _STEP
            if stepped:
                self.void = no
            if stepped or self._overtaken() or self._issuer.fingerprint(no.salt) != no.secrets:
                self._no = None
        return self._no is not None and now < self._ask_at

    def _overtaken(self) -> bool:
        return self._holding.login > self._login and self._holding.lasts()
