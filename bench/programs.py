"""Programs that a run starts and ends: each by its own process id, none left behind."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from sidecar.errors import ConfigurationError, SidecarError

_ROOT = Path(__file__).parents[1]
"""Where programs are started: `python -m` finds our packages there."""
_VERSION = re.compile(r"\d+(\.\d+)+")
_START_SECONDS = 60.0
_END_SECONDS = 15.0


def find(name: str) -> str:
    """Return where the program *name* is: beside this Python, on PATH, or where Debian keeps servers.

    Raises ConfigurationError when it is nowhere.
    """
    folders = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
    found = shutil.which(name, path=folders)
    if found is None:
        raise ConfigurationError(f"{name} is missing; expected on PATH: `make bench` installs it")
    return found


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def program(*command: str, log: Path, env: dict[str, str] | None = None) -> AsyncIterator[Process]:
    """Run a program, its standard output a pipe, its standard error *log*; at the end it is terminated, else killed."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=errors, env=_environment(env), cwd=_ROOT
        )
    try:
        yield process
    finally:
        await end(process)


async def end(process: Process) -> None:
    """End a process that may have ended already: it has a while to do so by itself."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        # Reads what is left in the pipe too, or a process that still writes would wait for us.
        async with asyncio.timeout(_END_SECONDS):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def serving(process: Process, port: int, name: str, log: Path) -> None:
    """Wait until *port* of loopback takes connections; SidecarError when the process ends first, or takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            while process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(0.01)
    raise SidecarError(f"{name} did not start: {_tail(log)}")


async def line(process: Process, name: str, log: Path) -> str:
    """Return the first line that a process writes: what says that it serves, and where."""
    if process.stdout is None:
        raise TypeError("expected a process with a pipe")
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            said = await process.stdout.readline()
    if not said:
        raise SidecarError(f"{name} did not start: {_tail(log)}")
    return said.decode()


async def output(*command: str, within: float, env: dict[str, str] | None = None) -> str:
    """Run a program to its end and return what it wrote; SidecarError when it fails or takes longer than *within* s."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=_environment(env), cwd=_ROOT
    )
    try:
        async with asyncio.timeout(within):
            said, errors = await process.communicate()
    except TimeoutError:
        raise SidecarError(f"{Path(command[0]).name} did not end within {within:g} s") from None
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    if process.returncode:
        last = " ".join(errors.decode(errors="replace").split())[-300:]
        raise SidecarError(f"{' '.join(command[:3])} ... failed with {process.returncode}: {last}")
    return said.decode()


def version(*command: str) -> str:
    """Return the version that a program says it has, on either output."""
    done = subprocess.run(  # noqa: S603  found by `find`
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=30
    )
    found = _VERSION.search(done.stdout.decode(errors="replace"))
    return found[0] if found else "unknown"


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    """Return our own environment without its proxies, and with *more*."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | (more or {})


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][-300:] if lines else "it said nothing"
