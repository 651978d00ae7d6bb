"""What this machine knows of a refresh token that may be presented once, whatever becomes of the store.

A store that was emptied, or put back to an earlier day, offers refresh tokens that are spent: an issuer that revokes on
reuse would end the login. So the generation of every record with a newer one is noted in the state directory too.
"""

import asyncio
import os
import tempfile
from hashlib import sha256
from pathlib import Path

from sidecar.errors import StoreError
from sidecar.secret import Secret
from sidecar.tokens.record import Record
from sidecar.tokens.sealed import Unreadable


class Marker:
    """The newest generation that was seen of what began with the refresh token *first*, in a file of *directory*.

    Its name is a hash of the token. 0: it was never presented from here.
    """

    def __init__(self, directory: Path, first: Secret) -> None:
        digest = sha256(b"auth-sidecar first refresh token\0" + first.reveal().encode()).hexdigest()
        self._path = directory / digest[:32]

    async def read(self) -> int:
        """Return the generation, from the file each time: other processes of this machine write it too.

        Raises StoreError when the file is there and cannot be read.
        """
        return await asyncio.to_thread(self._read)

    async def write(self, generation: int) -> None:
        """Note *generation*, so that it outlives a power cut; a lower one than is known changes nothing.

        Raises StoreError.
        """
        if generation > await self.read():
            await asyncio.to_thread(self._write, generation)

    async def forget(self) -> None:
        """Note that the token was not taken after all; raises StoreError."""
        try:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self._path}: {_reason(error)}") from None

    async def too_old(self, found: Record) -> Unreadable | None:
        """Return *found* as a record that is not to be used if this machine has seen a newer one, else None."""
        try:
            marked = await self.read()
        except StoreError as error:
            return Unreadable(found.generation, str(error))
        begun_anew = marked > 0 and not (found.claimed or found.revoked or found.kept)
        if found.generation >= marked and not begun_anew:
            return None
        what = "is gone" if found.generation == 0 else f"is that of generation {found.generation}, an older one"
        if found.generation and begun_anew:
            what = "was begun anew by an instance that did not know of it"
        why = f"the record {what}; this machine has seen generation {marked}, so that its refresh token is spent"
        return Unreadable(found.generation, why)

    def _read(self) -> int:
        try:
            return int(self._path.read_text())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._path}: {_reason(error)}; expected a number, the newest generation seen") from None

    def _write(self, generation: int) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, draft = tempfile.mkstemp(dir=self._path.parent, prefix=".draft.")
            try:
                with os.fdopen(descriptor, "w") as stream:
                    stream.write(f"{generation}\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                Path(draft).replace(self._path)
            finally:
                Path(draft).unlink(missing_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(f"{self._path}: {_reason(error)}; expected a state_dir that this user can write") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "not a number"
