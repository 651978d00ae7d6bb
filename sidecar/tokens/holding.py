"""What one credential holds: its newest record in memory, kept at one with the one in the store.

While the store is in trouble memory goes on; what it holds is published when the store is back.
"""

import math
from dataclasses import replace

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, IssuerUnavailable, StoreError
from sidecar.events import Emit, StoreTrouble
from sidecar.policy.lifetime import forced_renewal_allowed, usable
from sidecar.settings.values import Margin
from sidecar.tokens.held import Held, held
from sidecar.tokens.marker import Marker
from sidecar.tokens.record import Record
from sidecar.tokens.sealed import Found, SealedRecord, Unreadable
from sidecar.tokens.token import Token

_FORGOTTEN_SECONDS = 6.0
"""In this time every holder of a lease has shown a sign of life, twice."""
_WRITES = 3
"""How often a write gives way to a newer record that is of no use, before memory alone must do."""


class Revoked(IssuerUnavailable):
    """An operator dropped the credential while it was renewed: what came of that does not count."""


class Holding:
    """The newest record of a credential, for the upstream *name*.

    *once*: its refresh token may be presented once, so that no record but the newest will do. `unsaved`: the store does
    not have it yet. `unreadable`: what the store has instead, None when that was read. `withheld`: the token was refused
    and its renewal is under way, so that it is not handed out for now. `marker`: None where nothing need be noted.
    """

    def __init__(
        self, name: str, sealed: SealedRecord, margin: Margin, *, once: bool, clock: Clock, emit: Emit
    ) -> None:
        self._name = name
        self._sealed = sealed
        self._margin = margin
        self._once = once
        self._clock = clock
        self._emit = emit
        self._stored = 0
        self._refused = 0
        self._lost_at = -math.inf
        self.held: Held | None = None
        self.record = Record()
        self.unsaved = False
        self.unreadable: Unreadable | None = None
        self.withheld = False
        self.marker: Marker | None = None

    @property
    def token(self) -> Token | None:
        """The newest token, usable or not."""
        return self.held.token if self.held else None

    @property
    def granted(self) -> int:
        """The generation of the newest token, 0 without one."""
        return self.held.token.granted if self.held else 0

    @property
    def refused(self) -> bool:
        """Whether an upstream said 401 to the newest token, and none has come since."""
        return self.held is not None and self._refused == self.held.token.granted

    def lasts(self) -> bool:
        """Tell whether there is a token whose time is not yet over."""
        return self.held is not None and self.held.lasts(self._clock)

    def usable(self) -> Token | None:
        """Return the token if it can be handed out now."""
        return self.token if self.lasts() and not self.withheld else None

    def fresh(self) -> bool:
        """Tell whether nothing need be done: the token lasts, is not due and was not refused."""
        return self.held is not None and self.held.until_due(self._clock) > 0 and not self.refused

    def until_last_minutes(self) -> float:
        """Return the seconds until the token's last minutes; 0 from then on, for a refused one, and without one."""
        return 0.0 if self.held is None or self.refused else self.held.until_last_minutes(self._clock)

    def newer_than(self, used: Token) -> Token | None:
        """Return the token if it can be handed out and is a newer one than *used*."""
        token = self.usable()
        return token if token is not None and token.granted > used.granted else None

    def refuse(self, used: Token) -> None:
        """Note that an upstream refused *used*, and withhold it for now.

        Does nothing for one that is no longer the newest, nor the second time: it was withheld once, in vain.
        """
        if self.granted == used.granted and not self.refused:
            self._refused = used.granted
            self.withheld = True

    def may_force(self, interval: float, *, probe: bool = False) -> bool:
        """Tell whether a 401 may force a renewal of the token now; False without one.

        *interval*: least seconds since the last one, of any instance; *probe*: however short the token's life is.
        """
        token = self.token
        return token is not None and forced_renewal_allowed(
            self._clock.now(), self.record.forced_at, interval, math.inf if probe else token.lifetime
        )

    def state(self) -> str:
        """Return where the token stands, in a word for status pages."""
        if self.held is None:
            return "none"
        if not self.lasts():
            return "expired"
        if self.refused:
            return "refused"
        return "valid" if self.fresh() else "due"

    async def look(self) -> None:
        """Take over what is newer in the store; publish ours if the store lacks it. Trouble is reported."""
        try:
            found = await self._sealed.read()
        except Exception as error:  # noqa: BLE001  whatever a store does, the token in memory serves on
            self.report("read", error)
            return
        await self.compare(found)

    async def compare(self, found: Found) -> None:
        """Make memory and *found*, what the store has, one.

        A store that came back empty, or older, gets what is in memory. A mark of revocation takes ours away. Where the
        newest record alone will do and memory has none, one that is older than what this machine has seen is no record.
        """
        self.unreadable = None
        if isinstance(found, Unreadable):
            if found.foreign or not await self._publish(found):
                self.unreadable = found
                self.report("read", StoreError(found.why))
        elif found.generation > self._stored and not (self.unsaved and self._ours_is_better(found)):
            self.unsaved = False
            if not await self._is_old(found):
                self._hold(found)
        elif found.generation != self._stored or self.unsaved:
            if found.generation < self._stored and not self.unsaved:
                self._lost_at = self._clock.monotonic()
            if not await self._publish(found) and not await self._is_old(found):
                self._stored = found.generation
        elif self.record.generation == 0:
            await self._is_old(found)

    async def write(self, record: Record, *, release: bool = False) -> bool:
        """Write *record* in the place of the one that is held, and hold it; False if another was faster.

        Raises StoreError; what is held is as it was then.
        """
        record = replace(record, generation=max(self.record.generation, self._stored) + 1)
        if not await self._sealed.write(record, after=self._stored, release=release):
            return False
        self._hold(record)
        return True

    async def save(self, record: Record, born: float, *, forced: bool = False, release: bool = False) -> None:
        """Store *record*, whose token was granted just now, then announce what holds now.

        That is what is stored if it lasts: another was first. A stored one that is of no use is written over with a
        newer generation; but not a foreign one, unless *forced*. If nothing can be written, memory alone goes on.
        *born*: the monotonic moment that the token was asked for. Raises Revoked: nothing that was granted counts.
        """
        after = self._stored
        try:
            for _ in range(_WRITES):
                record = _numbered(record, max(self.record.generation, after) + 1)
                foreign = self.unreadable is not None and self.unreadable.foreign
                if (forced or not foreign) and await self._sealed.write(record, after=after, release=release):
                    self._hold(record, born)
                    self.unsaved, self.unreadable = False, None
                    await self.mark()
                    return
                found = await self._sealed.read()
                after, self.unreadable = found.generation, found if isinstance(found, Unreadable) else None
                if isinstance(found, Record) and found.generation > self._stored:
                    if found.revoked:
                        self._hold(found)
                        raise Revoked("an operator revoked the token while it was renewed")
                    if not self._once and self._lasting(found):
                        self._hold(found)
                        return
            self.report("write", StoreError("a foreign record, or ever newer ones, are in the way"))
        except StoreError as error:
            self.report("write", error)
        stored = self._stored
        self._hold(_numbered(record, max(self.record.generation, stored) + 1), born)
        self._stored, self.unsaved = stored, True

    async def drop(self) -> None:
        """Forget the token here and for all instances.

        Raises StoreError when the store cannot be told: what is kept for the next obtain is kept then.
        """
        self.held = None
        mark = await self._sealed.revoke(self.record.generation)
        if self.record.generation <= mark.generation:  # what was read meanwhile is older than the mark
            self.unsaved = False
            self._hold(mark)

    async def mark(self) -> None:
        """Note in the state directory that the held record is the newest; raises StoreError."""
        if self.marker is not None:
            await self.marker.write(self.record.generation)

    async def unmark(self, record: Record) -> None:
        """Note that the first refresh token was not taken after all, if *record* says so; raises StoreError."""
        if self.marker is not None and not record.claimed:
            await self.marker.forget()

    def store_forgot(self) -> bool:
        """Tell whether the store came back empty or older a moment ago, perhaps without the lease of one who lives.

        Of no interest where nothing is kept that could be presented twice.
        """
        return self.record.kept is not None and self._clock.monotonic() - self._lost_at < _FORGOTTEN_SECONDS

    def report(self, operation: str, error: Exception) -> None:
        """Tell of trouble with the store, without what may be in an error that is not ours."""
        ours = isinstance(error, StoreError | ConfigurationError)
        cause = str(error) if ours else f"internal error: {type(error).__name__}"
        where, detail = f"token store of {self._name}", f"{operation}: {cause}"
        self._emit(StoreTrouble(where=where, detail=detail, upstream=self._name, operation=operation))

    async def _is_old(self, found: Record) -> bool:
        """Tell whether *found* is older than what this machine has seen; nothing in memory is newer."""
        try:
            marked = await self.marker.read() if self.marker else 0
        except StoreError as error:
            self.unreadable = Unreadable(found.generation, str(error))
            return True
        if found.generation >= marked:
            return False
        what = "is gone" if found.generation == 0 else f"is that of generation {found.generation}, an older one"
        why = f"the record {what}; this machine has seen generation {marked}, so that its refresh token is spent"
        self.unreadable = Unreadable(found.generation, why)
        return True

    async def _publish(self, found: Found) -> bool:
        """Write ours after *found*; False when it is of no use there. Trouble is reported; the next look tries again."""
        ours = self.record
        unreadable = isinstance(found, Unreadable)
        if not (self.lasts() or (self._once and ours.kept is not None)):
            self.unsaved = False
            return False
        if unreadable and self._once and found.generation > ours.generation:
            return False  # what cannot be read may be newer than ours
        # The number beside a record that cannot be read says nothing.
        generation = ours.generation if unreadable else max(ours.generation, found.generation + 1)
        try:
            if not await self._sealed.write(replace(ours, generation=generation), after=found.generation):
                return True
        except StoreError as error:
            self.report("write", error)
            self.unsaved = True
            return True
        if self.record is ours:
            self._hold(replace(ours, generation=generation))
            self.unsaved = False
        return True

    def _ours_is_better(self, found: Record) -> bool:
        return not found.revoked and (self._once or (self.lasts() and not self._lasting(found)))

    def _lasting(self, found: Record) -> bool:
        token = found.token
        return token is not None and usable(self._clock.now(), token.issued_at, token.expires_at)

    def _hold(self, record: Record, born: float | None = None) -> None:
        """Hold *record*; nothing of the times of a token that is held already changes."""
        token = record.token
        self.record, self._stored = record, record.generation
        if token is None:
            self.held = None
        elif self.held is None or token.granted != self.granted:
            self.held = held(token, self._margin, self._clock, born)
            self.withheld = False


def _numbered(record: Record, generation: int) -> Record:
    """Return *record* with *generation*, which is its token's too."""
    token = record.token and replace(record.token, granted=generation)
    return replace(record, generation=generation, token=token)
