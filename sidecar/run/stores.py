"""From the settings to the token store, the keys that seal its records, and the word of every instance in it."""

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.errors import StoreError
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


async def keep_announcing(shared: Shared, brokers: Callable[[], Mapping[str, Broker]]) -> None:
    """Leave word in the store, every ten seconds until cancelled, which generations this instance uses."""
    while True:
        word = {
            "version": __version__,
            "at": shared.clock.now() + shared.store.offset,
            "generations": {name: broker.status().generation for name, broker in brokers().items()},
        }
        pause = _SOON
        # Trouble is told by the brokers; nobody waits for this.
        with contextlib.suppress(StoreError):
            sealed = shared.keys.seal(_PLACE + shared.owner, json.dumps(word).encode())
            await shared.store.announce(shared.owner, sealed, _WORD_LASTS)
            pause = _EVERY
        await shared.clock.sleep(pause)


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
