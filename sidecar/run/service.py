"""A sidecar as a process: configuration file in, signals handled, log lines out."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from sidecar.clock import SystemClock
from sidecar.events import Emit, Event, Ready
from sidecar.observe.log import make_emit, ready_line
from sidecar.proxy.port import Dispatch
from sidecar.run.app import App
from sidecar.run.process import announcing, harden
from sidecar.run.reload import Reloader
from sidecar.run.running import running
from sidecar.run.state import open_exec_log, prepare
from sidecar.run.supervisor import inherited
from sidecar.settings import Settings, check_secrets, load
from sidecar.tokens.waiting import Tasks

_THREADS = 64
_THREAD = "work"
_LOOKS = 10
_LOOK_SECONDS = 0.05


def from_file(path: Path | None) -> Callable[[Dispatch], contextlib.AbstractAsyncContextManager[App]]:
    """Read a configuration file and return what makes a sidecar of it, which serves while its context is open.

    Raises ConfigurationError.
    """
    settings = load(path)
    check_secrets(settings)
    emit = make_emit(settings.log.format, settings.log.level)
    return lambda dispatch: running(settings, clock=SystemClock(), emit=emit, dispatch=dispatch)


def serve(
    read: Callable[[], Settings],
    file: Path | None,
    *,
    for_exec: bool = False,
    worker: str | None = None,
) -> None:
    """Serve what *read* returns in this process until SIGTERM or SIGINT; a second one ends it at once.

    On SIGHUP, and when *file* or a file that the settings name has changed, it is read again. *for_exec*: for one
    command only, until standard input ends too; once we serve, all output goes to `exec.log`. *worker*: what our
    supervisor has for us; we end with it.
    """
    harden()
    settings = read()
    check_secrets(settings)
    clock = SystemClock()
    emit = _for_exec(settings) if for_exec else announcing(make_emit(settings.log.format, settings.log.level))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        # Names are resolved there: a name server that does not answer must not hold up all the others.
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=_THREAD)
        loop.set_default_executor(threads)
        stop = asyncio.Event()

        def ask_to_stop() -> None:
            if stop.is_set():
                os._exit(130)
            stop.set()

        def hear() -> None:
            if not os.read(0, 1 << 10):
                loop.remove_reader(0)
                stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask_to_stop)
        # Heard from the first moment on: what is asked while we start is done when we serve.
        asked, told = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, asked.set)
        loop.add_signal_handler(signal.SIGUSR1, told.set)
        if for_exec or worker:
            loop.add_reader(0, hear)
        given = inherited(worker) if worker else None
        async with running(settings, clock=clock, emit=emit, for_exec=for_exec, inherited=given) as app:
            gc.collect()
            gc.freeze()  # what is there now stays: no collection need look at it again
            gc.enable()
            reloader = Reloader(app, read, file, clock=clock, emit=emit)
            tasks = Tasks("the configuration", emit)
            tasks.spawn(_whenever(asked, reloader.reload), "reload")
            tasks.spawn(_whenever(told, app.look), "look")
            tasks.spawn(reloader.watch(), "watch")
            tasks.spawn(asyncio.to_thread(_import_late), "imports")
            await stop.wait()
            await tasks.aclose()
        await _leave(threads)

    asyncio.run(main())


def _import_late() -> None:
    """Import what only a renewal needs, beside the loop: a tenth of a second that no start and no request waits for."""
    import_module("httpx")


async def _leave(threads: ThreadPoolExecutor) -> None:
    """End the process if a name server holds up a thread: all is done, and Python would wait for it."""
    threads.shutdown(wait=False, cancel_futures=True)
    for _ in range(_LOOKS):
        if not any(thread.name.startswith(_THREAD) for thread in threading.enumerate()):
            return
        await asyncio.sleep(_LOOK_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def _whenever(asked: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Do *work* whenever it was asked for, once for all who asked meanwhile; until cancelled."""
    while True:
        await asked.wait()
        asked.clear()
        await work()


def _for_exec(settings: Settings) -> Emit:
    """Print the ready line where our starter reads it, and nothing after it: nobody reads on, a pipe would fill."""
    prepare(settings.state_dir)
    log = open_exec_log(settings.state_dir)
    emit = make_emit(settings.log.format, settings.log.level, os.fdopen(log, "w", closefd=False))

    def announce(event: Event) -> None:
        emit(event)
        if isinstance(event, Ready):
            sys.stdout.write(ready_line(event) + "\n")
            sys.stdout.flush()
            for number in (1, 2):
                os.dup2(log, number)

    return announce
