"""The record of a credential under the name, and in the schema, of the release before, whose instances run beside ours
during a roll-out: their lease is honoured, their record taken over, and ours shown to them. For one release only.
"""

import json
from dataclasses import replace

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
    """The old record of the credential *identity*, for the instance *owner*; where there is none, nothing is done."""

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

    async def newer_than(self, found: Record, key: str, *, leased: bool) -> Record | None:
        """Return what old instances have made of *found*, ours, and None if nothing, or if it cannot be read.

        One that is shown for another credential than that of *key*, which had the same name then, is none. *leased*:
        none of them is at work, so that a refresh token which one presented stays in doubt.
        """
        if not await self._known():
            return None
        stored = await self._store.read(self._key)
        self._generation = stored.generation
        # One that is as new is the same, but while we present a refresh token: that is written here alone.
        same = stored.generation == found.generation and found.presented is None
        if stored.generation < found.generation or (same and not leased):
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
        noted = leased and record.kept is not None and await self._noted() >= record.generation
        if noted or (not same and record.generation == found.generation):
            by = Presented(by=_BY) if noted else None
            return replace(record, generation=record.generation + 1, presented=by)
        return None if same else record

    async def write(self, record: Record, key: str, *, release: bool) -> None:
        """Show *record*, of *key*, to old instances, and note ahead for them that its refresh token is being used."""
        if not self._there:
            return
        if record.presented is not None:
            if (noted := await self._noted()) < self._generation:
                sealed = self._keys.seal(self._note, self._owner.encode())
                await self._store.write(self._note, sealed, self._generation, after=noted)
            return
        sealed = self._keys.seal(self._key, to_former(record, key))
        owner = self._owner if release else ""
        if not await self._store.write(self._key, sealed, record.generation, after=self._generation, release=owner):
            await self.release()

    async def _noted(self) -> int:
        """Return the generation whose refresh token was noted as presented."""
        return (await self._store.read(self._note)).generation

    async def _known(self) -> bool:
        if self._there is None:
            self._there = (await self._store.read(self._key)).generation > 0
        return self._there
