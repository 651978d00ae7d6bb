"""What upstreams' answers do to the credential that is held: it is in use, it is alive, it was refused for good."""

import secrets

from sidecar.clock import Clock
from sidecar.policy.reading import CSRF, Sign
from sidecar.tokens.governor import Governor
from sidecar.tokens.holding import Holding
from sidecar.tokens.idle import LastUse
from sidecar.tokens.protocols import Issuer, Spawn
from sidecar.tokens.rejection import refused_upstream, tell
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.token import Token
from sidecar.tokens.verdicts import Verdicts


class Hearing:
    """Takes note of answers; cheap, on every request's way."""

    def __init__(
        self,
        issuer: Issuer,
        holding: Holding,
        renewing: Renewing,
        governor: Governor,
        verdicts: Verdicts,
        use: LastUse,
        *,
        clock: Clock,
        spawn: Spawn,
    ) -> None:
        self._issuer = issuer
        self._holding = holding
        self._renewing = renewing
        self._governor = governor
        self._verdicts = verdicts
        self._use = use
        self._clock = clock
        self._spawn = spawn

    def heard(self, token: Token, sign: Sign, part: str, *, again: bool, own: bool) -> None:
        """Do what `Broker.heard` does."""
        if sign is Sign.REJECTED:
            self._reject(token)
        elif sign is not Sign.EXPIRED or part == CSRF:
            self._verdicts.accepted(token, self._clock.monotonic(), own=own)
            if self._governor.told:
                self._governor.lived(token)
            if token.idle is not None and token.login == self._holding.login:
                self._use.note(token.idle)
        elif again:
            self._verdicts.refused(token)

    def _reject(self, token: Token) -> None:
        """Drop *token*, whose credential was refused, if it is the one that is held; for all until a secret changes."""
        ours, earlier = self._holding.token, self._holding.record.rejection
        if ours is None or not token.same_login(ours):
            return
        salt = earlier.salt if earlier else secrets.token_hex(8)
        no = refused_upstream(earlier, salt, self._issuer.fingerprint(salt), self._clock.now())
        self._holding.reject(no)
        self._renewing.reject(no)
        self._spawn(tell(no, token, self._holding), "rejection")
