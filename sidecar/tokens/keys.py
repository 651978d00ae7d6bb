"""The store keys of a running process: read again when a record turns up that a newer key has sealed."""

from collections.abc import Callable

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, UnknownSeal
from sidecar.tokens.seal import KeyRing

_LOOK = 1.0
"""Seconds between two looks at the key files."""


class Keys:
    """Seals and opens with the ring that *read* returns, which is asked again when no key fits.

    So a key that was rotated reaches every process by itself; a ring that can no longer be read keeps the old.
    Raises what *read* does when made.
    """

    def __init__(self, read: Callable[[], KeyRing], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._ring = read()
        self._read_at = -_LOOK

    @property
    def fingerprint_key(self) -> bytes:
        """A key for fingerprints that go into sealed records; all who have the newest key have it too."""
        return self._ring.fingerprint_key

    def seal(self, name: str, data: bytes) -> bytes:
        """Return *data* sealed under *name* with the newest key."""
        return self._ring.seal(name, data)

    def open(self, name: str, sealed: bytes) -> bytes:
        """Return what was sealed under *name*; raises UnknownSeal when no key fits, SealError for damage."""
        try:
            return self._ring.open(name, sealed)
        except UnknownSeal:
            if not self._read_again():
                raise
            return self._ring.open(name, sealed)

    def _read_again(self) -> bool:
        if self._clock.monotonic() < self._read_at + _LOOK:
            return False
        self._read_at = self._clock.monotonic()
        try:
            self._ring = self._read()
        except ConfigurationError:
            return False
        return True
