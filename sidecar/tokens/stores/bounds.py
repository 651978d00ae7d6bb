"""What every store keeps to: the size of a record, the number of instances, how long a shared record is kept."""

from sidecar.errors import StoreError
from sidecar.tokens.store import MAX_RECORD

MAX_INSTANCES = 1000
"""How many instances may leave word; their names are at most MAX_NAME bytes long."""

MAX_NAME = 256

KEEP = 90 * 86400
"""Seconds after its last write at which a shared store may forget a record."""


def checked(sealed: bytes) -> bytes:
    """Return *sealed*; StoreError if it is too large to be written."""
    if len(sealed) > MAX_RECORD:
        raise StoreError(f"a record of {len(sealed)} bytes is over {MAX_RECORD >> 10} KiB")
    return sealed


def checked_name(instance: str) -> str:
    """Return the name of an instance; StoreError if it is too long."""
    if not 0 < len(instance.encode()) <= MAX_NAME:
        raise StoreError(f"the name of an instance is empty or over {MAX_NAME} bytes")
    return instance
