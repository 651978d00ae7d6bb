"""The record of a credential under the name, and in the schema, of the release before, whose instances run beside ours
during a roll-out: their lease is honoured, their record taken over, and ours shown to them. For one release only.
"""

import json

from sidecar.errors import StoreError
from sidecar.settings import OAuth2
from sidecar.tokens.record import Presented, Record, to_former
from sidecar.tokens.seal import Keys
from sidecar.tokens.store import TokenStore, store_key


def former_identity(oauth2: OAuth2) -> str:
    """Return the identity that the release before gave to this credential."""
    parts = {
        "token_url": oauth2.token_url,
        "client_id": oauth2.client_id,
        "client_auth": oauth2.client_auth,
        "grant": oauth2.grant,
        "username": oauth2.username,
        "scope": sorted(set((oauth2.scope or "").split())),
        "extra": oauth2.extra,
    }
    return json.dumps(parts, sort_keys=True)


_BY = "an instance of the release before"


class Former:
    """The old record of the credential *identity*, for the instance *owner*; nothing is done where there never was one."""

    def __init__(self, store: TokenStore, keys: Keys, identity: str, owner: str) -> None:
        self._store = store
        self._keys = keys
        self._owner = owner
        self._key = store_key(identity)
        self._note = store_key(identity, "note")
        self._there: bool | None = None
        self._generation = 0

    async def take(self, ttl: float) -> bool:
        """Take the old lease; False when an old instance has it."""
        if not await self._known():
            return True
        return (await self._store.take(self._key, self._owner, ttl))[0]

    async def release(self) -> None:
        """Let old instances in."""
        if self._there:
            await self._store.release(self._key, self._owner)

    async def newer_than(self, generation: int, key: str) -> Record | None:
        """Return the old record if it is newer than *generation*, None if not, or if it cannot be read.

        One that is shown for another credential than that of *key*, which had the same name then, is none.
        """
        if not await self._known():
            return None
        stored = await self._store.read(self._key)
        self._generation = stored.generation
        if stored.generation <= generation:
            return None
        try:
            plain = self._keys.open(self._key, stored.sealed)
            record = Record.decode(plain)
        except StoreError:
            return None
        if json.loads(plain).get("of", key) != key:
            self._there = False
            return None
        if record.generation != stored.generation:
            return None
        if record.kept is not None and (await self._store.read(self._note)).generation >= record.generation:
            return _doubtful(record)
        return record

    async def write(self, record: Record, key: str, *, release: bool) -> None:
        """Show *record*, of *key*, to old instances, and note ahead for them that its refresh token is being used."""
        if not self._there:
            return
        if record.presented is not None:
            noted = (await self._store.read(self._note)).generation
            if noted < self._generation:
                sealed = self._keys.seal(self._note, self._owner.encode())
                await self._store.write(self._note, sealed, self._generation, after=noted)
            return
        sealed = self._keys.seal(self._key, to_former(record, key))
        owner = self._owner if release else ""
        await self._store.write(self._key, sealed, record.generation, after=self._generation, release=owner)

    async def _known(self) -> bool:
        if self._there is None:
            self._there = (await self._store.read(self._key)).generation > 0
        return self._there


def _doubtful(record: Record) -> Record:
    return Record(
        generation=record.generation,
        token=record.token,
        kept=record.kept,
        forced_at=record.forced_at,
        presented=Presented(by=_BY),
    )
