"""The sealed record of one credential in the store, and the note beside it.

Times are the store's outside and ours inside. Trouble is reported and told apart from absence; it is raised only
where an operator waits for the answer.
"""

from dataclasses import dataclass
from enum import Enum, auto

from sidecar.errors import SealError, StoreError, UnknownSeal
from sidecar.events import Emit, StoreTrouble
from sidecar.tokens.keys import Keys
from sidecar.tokens.store import MAX_GENERATION, TokenStore, store_key
from sidecar.tokens.token import Revoked, Token

_MARKS = 8
"""How often a revocation gives way to a renewal that was faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a look at the store found; *generation* is 0 without a record.

    *token* None: none, or none that can be used. *revoked*: an operator dropped what was there. *foreign*: a
    record of a key or a version that is not ours. *damaged*: one that nobody can read. *broken*: the store did
    not answer.
    """

    generation: int = 0
    token: Token | None = None
    revoked: bool = False
    foreign: bool = False
    damaged: bool = False
    broken: bool = False


class Noted(Enum):
    """Who has noted the use of a refresh token: we just now, we before, or another instance."""

    NOW = auto()
    BY_US = auto()
    BY_ANOTHER = auto()


class Record:
    """The record of the credential *identity*, for the instance *owner*."""

    def __init__(self, name: str, identity: str, store: TokenStore, keys: Keys, *, owner: str, emit: Emit) -> None:
        self._name = name
        self._key = store_key(identity)
        self._note = store_key(identity, "note")
        self._last = store_key(identity, "last")
        self._store = store
        self._keys = keys
        self._owner = owner
        self._emit = emit

    async def read(self) -> Found:
        """Return what is there; whatever a store does, it does not raise."""
        generation = 0
        try:
            record = await self._store.read(self._key)
            if record is None:
                return Found()
            generation, sealed = record
            found = Token.decode(self._keys.open(self._key, sealed))
            if found.generation != generation:
                # The number beside the seal is not authenticated: an older record was put under it.
                raise SealError("a record under a generation that is not its own")
        except UnknownSeal as error:
            self.report("read", error)
            return Found(generation=generation, foreign=True)
        except Exception as error:  # noqa: BLE001  the token in memory serves on
            self.report("read", error)
            return Found(generation=generation, damaged=generation > 0, broken=generation == 0)
        if isinstance(found, Revoked):
            return Found(generation=generation, revoked=True)
        return Found(generation=generation, token=found.moved(-self._store.offset))

    async def write(self, token: Token) -> bool | None:
        """Return whether *token* was written: False when another is as new, None when the store is in trouble."""
        try:
            sealed = self._keys.seal(self._key, token.moved(self._store.offset).encode())
            return await self._store.write(self._key, token.generation, sealed)
        except Exception as error:  # noqa: BLE001  the token in memory serves on
            self.report("write", error)
            return None

    async def mend(self, token: Token) -> None:
        """Put *token* in the place of a damaged record of its own generation; trouble is reported."""
        try:
            sealed = self._keys.seal(self._key, token.moved(self._store.offset).encode())
            await self._store.replace(self._key, token.generation, sealed)
        except StoreError as error:
            self.report("write", error)

    async def revoke(self, generation: int) -> int:
        """Put a mark above *generation*, and above what is there, that no token counts any more; return its number.

        Every instance drops its token when it sees it. Raises StoreError.
        """
        for _ in range(_MARKS):
            record = await self._store.read(self._key)
            generation = max(generation, record[0] if record else 0) + 1
            if generation > MAX_GENERATION:  # damage, or mischief
                await self._store.delete(self._key)
                generation = 1
            mark = self._keys.seal(self._key, Revoked(generation).encode())
            if await self._store.write(self._key, generation, mark):
                return generation
        raise StoreError("ever newer records are in the way")

    async def note(self, generation: int, *, last: bool = False) -> Noted:
        """Note ahead that the refresh token of *generation* is about to be used; return who noted it first.

        What was noted and has no successor may have been used: an issuer that rotates takes it only once. *last*:
        a note of its own, for the one try that is made of a doubtful one. Raises StoreError.
        """
        key = self._last if last else self._note
        if await self._store.write(key, max(1, generation), self._keys.seal(key, self._owner.encode())):
            return Noted.NOW
        return Noted.BY_US if await self._ours(key) else Noted.BY_ANOTHER

    async def withdraw(self) -> None:
        """Take our note back: the refresh token was not used after all. Trouble is reported."""
        try:
            if await self._ours(self._note):
                await self._store.delete(self._note)
        except StoreError as error:
            self.report("withdraw", error)

    async def _ours(self, key: str) -> bool:
        record = await self._store.read(key)
        try:
            return record is not None and self._keys.open(key, record[1]) == self._owner.encode()
        except SealError:
            return False

    def report(self, operation: str, error: Exception) -> None:
        """Tell of trouble with the store, without what may be in an error that is not ours."""
        cause = str(error) if isinstance(error, StoreError) else f"internal error: {type(error).__name__}"
        where, detail = f"token store of {self._name}", f"{operation}: {cause}"
        self._emit(StoreTrouble(where=where, detail=detail, upstream=self._name, operation=operation))
