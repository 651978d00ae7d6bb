"""What lives in the state directory: the embedded store and its key, the admin token, the spool, `run.json`."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from types import TracebackType

from sidecar.errors import ConfigurationError
from sidecar.run.join import configuration_hash, read_run_file
from sidecar.secret import Secret
from sidecar.settings import Settings

MARKS = "presented"
"""The directory of what is noted of refresh tokens that may be presented once."""
_MAX_LOG = 1 << 20


def prepare(state_dir: Path) -> None:
    """Create the state directory and the spool in it, readable by their owner only."""
    try:
        for directory in (state_dir, state_dir / "spool"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory.stat().st_uid == os.getuid():
                directory.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"state_dir {state_dir}: {error.strerror}; expected a directory this user can create and write"
        ) from None


def admin_token(settings: Settings) -> Secret:
    """Return the token of the admin port: the configured one, else that of a 0600 file made once."""
    if settings.listen.admin_token is not None:
        return settings.listen.admin_token.read()
    path = settings.state_dir / "admin.token"
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32))
    try:
        return Secret(path.read_text().strip())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; expected the admin token, or remove the file") from None


class RunFile:
    """`run.json`: where the running sidecar of this state directory listens, and the hash of its configuration.

    It goes when the sidecar stops.
    """

    def __init__(self, settings: Settings, addresses: dict[str, str]) -> None:
        self._path = settings.state_dir / "run.json"
        self._content = {
            "pid": os.getpid(),
            "addresses": addresses,
            "configuration": configuration_hash(settings),
        }

    def __enter__(self) -> None:
        partial = self._path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(self._content))
        partial.replace(self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if read_run_file(self._path.parent).get("pid") == os.getpid():
            self._path.unlink(missing_ok=True)


def open_exec_log(state_dir: Path) -> int:
    """Return a descriptor of `exec.log`, where the sidecars of commands append; over 1 MiB it is started anew.

    What it held stays beside it as `exec.log.1`. Raises ConfigurationError when it cannot be written.
    """
    path = state_dir / "exec.log"
    try:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > _MAX_LOG:
                path.replace(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; expected a log file this user can write") from None
