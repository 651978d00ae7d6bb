"""From the settings to the token store, the keys that seal its records, and the word of every instance in it."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, StoreError
from sidecar.run.credentials import Shared
from sidecar.secret import Secret
from sidecar.settings import Settings
from sidecar.tokens.broker import Broker
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.seal import KeyRing, Keys, load_or_create_key_file, new_key, parse_keys
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import TokenStore

_EVERY = 10.0
_SOON = 1.0
_WORD_LASTS = 30.0
_GONE = 1.0
"""Seconds that the word lasts which takes the last one back."""
_PLACE = "auth-sidecar:instances:"


def open_store(settings: Settings, clock: Clock) -> tuple[TokenStore, Keys]:
    """Return the configured store and the keys that seal its records; nothing is read or written yet.

    Raises ConfigurationError when a key or a password cannot be read.
    """
    wanted = settings.store
    if wanted.url == "memory":
        made = Secret(new_key())
        return MemoryStore(clock), Keys(lambda: _ring(settings, made), clock)
    if wanted.url == "sqlite":
        store: TokenStore = SqliteStore(settings.state_dir)
        return store, _keys(settings, clock)
    from sidecar.tokens.redis.store import RedisStore

    store = RedisStore(
        wanted.url,
        username=wanted.username,
        password=wanted.password.read if wanted.password else None,
        ca=wanted.ca,
        timeout=wanted.timeout,
        clock=clock,
    )
    return store, _keys(settings, clock)


def _keys(settings: Settings, clock: Clock) -> Keys:
    files = [reference.file.expanduser() for reference in settings.store.keys if reference.file]
    if not settings.store.keys:
        files = [settings.state_dir / "store.key"]
    return Keys(lambda: _ring(settings, None), clock, files)


def _ring(settings: Settings, made: Secret | None) -> KeyRing:
    keys = [reference.read() for reference in settings.store.keys]
    return parse_keys(keys or [made or load_or_create_key_file(settings.state_dir / "store.key")])


def instance_name() -> str:
    """Return a name for this process that no other has, now or after a restart."""
    return f"{socket.gethostname()}/{os.getpid()}-{secrets.token_hex(3)}"


async def keep_announcing(shared: Shared, pools: Callable[[], Mapping[str, tuple[Broker, ...]]]) -> None:
    """Leave word in the store, every ten seconds until cancelled, which generations and sessions are used here."""
    while True:
        word = {
            "version": __version__,
            "at": shared.clock.now() + shared.store.offset,
            "generations": {name: pool[0].status().generation for name, pool in pools().items()},
            "sessions": list(_sessions(broker for pool in pools().values() for broker in pool)),
        }
        pause = _SOON
        # Trouble is told by the brokers; nobody waits for this.
        with contextlib.suppress(StoreError):
            await _announce(shared, word, _WORD_LASTS)
            pause = _EVERY
        await shared.clock.sleep(pause)


async def leave(shared: Shared, brokers: Iterable[Broker]) -> None:
    """Take our word back, and log out of the sessions that no other instance uses; nothing is raised.

    Our word goes first: of two that leave at once, one at least sees nobody left. Without the store nobody knows who
    else there is, so that nothing is done; nor for an instance that has not left word for so long that it is over.
    """
    ours = _sessions(brokers)
    if not ours:
        return
    with contextlib.suppress(StoreError):
        await _announce(shared, {"version": __version__, "generations": {}, "sessions": []}, _GONE)
        used = await others_use(shared, ours)
        await asyncio.gather(*(broker.logout() for key, broker in ours.items() if key not in used))


async def others_use(shared: Shared, sessions: Collection[str]) -> frozenset[str]:
    """Return those of *sessions*, names of records, that other instances use, or may use: not every word can be read.

    Raises StoreError.
    """
    used: set[str] = set()
    for instance, sealed in (await shared.store.announced()).items():
        if instance != shared.owner:
            try:
                word = json.loads(shared.keys.open(_PLACE + instance, sealed))
                used |= set(sessions) & set(word.get("sessions", ()))
            except (StoreError, ValueError, TypeError, AttributeError):
                return frozenset(sessions)
    return frozenset(used)


def _sessions(brokers: Iterable[Broker]) -> dict[str, Broker]:
    """Return the brokers of sessions by the names of their records; a credential without a name yet has no session."""
    found = {}
    for broker in brokers:
        if broker.session:
            with contextlib.suppress(ConfigurationError):
                found[broker.key()] = broker
    return found


async def _announce(shared: Shared, word: dict[str, Any], ttl: float) -> None:
    await shared.store.announce(shared.owner, shared.keys.seal(_PLACE + shared.owner, json.dumps(word).encode()), ttl)


async def instances(store: TokenStore, keys: Keys) -> dict[str, dict[str, Any]]:
    """Return the word of every instance that we can open; raises StoreError."""
    words = {}
    for instance, sealed in (await store.announced()).items():
        try:
            word = json.loads(keys.open(_PLACE + instance, sealed))
        except (StoreError, ValueError):
            continue
        if isinstance(word, dict):
            words[instance] = word
    return words
