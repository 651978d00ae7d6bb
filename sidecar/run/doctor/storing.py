"""Whether the store is there, takes what is written, gives it back, and holds what our keys open."""

import asyncio

from sidecar.errors import ConfigurationError, SealError, StoreError
from sidecar.run.credentials import Credential, Shared
from sidecar.run.doctor.check import Check, Row, failed, passed
from sidecar.settings import Settings
from sidecar.tokens.store import store_key

_PLACE = "auth-sidecar:instances:"
_GONE = 0.01
"""Seconds after which the word that was left for the probe is over."""


async def store(settings: Settings, shared: Shared, credentials: list[Credential], seconds: float) -> tuple[Check, ...]:
    """Write a sealed word, read and open it, let it lapse; take a lease and give it back; open every record."""
    try:
        async with asyncio.timeout(seconds):
            await _written(shared)
            broken = [each for credential in credentials if (each := await _unopened(shared, credential))]
    except TimeoutError:
        return (failed(Row.STORE, f"no answer within {seconds:g} s", _remedy(settings)),)
    except StoreError as error:
        return (failed(Row.STORE, str(error), _remedy(settings)),)
    return tuple(broken) or (passed(Row.STORE, f"{_kind(settings)} reads, writes and opens what it holds"),)


async def _written(shared: Shared) -> None:
    """Raise StoreError unless what is written comes back as it was."""
    place, word = _PLACE + shared.owner, b'{"generations": {}, "sessions": []}'
    await shared.store.announce(shared.owner, shared.keys.seal(place, word), 10.0)
    try:
        found = (await shared.store.announced()).get(shared.owner)
    finally:
        await shared.store.announce(shared.owner, shared.keys.seal(place, word), _GONE)
    if found is None:
        raise StoreError("what is written is not there when it is read")
    shared.keys.open(place, found)
    probe = store_key(f"doctor {shared.owner}")
    taken, _ = await shared.store.take(probe, shared.owner, 10.0)
    await shared.store.release(probe, shared.owner)
    if not taken:
        raise StoreError("a lease that nobody has cannot be taken")


async def _unopened(shared: Shared, credential: Credential) -> Check | None:
    """Return what is wrong with the record of *credential*; None where there is none."""
    try:
        key = store_key(credential.issuer.identity())
    except ConfigurationError:
        return None  # which the line of its secret tells
    stored = await shared.store.read(key)
    if stored.generation:
        try:
            shared.keys.open(key, stored.sealed)
        except SealError as error:
            remedy = "give every instance the same store.keys, the one that sealed it among them"
            return failed(
                Row.STORE, f"the record of the credential cannot be opened: {error}", remedy, _name(credential)
            )
    return None


def _name(credential: Credential) -> str:
    return credential.names[0]


def _kind(settings: Settings) -> str:
    return "the Redis" if settings.store.shared else settings.store.url


def _remedy(settings: Settings) -> str:
    if settings.store.shared:
        return "check that it runs and that store.url, store.password, store.ca and store.timeout are right"
    return "check the disk and the files in state_dir"
