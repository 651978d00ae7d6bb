"""What one credential holds: its newest record in memory, kept at one with the one in the store.

While the store is in trouble memory goes on; what it holds is published when the store is back.
"""

import math
from dataclasses import replace

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, IssuerUnavailable, StoreError
from sidecar.events import Emit, StoreTrouble
from sidecar.policy.lifetime import usable
from sidecar.settings.values import Margin
from sidecar.tokens.held import Memory
from sidecar.tokens.idle import LastUse
from sidecar.tokens.marker import Marker
from sidecar.tokens.record import Record
from sidecar.tokens.sealed import Found, SealedRecord, Unreadable

_FORGOTTEN_SECONDS = 6.0
"""In this time every holder of a lease has shown a sign of life, twice."""
_WRITES = 3
"""How often a write gives way to a newer record that is of no use, before memory alone must do."""


class Revoked(IssuerUnavailable):
    """An operator dropped the credential while it was renewed: what came of that does not count."""


class Holding(Memory):
    """The newest record of a credential, for the upstream *name*.

    *once*: its refresh token may be presented once, so that no record but the newest will do. `unsaved`: the store does
    not have it yet. `unreadable`: what the store has instead, None when that was read. `marker`: None where nothing
    need be noted.
    """

    def __init__(
        self,
        name: str,
        sealed: SealedRecord,
        margin: Margin,
        *,
        once: bool,
        clock: Clock,
        emit: Emit,
        use: LastUse | None = None,
    ) -> None:
        super().__init__(margin, clock, use)
        self._name = name
        self._sealed = sealed
        self._once = once
        self._emit = emit
        self._lost_at = -math.inf
        self.unsaved = False
        self.unreadable: Unreadable | None = None
        self.marker: Marker | None = None

    async def look(self) -> None:
        """Take over what is newer in the store; publish ours if the store lacks it. Trouble is reported."""
        try:
            await self.compare(await self._sealed.read())
            await self.look_at_use()
        except Exception as error:  # noqa: BLE001  whatever a store does, the token in memory serves on
            self.report("read", error)

    async def look_at_use(self) -> None:
        """Take over when the token was last used, where that is of interest."""
        if self._use is not None and self.held is not None and self.held.token.idle is not None:
            await self._use.look()

    async def compare(self, found: Found) -> None:
        """Make memory and *found*, what the store has, one.

        A store that came back empty, or older, gets what is in memory. A mark of revocation takes ours away. Where the
        newest record alone will do and memory has none, one that is older than what this machine has seen is no record.
        """
        self.unreadable = None
        if isinstance(found, Unreadable):
            self.report("read", StoreError(found.why))
            if found.foreign or not await self._publish(found):
                self.unreadable = found
        elif found.generation > self._stored and not (
            (self.unsaved and self._ours_is_better(found)) or self._knows_more_than(found)
        ):
            self.unsaved = False
            if not await self._is_old(found):
                self._hold(found)
                await self._mark_seen(found)
        elif found.generation != self._stored or self.unsaved or found.generation == 0:
            if found.generation < self._stored and not self.unsaved:
                self._lost_at = self._clock.monotonic()
            if not await self._publish(found) and not await self._is_old(found):
                self._stored = found.generation

    async def write(self, record: Record, *, release: bool = False) -> bool:
        """Write *record* in the place of the one that is held, and hold it; False if another was faster.

        Raises StoreError; what is held is as it was then.
        """
        record = replace(record, generation=max(self.record.generation, self._stored) + 1)
        if not await self._sealed.write(record, after=self._stored, release=release):
            return False
        self._hold(record)
        return True

    async def publish(self) -> bool:
        """Write what is held over what was last seen in the store; False if that has another. Raises StoreError.

        What is held may change meanwhile; it is not written then.
        """
        record = self.record
        if not await self._sealed.write(record, after=self._stored):
            return False
        self._stored = max(self._stored, record.generation)
        self.unsaved = False
        return True

    async def refetch(self) -> None:
        """Make memory and the store one, now. Raises StoreError."""
        await self.compare(await self._sealed.read())

    async def save(self, record: Record, born: float, *, forced: bool = False, release: bool = False) -> bool:
        """Store *record*, whose token was granted just now, and tell whether that was done.

        Another that came meanwhile holds if it lasts, in the store or here already. A stored one that is of no use is
        written over with a newer generation; but not a foreign one, unless *forced*. If nothing can be written, memory
        alone goes on. *born*: the monotonic moment that the token was asked for. Raises Revoked: nothing that was
        granted counts.
        """
        after, before = self._stored, self.login
        if not self._once and before > record.generation and self.lasts():
            return False
        try:
            for _ in range(_WRITES):
                record = _numbered(record, max(self.record.generation, after) + 1)
                foreign = self.unreadable is not None and self.unreadable.foreign
                if (forced or not foreign) and await self._sealed.write(record, after=after, release=release):
                    self._hold(record, born)
                    self.unsaved, self.unreadable = False, None
                    await self.mark()
                    return True
                found = await self._sealed.read()
                after, self.unreadable = found.generation, found if isinstance(found, Unreadable) else None
                if isinstance(found, Record) and found.generation > self._stored:
                    if found.revoked:
                        self._hold(found)
                        raise Revoked("an operator revoked the token while it was renewed")
                    # What was rolled in the login before is no reason to give up the new one.
                    if not self._once and self._lasting(found) and (found.token is None or found.token.login > before):
                        self._hold(found)
                        return False
            self.report("write", StoreError("a foreign record, or ever newer ones, are in the way"))
        except Revoked:
            raise
        except Exception as error:  # noqa: BLE001  what was granted must not be lost
            self.report("write", error)
        stored = self._stored
        self._hold(_numbered(record, max(self.record.generation, stored) + 1), born)
        self._stored, self.unsaved = stored, True
        return False

    async def drop(self) -> None:
        """Forget the token here and for all instances.

        Raises StoreError when the store cannot be told: what is kept for the next obtain is kept then.
        """
        self.held, self.record = None, replace(self.record, token=None)
        mark = await self._sealed.revoke(self.record.generation)
        if self.record.generation <= mark.generation:  # what was read meanwhile is older than the mark
            self.unsaved = False
            self._hold(mark)

    async def mark(self) -> None:
        """Note in the state directory that the held record is the newest; raises StoreError."""
        if self.marker is not None:
            await self.marker.write(self.record.generation)

    async def _mark_seen(self, found: Record) -> None:
        """Note what another instance wrote with what it presented: a store may be put back to before that."""
        if found.kept is not None:
            try:
                await self.mark()
            except StoreError as error:
                self.report("write", error)

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
        self.unreadable = await self.marker.too_old(found) if self.marker else None
        return self.unreadable is not None

    async def _publish(self, found: Found) -> bool:
        """Write ours after *found*; False when it is of no use there. Trouble is reported; the next look tries on."""
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

    def _knows_more_than(self, found: Record) -> bool:
        """Tell whether *found* was begun anew in an emptied store: what we have came of the first refresh token."""
        ours = self.record
        return self._once and ours.claimed and ours.kept is not None and not (found.kept or found.revoked)

    def _ours_is_better(self, found: Record) -> bool:
        return not found.revoked and (self._once or (self.lasts() and not self._lasting(found)))

    def _lasting(self, found: Record) -> bool:
        token = found.token
        return token is not None and usable(self._clock.now(), token.issued_at, token.expires_at)


def _numbered(record: Record, generation: int) -> Record:
    """Return *record* with *generation*, which is its token's too."""
    token = record.token and replace(record.token, granted=generation)
    return replace(record, generation=generation, token=token)
