"""Sealing: AES-256-GCM over records and spooled blocks. It knows nothing of what it seals."""

import base64
import contextlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, SealError, UnknownSeal
from sidecar.secret import Secret

_SCHEMA = b"\x01"
_KEY_ID = 8
_NONCE = 12
_HEAD = len(_SCHEMA) + _KEY_ID + _NONCE
_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?")
_MAX_KEY_FILE = 64 << 10
_LOOK = 1.0
"""Seconds between two looks at the key files."""


class KeyRing:
    """Seals with the newest key, opens with any: *keys* newest first, each as `new_key` prints it.

    Layout: schema version (1 byte), key id (8, a hash of the key), nonce (12, random), ciphertext and tag.
    Version, key id and name are authenticated, so that a record cannot be moved to another name. Random
    nonces are safe for 2**32 records under one key. Raises ConfigurationError for no key or a bad one.
    """

    def __init__(self, keys: Sequence[Secret]) -> None:
        if not keys:
            raise ConfigurationError("no store key; expected at least one, as printed by `auth-sidecar keys new`")
        raw = [_key_bytes(key, f"store key {number}") for number, key in enumerate(keys, 1)]
        self._ciphers = {_key_id(key): AESGCM(key) for key in raw}
        self._newest = _key_id(raw[0])
        self._tagging = [hmac.digest(key, b"auth-sidecar tags", "sha256") for key in raw]

    def seal(self, name: str, data: bytes) -> bytes:
        """Return *data* sealed under *name*, with the newest key; never twice the same."""
        nonce = os.urandom(_NONCE)
        bound = _SCHEMA + self._newest + name.encode()
        return _SCHEMA + self._newest + nonce + self._ciphers[self._newest].encrypt(nonce, data, bound)

    def open(self, name: str, sealed: bytes) -> bytes:
        """Return what was sealed under *name*; raises UnknownSeal for a foreign key or version, else SealError."""
        key_id, nonce = sealed[1 : 1 + _KEY_ID], sealed[1 + _KEY_ID : _HEAD]
        if len(sealed) < _HEAD:
            raise SealError("a record that was cut off")
        if sealed[:1] != _SCHEMA:
            raise UnknownSeal("a record of an unknown version")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnknownSeal(f"a record sealed with a key we do not have (id {key_id.hex()}); see store.keys")
        try:
            return cipher.decrypt(nonce, sealed[_HEAD:], _SCHEMA + key_id + name.encode())
        except InvalidTag:
            raise SealError("a record that is damaged or was moved from another name") from None

    def tags(self, text: str) -> tuple[str, ...]:
        """Return what stands for *text*, and nobody without the keys can make: 32 hex digits under each, newest first.

        The same in every process that has the keys.
        """
        return tuple(hmac.digest(key, text.encode(), "sha256").hex()[:32] for key in self._tagging)

    def place(self, sealed: bytes) -> tuple[int | None, str]:
        """Return which key sealed a record: its place, 1 is the newest, None if it is none of ours; and its id."""
        key_id = sealed[1 : 1 + _KEY_ID]
        place = list(self._ciphers).index(key_id) + 1 if key_id in self._ciphers else None
        return place, key_id.hex()


class Keys:
    """The ring of a running process, which *read* returns: read again when one of its *files* has changed.

    They are looked at once a second, while the ring is used, and when a record turns up that no key opens. A ring that
    can no longer be read keeps the old. Raises what *read* does when made.
    """

    def __init__(self, read: Callable[[], KeyRing], clock: Clock, files: Collection[Path] = ()) -> None:
        self._read = read
        self._clock = clock
        self._files = files
        self._stamps = [_stamp(path) for path in files]
        self._ring = read()
        self._looked_at = clock.monotonic()

    def seal(self, name: str, data: bytes) -> bytes:
        """Return *data* sealed under *name* with the newest key."""
        return self._current().seal(name, data)

    def open(self, name: str, sealed: bytes) -> bytes:
        """Return what was sealed under *name*; raises UnknownSeal when no key fits, SealError for damage."""
        try:
            return self._current().open(name, sealed)
        except UnknownSeal:
            self._look()
            return self._ring.open(name, sealed)

    def tags(self, text: str) -> tuple[str, ...]:
        """Return what stands for *text* under each key, as `KeyRing.tags` does."""
        return self._current().tags(text)

    def place(self, sealed: bytes) -> tuple[int | None, str]:
        """Return which key sealed a record, as `KeyRing.place` does, by the files as they are at this moment."""
        self._look()
        return self._ring.place(sealed)

    def _current(self) -> KeyRing:
        now = self._clock.monotonic()
        if now >= self._looked_at + _LOOK:
            self._looked_at = now
            self._look()
        return self._ring

    def _look(self) -> None:
        stamps = [_stamp(path) for path in self._files]
        if stamps != self._stamps:
            with contextlib.suppress(ConfigurationError):  # half-way through a change; the next look sees the rest
                self._ring = self._read()
                self._stamps = stamps


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class EphemeralSeal:
    """Seals the numbered blocks of one spool with a random key that nobody keeps.

    A block opens only under its own number. One object per spool: sharing it would be secret still, but blocks
    of the same number could be exchanged between spools.
    """

    def __init__(self) -> None:
        self._cipher = AESGCM(AESGCM.generate_key(256))

    def seal(self, number: int, data: bytes) -> bytes:
        """Return *data* sealed as block *number*; 28 bytes longer, safe to repeat with other data."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, data, number.to_bytes(8))

    def open(self, number: int, sealed: bytes) -> bytes:
        """Return block *number*; raises SealError when it was changed, cut or moved."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], number.to_bytes(8))
        except (InvalidTag, ValueError):
            raise SealError(f"block {number} of a spool was changed") from None


def new_key() -> str:
    """Return a fresh key as text: 32 random bytes, base64url."""
    return secrets.token_urlsafe(32)


def parse_keys(texts: Iterable[Secret]) -> KeyRing:
    """Return the ring of all keys in *texts*, newest first: in their order, then by lines.

    Blank lines and lines starting with # do not count. Raises ConfigurationError, which names the position of
    a bad key, never its content.
    """
    keys: list[Secret] = []
    for position, text in enumerate(texts):
        for number, line in enumerate(text.reveal().splitlines(), 1):
            key = line.strip()
            if key and not key.startswith("#"):
                _key_bytes(Secret(key), f"store.keys.{position}: line {number}")
                keys.append(Secret(key))
    return KeyRing(keys)


def load_or_create_key_file(path: Path) -> Secret:
    """Return the content of the key file of *path*, written first if there is none (0600, parent 0700).

    Processes that start at once agree on one key. Raises ConfigurationError if it cannot be read or written,
    or if others may read it: then they may have read it, and the operator decides.
    """
    try:
        if not path.exists():
            _create_key_file(path)
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(_MAX_KEY_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"key file {path}: {reason}; expected a file of store keys") from None
    if mode & 0o077:
        raise ConfigurationError(f"key file {path}: readable by others; expected mode 0600 (chmod 600 {path})")
    return Secret(text)


def _create_key_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # O_EXCL, 0600
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(new_key() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        # The file appears whole or not at all, and only if no other process was first: then its key counts.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink()


def _key_bytes(key: Secret, where: str) -> bytes:
    if not _KEY.fullmatch(key.reveal()):
        raise ConfigurationError(f"{where} is not a store key; expected what `auth-sidecar keys new` prints")
    return base64.urlsafe_b64decode(key.reveal()[:43] + "=")


def _key_id(key: bytes) -> bytes:
    return sha256(b"auth-sidecar key id\0" + key).digest()[:_KEY_ID]
