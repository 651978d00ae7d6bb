"""Several processes on the same sockets: this one binds, starts workers, replaces those that die, and ends them all.

It serves nothing and imports no mitmproxy. Workers end by themselves when their supervisor is gone: their
standard input is a pipe from it.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar import __version__
from sidecar.clock import Clock, SystemClock
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.events import Emit, Ready, WorkerReplaced
from sidecar.observe.log import make_emit
from sidecar.observe.slots import Slot, shared_folder
from sidecar.proxy.sockets import address_of, bind
from sidecar.run.process import announcing, harden
from sidecar.run.state import RunFile, prepare
from sidecar.settings import HostPort, Settings, check_secrets

_START_SECONDS = 60.0
_STEADY_SECONDS = 60.0
_CAP = 30.0
_AFTER_GRACE = 15.0
"""Seconds that a worker has beyond its grace to store a running renewal."""
_BAD_CONFIGURATION = 2


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker has from its supervisor: its process id, and bound sockets by name, `admin` and `exec` too.

    *number*: its place; *replaces*: the exit code of the one that was there before. *slot*: where it counts.
    """

    supervisor: int
    sockets: Mapping[str, socket.socket]
    number: int
    replaces: int | None
    slot: Slot


def inherited(text: str) -> Inherited:
    """Return what the option `--worker` says."""
    said = json.loads(text)
    return Inherited(
        said["supervisor"],
        {name: socket.socket(fileno=fd) for name, fd in said["sockets"].items()},
        said["number"],
        said["replaces"],
        Slot(Path(said["metrics"]), said["number"]),
    )


class Supervisor:
    """The workers of one configuration; *options* are those of `run` that lead to it."""

    def __init__(self, settings: Settings, options: Sequence[str], metrics: Path, *, clock: Clock, emit: Emit) -> None:
        """Bind every address; ConfigurationError when one cannot be had. *metrics*: the folder where workers count."""
        self._settings = settings
        self._options = options
        self._clock = clock
        self._emit = emit
        self._stopping = asyncio.Event()
        self._metrics = metrics
        self._processes: set[Process] = set()
        wanted = settings.served | {
            "admin": ("listen.admin", settings.listen.admin),
            "exec": ("exec", HostPort("127.0.0.1", 0)),
        }
        self._sockets = {name: bind(address, key) for name, (key, address) in wanted.items()}

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second signal ends the workers at once."""
        loop = asyncio.get_running_loop()
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, self._stop)
        for told in (signal.SIGHUP, signal.SIGUSR1):
            loop.add_signal_handler(told, self._pass_on, told)
        addresses = {name: str(address_of(bound)) for name, bound in self._sockets.items() if name != "exec"}
        try:
            async with asyncio.TaskGroup() as group:
                ready = [loop.create_future() for _ in range(worker_count(self._settings))]
                for index, future in enumerate(ready):
                    group.create_task(self._keep(index, future))
                await asyncio.gather(*ready)
                with RunFile(self._settings, addresses):
                    self._emit(Ready(addresses=addresses, version=__version__))
                    await self._stopping.wait()
        except* SidecarError as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._end()

    def _stop(self) -> None:
        if self._stopping.is_set():
            for process in self._processes:
                process.kill()
            return
        self._stopping.set()
        for bound in self._sockets.values():
            bound.close()  # or connections would wait in a queue that nobody empties
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int, ready: "asyncio.Future[None]") -> None:
        """Keep one worker running; the first time, *ready* is told, or what went wrong is raised."""
        failures, code = 0, None
        while not self._stopping.is_set():
            began = self._clock.monotonic()
            process = await self._start(number, code)
            try:
                served = await _says_ready(process)
                if not ready.done():
                    if not served:
                        raise _failure(await process.wait())
                    ready.set_result(None)
                code = await process.wait()
            finally:
                self._processes.discard(process)
            if self._stopping.is_set():
                return
            failures = 0 if self._clock.monotonic() - began > _STEADY_SECONDS else failures + 1
            wait = min(_CAP, 2.0 ** (failures - 1)) if failures else 0.0
            self._emit(WorkerReplaced(number=number, code=code, wait=wait))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _start(self, number: int, replaces: int | None) -> Process:
        spec = {
            "supervisor": os.getpid(),
            "sockets": {name: bound.fileno() for name, bound in self._sockets.items()},
            "number": number,
            "replaces": replaces,
            "metrics": str(self._metrics),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-O", "-m", "sidecar", "run", f"--worker={json.dumps(spec)}", *self._options),
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=[bound.fileno() for bound in self._sockets.values()],
            start_new_session=True,  # the terminal's Ctrl-C is for us, who tell them
        )
        self._processes.add(process)
        return process

    async def _end(self) -> None:
        """Wait for the workers; those that do not end in time are killed."""
        self._stopping.set()
        self._pass_on(signal.SIGTERM)
        waits = [asyncio.ensure_future(process.wait()) for process in self._processes]
        if waits:
            _, late = await asyncio.wait(waits, timeout=self._settings.grace + _AFTER_GRACE)
            if late:
                for process in self._processes:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                await asyncio.wait(late)


def worker_count(settings: Settings) -> int:
    """Return how many processes `workers` asks for; `auto`: one for each processor that we may use."""
    if settings.workers == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.workers


def supervise(settings: Settings, options: Sequence[str]) -> None:
    """Serve *settings* with several processes until SIGTERM or SIGINT."""
    harden()
    check_secrets(settings)
    prepare(settings.state_dir)
    emit = announcing(make_emit(settings.log.format, settings.log.level))

    async def main() -> None:
        with shared_folder(settings.state_dir) as metrics:
            await Supervisor(settings, options, metrics, clock=SystemClock(), emit=emit).run()

    asyncio.run(main())


async def _says_ready(process: Process) -> bool:
    """Wait until a worker serves; False when it ended, or took too long and was ended."""
    if process.stdout is None:
        raise TypeError("expected a process with a pipe")
    try:
        async with asyncio.timeout(_START_SECONDS):
            return bool(await process.stdout.readline())
    except TimeoutError:
        process.kill()
        return False


def _failure(code: int) -> SidecarError:
    message = "a worker could not start; its own message says why"
    return ConfigurationError(message) if code == _BAD_CONFIGURATION else SidecarError(message)
