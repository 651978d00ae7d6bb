"""Running a command as if we were not there: its terminal, its signals, its exit code.

The command shares our process group, so that a shell's job control has both. A signal of the terminal reaches it
without us; one that somebody sent to us is passed on. One sent to the whole group reaches it twice, since nothing
tells it from one for us alone. Ctrl-Z stops us both; our sidecar, which has no terminal, goes on.
"""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LEFT_ALONE = (
    *("SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT"),  # job control is the kernel's
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGSYS"),  # faults of our own
    *("SIGPIPE", "SIGXCPU", "SIGXFSZ", "SIGALRM", "SIGVTALRM", "SIGPROF"),  # what we did or used up
)
_STOPPING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_PATIENCE = 30.0
_NOT_FOUND, _NOT_EXECUTABLE, _KILLED = 127, 126, 128

Signals = Collection[int]


@dataclass(frozen=True, slots=True)
class Missing:
    """A command that cannot be run: a line that says why, and the exit code a shell would give."""

    problem: str
    code: int


def find_command(name: str, environ: Mapping[str, str]) -> str | Missing:
    """Return the path of the program that `execvp` would run."""
    if found := shutil.which(name, path=environ.get("PATH", os.defpath)):
        return found
    folders = [""] if os.sep in name else environ.get("PATH", os.defpath).split(os.pathsep)
    if name and any((Path(folder) / name).exists() for folder in folders if folder or os.sep in name):
        return Missing(f"{name}: cannot be executed; expected a program", _NOT_EXECUTABLE)
    return Missing(f"{name}: command not found; expected a program of PATH or a path", _NOT_FOUND)


def run_command(
    program: str,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    sidecar: subprocess.Popen[bytes] | None,
    lost: Callable[[int], None],
) -> int:
    """Run *program* until it ends and return its exit code, 128 + N if signal N ended it.

    *sidecar*, a child as well, is then told to stop, waited for up to 30 s and killed on a further signal or after
    that. It may end earlier: *lost* is called with its exit code and the command goes on. Children that we inherited,
    as process 1 of a container does, are reaped on the way. Our signals stay blocked: nothing is left to do but to
    exit. Raises OSError when *program* cannot be started.
    """
    # Without a handler, some systems throw the signal away although it is blocked.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    watched = signal.valid_signals() - {getattr(signal, name, None) for name in _LEFT_ALONE}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    command = _start(program, arguments, environ, mask)
    code = _wait(command, sidecar, watched, lost)
    if sidecar is not None and sidecar.returncode is None:
        _stop(sidecar, watched)
    return code


def stop_sidecar(sidecar: subprocess.Popen[bytes]) -> None:
    """Tell *sidecar* to stop and wait up to 30 s, then kill it; an interrupt kills it at once."""
    try:
        sidecar.terminate()
        sidecar.wait(timeout=_PATIENCE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        sidecar.kill()
        sidecar.wait()


def _start(
    program: str, arguments: Sequence[str], environ: Mapping[str, str], mask: Signals
) -> subprocess.Popen[bytes]:
    control = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    ourselves = os.getpid()

    def prepare() -> None:
        if control is not None:
            control(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # Whoever ended before that call left us to another parent.
            if os.getppid() != ourselves:
                os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def start(*command: str, executable: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, executable=executable, env=environ, preexec_fn=prepare)  # noqa: PLW1509, S603  what the user asked for; we have one thread

    try:
        return start(*arguments, executable=program)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return start("sh", program, *arguments[1:], executable="/bin/sh")  # as execvp does


def _wait(
    command: subprocess.Popen[bytes],
    sidecar: subprocess.Popen[bytes] | None,
    watched: Signals,
    lost: Callable[[int], None],
) -> int:
    while True:
        for child, code in _ended(command, sidecar):
            if child is command:
                return code
            lost(code)
        number, by_kernel = _next_signal(watched)
        if number != signal.SIGCHLD and not _reached(number, by_kernel=by_kernel):
            _pass_on(command.pid, number)


def _ended(*children: subprocess.Popen[bytes] | None) -> list[tuple[subprocess.Popen[bytes], int]]:
    """Reap whoever ended, and return those of *children* among them with their exit codes."""
    found: list[tuple[subprocess.Popen[bytes], int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pid = 0
        if pid == 0:
            return found
        code = os.waitstatus_to_exitcode(status)
        for child in children:
            if child is not None and child.pid == pid:
                child.returncode = code
                found.append((child, code if code >= 0 else _KILLED - code))


def _next_signal(watched: Signals) -> tuple[int, bool]:
    """Wait for a signal; return it and whether the kernel sent it, on behalf of the terminal say."""
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(watched)
        return info.si_signo, info.si_code > 0
    number = signal.sigwait(watched)
    return number, number in (signal.SIGINT, signal.SIGQUIT)


def _reached(number: int, *, by_kernel: bool) -> bool:
    """Tell whether the command has got the signal too: a terminal's go to the group, its end to the leader only."""
    return by_kernel and not (number == signal.SIGHUP and os.getsid(0) == os.getpid())


def _pass_on(pid: int, number: int) -> None:
    os.kill(pid, number)
    if number in _STOPPING and os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
        os.kill(pid, signal.SIGCONT)  # a stopped one would not hear


def _stop(sidecar: subprocess.Popen[bytes], watched: Signals) -> None:
    if not hasattr(signal, "sigtimedwait"):
        stop_sidecar(sidecar)
        return
    sidecar.terminate()
    while not _ended(sidecar):
        info = signal.sigtimedwait(watched, _PATIENCE)
        if info is None or info.si_signo in _STOPPING:
            sidecar.kill()
            sidecar.wait()
            return
