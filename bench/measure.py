"""What the processes of a proxy cost, read from /proc: processor time, memory, descriptors, connections."""

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ESTABLISHED = "01"
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    ticks: int
    threads: int
    pages: int


def tree(pid: int) -> list[int]:
    """Return *pid* and all that descend from it; those that have ended are left out."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
            children[stat.parent].append(int(entry.name))
    found = [pid] if _stat(pid) else []
    for each in found:
        found.extend(children[each])
    return found


def ticks(pid: int) -> int:
    """Return the processor time, user and system, of the tree of *pid*, of its waited-for children too."""
    return sum(stat.ticks for stat in _stats(pid))


def cpu_seconds(pid: int) -> float:
    """Return the same in seconds; a tick is usually 10 ms."""
    return ticks(pid) / TICKS_PER_SECOND


def resident(pid: int) -> int:
    """Return the resident bytes of the tree; a page that two processes share counts twice."""
    return sum(stat.pages for stat in _stats(pid)) * _PAGE


def threads(pid: int) -> int:
    """Return how many threads the tree has."""
    return sum(stat.threads for stat in _stats(pid))


def descriptors(pid: int, *, but_to: int = 0) -> int:
    """Return how many descriptors the tree holds, less its connections to port *but_to*."""
    return sum(len(_descriptors(each)) for each in tree(pid)) - (connections(pid, remote=but_to) if but_to else 0)


def connections(pid: int, *, local: int = 0, remote: int = 0) -> int:
    """Return how many established TCP connections the tree holds at port *local*, or to port *remote*."""
    wanted = {f"socket:[{inode}]" for inode in _sockets(local, remote)}
    return sum(target in wanted for each in tree(pid) for target in _descriptors(each))


@contextlib.asynccontextmanager
async def peak(pid: int) -> AsyncIterator[list[int]]:
    """Note the highest resident bytes of the tree while the context is open, in the one item of the list."""
    highest = [resident(pid)]

    async def sample() -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            highest[0] = max(highest[0], resident(pid))

    task = asyncio.ensure_future(sample())
    try:
        yield highest
    finally:
        task.cancel()
        await asyncio.wait({task})


def _stats(pid: int) -> list[_Stat]:
    return [stat for each in tree(pid) if (stat := _stat(each))]


def _stat(pid: int) -> _Stat | None:
    """Return what proc(5) says of a process; None when it has gone."""
    try:
        # The name of the program stands in brackets and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Stat(int(fields[1]), sum(map(int, fields[11:15])), int(fields[17]), int(fields[21]))


def _descriptors(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
    return found


def _sockets(local: int, remote: int) -> Iterator[str]:
    """Yield the inodes of established connections of this machine, by the ports that are not zero."""
    for name in ("tcp", "tcp6"):
        table = Path("/proc/net", name)
        for line in table.read_text(encoding="utf-8").splitlines()[1:] if table.exists() else ():
            _, here, there, state, *rest = line.split()
            ports = (int(here.rpartition(":")[2], 16), int(there.rpartition(":")[2], 16))
            if state == _ESTABLISHED and local in (0, ports[0]) and remote in (0, ports[1]):
                yield rest[5]
