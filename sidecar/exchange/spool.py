"""A sealed file for the part of a request body that memory does not hold.

The file has no name from the start, so that nothing is left after any kind of end, and every block is sealed
by functions handed in, so that reading the descriptor shows nothing.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

_BLOCK = 256 << 10


class BlockSeal(Protocol):
    """Seals the numbered blocks of one spool; a block opens only under its own number."""

    def seal(self, number: int, data: bytes) -> bytes:
        """Return *data* sealed."""
        ...

    def open(self, number: int, sealed: bytes) -> bytes:
        """Return the data; raises SealError when it was changed or moved."""
        ...


class Spool:
    """Append-only bytes on disk, readable from the start any number of times.

    Written on the event loop: sealing a block and handing it to the page cache takes about a millisecond.
    OSError (disk full) comes out of `append`; what was appended before stays readable.
    """

    def __init__(self, directory: Path, seal: BlockSeal) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  closed in close()
        self._seal = seal
        self._blocks: list[tuple[int, int]] = []
        self._end = 0
        self._pending = bytearray()

    def append(self, data: bytes) -> None:
        """Add *data*; full blocks are sealed and written at once."""
        self._pending += data
        while len(self._pending) >= _BLOCK:
            sealed = self._seal.seal(len(self._blocks), bytes(self._pending[:_BLOCK]))
            self._write(sealed)
            self._blocks.append((self._end, len(sealed)))
            self._end += len(sealed)
            del self._pending[:_BLOCK]

    def _write(self, sealed: bytes) -> None:
        view, offset = memoryview(sealed), self._end
        self._file.seek(offset)
        while view:
            view = view[self._file.write(view) :]

    def read(self) -> Iterator[bytes]:
        """Yield everything from the start, in blocks; what is appended meanwhile is not part of it."""
        pending = bytes(self._pending)
        for number, (offset, size) in enumerate(tuple(self._blocks)):
            self._file.seek(offset)
            yield self._seal.open(number, self._file.read(size))
        if pending:
            yield pending

    def close(self) -> None:
        """Give the space back; twice does no harm."""
        self._file.close()
        self._pending.clear()


OpenSpool = Callable[[], Spool]
