"""Where processes that serve side by side keep their numbers: a folder of who started them, in it a slot for each.

What a process has counted is in files that outlive it, and the next one in its slot counts on from there: no sum
ever goes back, and the number of files stays the same however often one dies. How it stands is in a file too,
written once a second; of a process that stopped writing, nothing is believed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sidecar.errors import ConfigurationError

PUBLISH_SECONDS = 1.0
_BELIEVED_SECONDS = 5.0
_RESERVED = 512 << 10
_PREFIX = "metrics-"


class Standing(NamedTuple):
    """How one process stands with one upstream.

    *expires_at* in wall time, None without a token, as is *lifetime*. *breaker*: 0 closed, 1 half-open, 2 open.
    *state* of the credential. *quota*: what is left of it, None: not known.
    """

    expires_at: float | None
    lifetime: float | None
    in_flight: int
    breaker: int = 0
    state: str = "none"
    quota: float | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """The slot of one process in *folder*; of those that live no two have the same *number*."""

    folder: Path
    number: int

    def reserve(self) -> None:
        """Make the files for counts as large as they will be, or find them so; ConfigurationError without room.

        They are mapped into memory: were there no room on the disk later, the process would be killed.
        """
        with _room_in(self.folder):
            for kind in ("counter", "histogram"):
                with (self.folder / f"{kind}_{self.number}.db").open("ab") as file:
                    file.write(bytes(max(0, _RESERVED - file.tell())))

    def counts(self) -> list[str]:
        """Return the files that hold the counts of all processes, dead ones included."""
        return sorted(str(file) for file in self.folder.glob("*.db") if file.stat().st_size)

    def publish(self, standings: Mapping[str, Standing], now: float) -> None:
        """Tell the others how this process stands, by upstream; *now* on the monotonic clock, which all share.

        Where it cannot be written, the others soon believe nothing of it.
        """
        new = self._file(".new")
        with contextlib.suppress(OSError):
            new.write_text(json.dumps({"at": now, "upstreams": standings}), encoding="utf-8")
            new.replace(self._file(".json"))

    def others(self, now: float) -> list[dict[str, Standing]]:
        """Return how the other processes stand, each by upstream."""
        found = []
        for file in sorted(self.folder.glob("standing_*.json")):
            if file != self._file(".json"):
                with contextlib.suppress(OSError, ValueError):
                    told = json.loads(file.read_text(encoding="utf-8"))
                    if now - told["at"] <= _BELIEVED_SECONDS:
                        found.append({name: Standing(*each) for name, each in told["upstreams"].items()})
        return found

    def _file(self, suffix: str) -> Path:
        return self.folder / f"standing_{self.number}{suffix}"


@contextlib.contextmanager
def shared_folder(parent: Path) -> Iterator[Path]:
    """Make a fresh folder for slots in *parent*, only for us to read, and remove it at the end.

    Removes those of processes that were killed; what is in use, or none of ours, stays. Raises ConfigurationError.
    """
    with _room_in(parent), _locked(parent, wait=True):
        for old in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError), _locked(old, wait=False):
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        used = contextlib.ExitStack()
        used.enter_context(_locked(folder, wait=False))
    with used:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _room_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"state_dir: cannot keep the metrics of workers in {folder}: {error.strerror}"
        raise ConfigurationError(f"{message}; expected a folder of ours with 1 MiB free for each worker") from None


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
