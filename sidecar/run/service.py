"""A sidecar as a process: configuration file in, signals handled, log lines out."""

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sidecar.clock import SystemClock
from sidecar.events import Emit, Event, Ready
from sidecar.observe.log import make_emit, ready_line
from sidecar.proxy.port import Dispatch
from sidecar.run.app import App, running
from sidecar.run.reload import Reloader
from sidecar.run.state import open_exec_log, prepare
from sidecar.settings import Settings, check_secrets, load
from sidecar.tokens.tasks import Tasks


def from_file(path: Path | None) -> Callable[[Dispatch], contextlib.AbstractAsyncContextManager[App]]:
    """Read a configuration file and return what makes a sidecar of it, which serves while its context is open.

    Raises ConfigurationError.
    """
    settings = load(path)
    check_secrets(settings)
    emit = make_emit(settings.log.format, settings.log.level)
    return lambda dispatch: running(settings, clock=SystemClock(), emit=emit, dispatch=dispatch)


def serve(read: Callable[[], Settings], file: Path | None, *, for_exec: bool = False) -> None:
    """Serve what *read* returns in the foreground until SIGTERM or SIGINT; a second one ends the process at once.

    On SIGHUP, and when *file* or a file that the settings name has changed, it is read again. *for_exec*: for one
    command only, until standard input ends too. Standard output and error then tell who started us how it went;
    once we serve, all goes to `exec.log`.
    """
    harden()
    settings = read()
    check_secrets(settings)
    clock = SystemClock()
    emit = _for_exec(settings) if for_exec else _announcing(make_emit(settings.log.format, settings.log.level))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
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
        if for_exec:
            loop.add_reader(0, hear)
        async with running(settings, clock=clock, emit=emit, for_exec=for_exec) as app:
            reloader = Reloader(app, read, file, clock=clock, emit=emit)
            tasks = Tasks("the configuration", emit)
            loop.add_signal_handler(signal.SIGHUP, lambda: tasks.spawn(reloader.reload(), "reload"))
            tasks.spawn(reloader.watch(), "watch")
            await stop.wait()
            await tasks.aclose()

    asyncio.run(main())


def harden() -> None:
    """Keep secrets out of core dumps and key logs, and our own clients off any proxy of the environment."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in ("SSLKEYLOGFILE", "MITMPROXY_SSLKEYLOGFILE"):
        os.environ.pop(name, None)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


def _announcing(emit: Emit) -> Emit:
    """Print the ready line on standard output, whatever the log level; in the log too, unless both are one."""
    same = os.path.sameopenfile(1, 2)

    def announce(event: Event) -> None:
        if isinstance(event, Ready):
            sys.stdout.write(ready_line(event) + "\n")
            sys.stdout.flush()
        if not (same and isinstance(event, Ready)):
            emit(event)

    return announce


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
