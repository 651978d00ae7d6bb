"""A sidecar of our own as a child process: started, waited for until it serves, told why it does not."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import ConfigurationError, SidecarError
from sidecar.run.exec.supervise import stop_sidecar

_START_SECONDS = 60.0
_BAD_CONFIGURATION = 2
_PREFIX = "auth-sidecar: "


@dataclass(frozen=True, slots=True)
class Private:
    """A sidecar that serves; it stops by itself when we are gone."""

    process: subprocess.Popen[bytes]
    addresses: Mapping[str, str]


def start_private(options: Sequence[str]) -> Private:
    """Start `auth-sidecar run` with *options* and wait until it serves.

    It has no terminal, so that a Ctrl-C there is not for it. Its standard input is a pipe from us that ends with us,
    however we end. Raises ConfigurationError or SidecarError with what it said when it does not come to serve;
    it is gone then, as it is after a KeyboardInterrupt.
    """
    process = subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-O", *_isolation(), "-m", "sidecar", "run", "--for-exec", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return Private(process, _addresses(process))
    except BaseException:
        stop_sidecar(process)
        raise


def _isolation() -> list[str]:
    """Return the option that keeps the modules of the current directory from being ours; not if we come from there."""
    with suppress(FileNotFoundError):  # it may have been removed
        if Path.cwd() == Path(__file__).parents[3]:
            return []
    return ["-P"]


def _addresses(process: subprocess.Popen[bytes]) -> dict[str, str]:
    if process.stdout is None:
        raise TypeError("expected a process with a pipe")
    said = b""
    with process.stdout as pipe:
        while select.select([pipe], [], [], _START_SECONDS)[0]:
            part = os.read(pipe.fileno(), 1 << 16)
            said += part
            for line in said.splitlines()[: -1 if part and not said.endswith(b"\n") else None]:
                with suppress(ValueError, TypeError, KeyError):
                    if (found := json.loads(line))["event"] == "ready":
                        return dict(found["addresses"])
            if not part:
                raise _failure(process.wait(), said)
    raise SidecarError(f"the sidecar did not serve within {_START_SECONDS:.0f} s; expected it to start")


def _failure(code: int, said: bytes) -> SidecarError:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    ours = [line.removeprefix(_PREFIX) for line in lines if line.startswith(_PREFIX)]
    message = (ours or lines or [f"the sidecar ended with code {code} before it served"])[-1]
    return ConfigurationError(message) if code == _BAD_CONFIGURATION else SidecarError(message)
