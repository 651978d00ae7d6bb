"""Running a command for what it prints: how long, how often, and what is told of a failure."""

import contextlib
import math
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence

from sidecar.clock import Clock, SystemClock
from sidecar.errors import ConfigurationError
from sidecar.secret import Secret

MAX_OUTPUT = 64 << 10
_LIMIT = 10.0
"""Seconds that a command has."""
_AGAIN = 300.0
"""Seconds between two runs because the secret was refused."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 10.0
"""Seconds between two runs of a command that fails: from the first they double, up to the longest."""
_CLOCK: Clock = SystemClock()


class Runs:
    """What the runs of a command gave; all are equal, as what was read does not make one configuration another.

    `outcome`: the secret, or why there is none; empty before the first run.
    """

    __slots__ = ("_due", "_failures", "_lock", "_not_before", "doubted", "outcome")

    def __init__(self) -> None:
        self.outcome: Secret | str = ""
        self.doubted = False
        self._not_before = self._due = -math.inf
        self._failures = 0
        self._lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runs)

    def __hash__(self) -> int:
        return 0

    def __reduce__(self) -> "tuple[type[Runs], tuple[()]]":
        return Runs, ()

    def is_due(self) -> bool:
        """Tell whether to run it: never run, failed a while ago, or in doubt and not run for that a moment ago."""
        if isinstance(self.outcome, Secret):
            return self.doubted and _CLOCK.monotonic() >= self._not_before
        return _CLOCK.monotonic() >= self._due

    def run(self, get: Callable[[], Secret]) -> None:
        """Take what *get* gives, or its ConfigurationError, if it is due; who comes meanwhile waits for the same."""
        with self._lock:
            if not self.is_due():
                return
            if self.doubted:
                self.doubted, self._not_before = False, _CLOCK.monotonic() + _AGAIN
            try:
                self.outcome, self._failures = get(), 0
            except ConfigurationError as error:
                self.outcome = str(error)
                pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
                self._failures, self._due = self._failures + 1, _CLOCK.monotonic() + pause


def output(command: Sequence[str], name: str) -> bytes:
    """Return what *command* prints, a little over MAX_OUTPUT at most; it has our environment, and nothing to read.

    Raises ConfigurationError, which says *name*, when it cannot be run, fails, or takes over 10 s: then its whole group
    is killed. What it says on standard error is nobody's, as that may be secret.
    """
    try:
        # A session of its own: it finds no terminal to ask on.
        process = subprocess.Popen(  # noqa: S603  the operator's own words, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a program"
        raise ConfigurationError(f"{name} cannot be run: {reason}") from None
    with process:
        ends = _CLOCK.monotonic() + _LIMIT
        try:
            data = _collect(process, ends)
            code = 0 if len(data) > MAX_OUTPUT else process.wait(max(0.0, ends - _CLOCK.monotonic()))
        except subprocess.TimeoutExpired:
            raise ConfigurationError(f"{name} was ended after {_LIMIT:g} s; expected it to print a secret") from None
        finally:
            # One that was not waited for still has its number, and so has its group. macOS: not if it just ended.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
    if code:
        raise ConfigurationError(f"{name} failed: {f'exit code {code}' if code > 0 else f'signal {-code}'}")
    return data


def _collect(process: "subprocess.Popen[bytes]", ends: float) -> bytes:
    """Return what it prints until it ends, or prints too much; TimeoutExpired at *ends*.

    What left its group and keeps the pipe must not keep us.
    """
    data, pipe = b"", process.stdout.fileno() if process.stdout else -1
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(data) <= MAX_OUTPUT:
            if not selector.select(max(0.0, ends - _CLOCK.monotonic())):
                raise subprocess.TimeoutExpired(process.args, _LIMIT)
            if not (chunk := os.read(pipe, MAX_OUTPUT)):
                break
            data += chunk
    return data
