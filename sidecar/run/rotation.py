"""Rotating the store key: a fresh one first in its file, and every record sealed with it."""

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError
from sidecar.run.credentials import credentials
from sidecar.run.stores import open_store
from sidecar.secret import Secret
from sidecar.settings import Settings
from sidecar.tokens.seal import new_key, parse_keys
from sidecar.tokens.sealed import SealedRecord, Unreadable

_MAX_KEY_FILE = 64 << 10


@dataclass(frozen=True, slots=True)
class Rotated:
    """How many records were sealed anew, and the upstreams whose records could not be opened."""

    sealed: int
    foreign: tuple[str, ...]


def with_fresh_key(path: Path) -> Secret:
    """Return the content of the key file of *path* with a fresh key as its first line; nothing is written.

    Raises ConfigurationError for a file that cannot be read, or that holds no key or a bad one.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_KEY_FILE + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"key file {path}: {reason}; expected a file of store keys") from None
    if len(text) > _MAX_KEY_FILE:
        raise ConfigurationError(f"key file {path}: over {_MAX_KEY_FILE >> 10} KiB; expected a file of store keys")
    parse_keys([Secret(text)])
    return Secret(f"{new_key()}\n{text}")


def rotate(settings: Settings, path: Path) -> Rotated:
    """Put a fresh key first in the file of *path*, then seal every record of the configured upstreams with it.

    The file comes first: whoever meets a record under the new key reads its keys again and finds it there. A
    record that a renewal replaces meanwhile is left: it is sealed with a key of the ring in any case. Raises
    ConfigurationError, also when the configuration does not name the file, and StoreError.
    """
    content = with_fresh_key(path)
    named = {Path(str(reference.file)).expanduser() for reference in settings.store.keys if reference.file}
    named = named or {settings.state_dir / "store.key"}
    if path.resolve() not in {each.resolve() for each in named}:
        raise ConfigurationError(f"{path} is not one of store.keys; expected one of: {', '.join(map(str, named))}")
    _replace(path.resolve(), content)
    return asyncio.run(_seal_anew(settings))


def _replace(path: Path, content: Secret) -> None:
    """Put *content* in the place of the file, whole or not at all, for its owner only."""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w") as stream:
            stream.write(content.reveal())
            stream.flush()
            os.fsync(stream.fileno())
        Path(draft).replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"key file {path}: {error.strerror}; expected a file in a directory we can write, or use --print"
        ) from None


async def _seal_anew(settings: Settings) -> Rotated:
    clock = SystemClock()
    store, keys = open_store(settings, clock)
    sealed = 0
    foreign: list[str] = []
    try:
        for credential in credentials(settings, clock):
            record = SealedRecord(credential.issuer.identity, store, keys, owner="")
            found = await record.read()  # which seals it anew
            if isinstance(found, Unreadable):
                foreign += credential.names
            elif found.generation:
                sealed += 1
    finally:
        await store.aclose()
    return Rotated(sealed, tuple(foreign))
