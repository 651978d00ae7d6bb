"""An issuer's no to a credential: it stands until a secret changes, and is asked about again only now and then.

A copy lies in the store, sealed, so that instances with the same secrets need not all be told.
"""

import json
import math

from sidecar.clock import Clock
from sidecar.errors import CredentialRejected, SidecarError
from sidecar.tokens.keys import Keys
from sidecar.tokens.protocols import Issuer
from sidecar.tokens.store import TokenStore, store_key

ASK_AGAIN = 300.0
"""Seconds after a rejection in which no instance asks with the same secrets: who insists gets the account locked."""

_SPREAD = 0.2
_LOOK = 1.0
"""Seconds between two looks at the secrets of a rejected credential."""

_MAX_TEXT = 1000


class AlreadyRejected(CredentialRejected):
    """Another call with the same secrets was refused a moment ago; *left*: seconds until one may be made again."""

    def __init__(self, error: str, message: str, left: float) -> None:
        super().__init__(error, message)
        self.left = left


class Rejection:
    """Whether the issuer has rejected the credential; `generation`: the newest that was known when it did."""

    def __init__(self, issuer: Issuer, store: TokenStore, keys: Keys, *, clock: Clock) -> None:
        self._issuer = issuer
        self._store = store
        self._keys = keys
        self._clock = clock
        self._key = store_key(issuer.identity(), "rejected")
        self._secrets: str | None = None
        self._looked_at = 0.0
        self._ask_at = 0.0
        self.generation = 0

    @property
    def latched(self) -> bool:
        """Whether it has, as far as is known without a look."""
        return self._secrets is not None

    def stands(self) -> bool:
        """Tell whether the issuer must not be asked; at most once a second this looks whether a secret has changed."""
        now = self._clock.monotonic()
        if self._secrets is not None and now - self._looked_at >= _LOOK:
            self._looked_at = now
            if self.fingerprint() != self._secrets:
                self._secrets = None
        return self._secrets is not None and now < self._ask_at

    def fingerprint(self) -> str:
        """Return what changes with any secret of the credential."""
        try:
            return self._issuer.fingerprint()
        except SidecarError:
            return "unreadable"

    def latch(self, secrets: str, generation: int, left: float = ASK_AGAIN) -> None:
        """Note that the credential was rejected with *secrets*, a fingerprint; it is not asked for *left* seconds."""
        now = self._clock.monotonic()
        self._secrets, self.generation = secrets, generation
        self._looked_at = now
        self._ask_at = now + left + _SPREAD * ASK_AGAIN * self._clock.jitter()

    def lift(self) -> None:
        """Forget it: the issuer gave a token, or an operator insists."""
        self._secrets = None

    async def check(self, secrets: str, generation: int) -> None:
        """Raise AlreadyRejected if *secrets* were refused a moment ago, by what the store says.

        A newer *generation* than then means that the issuer gave a token since. Trouble with the store: nothing.
        """
        try:
            found = await self._store.read(self._key)
            said = json.loads(self._keys.open(self._key, found[1])) if found else {}
            age = self._now() - float(said.get("at", -math.inf))
            known = 0 <= age < ASK_AGAIN and said["secrets"] == secrets and said["generation"] >= generation
            error, message = str(said.get("error")), str(said.get("message"))
        except Exception:  # noqa: BLE001  no copy that can be used; the issuer will say
            return
        if known:
            left = ASK_AGAIN - age
            when = f"said {age:.0f} s ago; asked again in {left:.0f} s, or by auth-sidecar token renew"
            raise AlreadyRejected(error, f"{message} ({when})", left)

    async def tell(self, refusal: CredentialRejected, secrets: str, generation: int) -> None:
        """Leave a copy for the others; a store in trouble goes without."""
        at = self._now()
        said = {"at": at, "secrets": secrets, "generation": generation, "error": refusal.error}
        try:
            sealed = self._keys.seal(self._key, json.dumps(said | {"message": str(refusal)[:_MAX_TEXT]}).encode())
            await self._store.write(self._key, max(1, int(at * 1000)), sealed)
        except Exception:  # noqa: BLE001  the others will be told by the issuer
            return

    def _now(self) -> float:
        return self._clock.now() + self._store.offset
