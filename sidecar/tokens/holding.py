"""What one credential holds: its newest token in memory, and the sealed record behind it in the store.

Trouble of the store stays in here: it is reported, and memory goes on.
"""

from dataclasses import dataclass, replace

from sidecar.clock import Clock
from sidecar.errors import StoreError
from sidecar.events import Emit, Trouble
from sidecar.policy.lifetime import SKEW_SECONDS, SKEW_SHARE, due_at, forced_renewal_allowed, usable
from sidecar.settings.values import Margin
from sidecar.tokens.seal import KeyRing
from sidecar.tokens.store import TokenStore, store_key
from sidecar.tokens.token import Token

_WRITES = 3
"""How often a write gives way to a newer record that is of no use, before memory alone must do."""


@dataclass(frozen=True, slots=True)
class Held:
    """A token in memory. *born*: the monotonic moment of its issued_at. *due*: when to renew it, wall time."""

    token: Token
    born: float
    due: float

    def now(self, clock: Clock) -> float:
        """Return the wall time as far as this token is concerned.

        A clock that jumped forward ends it early; one that was set back does not let it outlive its lifetime.
        """
        return max(clock.now(), self.token.issued_at + clock.monotonic() - self.born)

    def lasts(self, clock: Clock) -> bool:
        """Tell whether its time is not yet over."""
        return usable(self.now(clock), self.token.issued_at, self.token.expires_at)


class Holding:
    """The newest token of the credential *identity*.

    `withheld`: the token was refused and its renewal is under way, so that it is not handed out for now.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        store: TokenStore,
        ring: KeyRing,
        margin: Margin,
        *,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._name = name
        self._key = store_key(identity)
        self._store = store
        self._ring = ring
        self._margin = margin
        self._clock = clock
        self._emit = emit
        self._unsaved = False
        self.held: Held | None = None
        self.generation = 0
        self.withheld = False

    @property
    def token(self) -> Token | None:
        """The newest token, usable or not."""
        return self.held.token if self.held else None

    def lasts(self) -> bool:
        """Tell whether there is a token whose time is not yet over."""
        return self.held is not None and self.held.lasts(self._clock)

    def usable(self) -> Token | None:
        """Return the token if it can be handed out now."""
        return self.token if self.lasts() and not self.withheld else None

    def fresh(self) -> bool:
        """Tell whether nothing need be done: the token lasts, is not due and was not refused."""
        held = self.held
        return held is not None and held.now(self._clock) < held.due and not held.token.refused

    def newer_than(self, used: Token) -> Token | None:
        """Return the token if it can be handed out and is a newer one than *used*."""
        token = self.usable()
        return token if token is not None and token.generation > used.generation else None

    def refuse(self, used: Token) -> None:
        """Note that an upstream refused *used*, and withhold it for now.

        Does nothing for one that is no longer the newest, nor the second time: it was withheld once, in vain.
        """
        if self.held is not None and self.held.token.generation == used.generation and not self.held.token.refused:
            self.held = replace(self.held, token=replace(self.held.token, refused=True))
            self.withheld = True

    def may_force(self, min_interval: float) -> bool:
        """Tell whether a 401 may force a renewal of the token now; False without one."""
        token = self.token
        return token is not None and forced_renewal_allowed(
            self._clock.now(), token.forced_at, min_interval, token.lifetime
        )

    def state(self) -> str:
        """Return where the token stands, in a word for status pages."""
        if self.held is None:
            return "none"
        if not self.lasts():
            return "expired"
        if self.held.token.refused:
            return "refused"
        return "valid" if self.fresh() else "due"

    async def reread(self) -> None:
        """Take over a newer record from the store, and write ours if that failed before."""
        generation, token = await self._read()
        if token is not None and generation > self.generation:
            self._take_over(token)
        elif self._unsaved and (ours := self.token) is not None:
            written = await self._write(ours) is not None
            self._unsaved = not (written and self.token is ours)

    async def save(self, token: Token, born: float) -> Token:
        """Store *token*, then announce it; return the one that holds now.

        That is the stored one if it is as new and lasts: another process was first. A stored one that is of no
        use is written over with a newer generation. If nothing can be written, memory alone goes on.
        """
        for _ in range(_WRITES):
            written = await self._write(token)
            if written is not False:
                break
            generation, found = await self._read()
            if found and usable(self._clock.now(), found.issued_at, found.expires_at) and not found.refused:
                self._take_over(found)
                return found
            token = replace(token, generation=max(token.generation, generation) + 1)
        else:
            self._report("write", StoreError("other records keep getting in the way"))
        self._unsaved = not written
        self._adopt(token, born)
        return token

    async def drop(self) -> None:
        """Forget the token here and in the store; raises StoreError when the store keeps it."""
        self.held = None
        await self._store.delete(self._key)

    def _take_over(self, token: Token) -> None:
        """Adopt a token of another process, as old as the wall clock says; not younger than new."""
        self._adopt(token, born=self._clock.monotonic() - max(0.0, self._clock.now() - token.issued_at))

    def _adopt(self, token: Token, born: float) -> None:
        # Jitter takes up to half the margin; the rest must not be less than the time a token cannot be used.
        least = 2 * min(SKEW_SECONDS, SKEW_SHARE * token.lifetime)
        due = due_at(token.expires_at, max(least, self._margin.of(token.lifetime)), self._clock.jitter())
        self.held = Held(token, born, due)
        self.generation = token.generation
        self.withheld = token.refused

    async def _read(self) -> tuple[int, Token | None]:
        """Return generation (0: no record) and token, None for one that cannot be read."""
        generation = 0
        try:
            record = await self._store.read(self._key)
            if record is None:
                return 0, None
            generation = record[0]
            return generation, self._open(*record)
        except Exception as error:  # noqa: BLE001  whatever a store does, the token in memory serves on
            self._report("read", error)
            return generation, None

    def _open(self, generation: int, sealed: bytes) -> Token:
        token = Token.decode(self._ring.open(self._key, sealed))
        if token.generation != generation:
            # The number beside the seal is not authenticated: an older record was put under it.
            raise StoreError("a record under a generation that is not its own")
        return token

    async def _write(self, token: Token) -> bool | None:
        """Return whether *token* was written, None when the store is in trouble."""
        try:
            return await self._store.write(self._key, token.generation, self._ring.seal(self._key, token.encode()))
        except Exception as error:  # noqa: BLE001  whatever a store does, the token in memory serves on
            self._report("write", error)
            return None

    def _report(self, operation: str, error: Exception) -> None:
        cause = str(error) if isinstance(error, StoreError) else f"internal error: {type(error).__name__}"
        self._emit(Trouble(where=f"token store of {self._name}", detail=f"{operation}: {cause}"))
