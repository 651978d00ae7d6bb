"""A command with a sidecar beside it: the running one of the same configuration, or one for this command alone."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.run.exec.client_files import client_files
from sidecar.run.exec.private import start_private
from sidecar.run.exec.supervise import Missing, find_command, run_command, stop_sidecar
from sidecar.run.exec.variables import proxy_url, variables
from sidecar.run.join import configuration_hash, exec_port, find_running, host_and_port
from sidecar.run.state import admin_token
from sidecar.run.systems import hosts_of
from sidecar.settings import Settings

_CANNOT_RUN = 126


def execute(settings: Settings, options: Sequence[str], command: Sequence[str]) -> int:
    """Run *command* and return its exit code, 127 when it is not found, 126 when it cannot be run.

    *options* are those of `run` that lead to *settings*. Nothing is started when the command is missing. Raises
    SidecarError when no sidecar can be had.
    """
    program = find_command(command[0], os.environ)
    if isinstance(program, Missing):
        _say(program.problem)
        return program.code
    addresses = _join(settings)
    if addresses is not None:
        return _run(program, command, client_environment(settings, addresses, os.environ), None)
    private = start_private(options)
    try:
        return _run(program, command, client_environment(settings, private.addresses, os.environ), private.process)
    finally:
        if private.process.returncode is None:
            stop_sidecar(private.process)


def client_environment(
    settings: Settings, addresses: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, str | None]:
    """Return what to set in *environ* for a client of the sidecar at *addresses*, None: to unset.

    Writes the files that some variables name. Raises SidecarError when the proxy is no TCP port.
    """
    try:
        host, port = host_and_port(addresses["proxy"])
    except ValueError:
        raise SidecarError(
            f"listen.proxy is {addresses['proxy']}, which no proxy variable can name; expected host:port"
        ) from None
    auth = settings.listen.auth
    login = (auth.username, auth.password.read().reveal()) if auth is not None else ()
    reverse = {}
    for name in settings.upstreams.keys() & addresses.keys():
        if not addresses[name].startswith("unix:"):
            reverse[name] = proxy_url(*host_and_port(addresses[name]))
    return variables(
        proxy_url(host, port, *login),
        client_files(settings.state_dir / "ca", environ),
        environ,
        hosts_of(settings, SystemClock()),
        reverse,
    )


def _join(settings: Settings) -> dict[str, str] | None:
    """Return the addresses of the running sidecar, with a proxy port for `exec`; None when there is none to join."""
    running = find_running(settings)
    if running is None or running.configuration != configuration_hash(settings):
        return None
    try:
        proxy = exec_port(running, admin_token(settings))
    except ConfigurationError:
        return None
    return None if proxy is None else {**running.addresses, "proxy": proxy}


def _run(
    program: str,
    command: Sequence[str],
    changes: Mapping[str, str | None],
    sidecar: subprocess.Popen[bytes] | None,
) -> int:
    environ = {**os.environ, **changes}
    wanted = {name: value for name, value in environ.items() if value is not None}

    def lost(code: int) -> None:
        _say(f"the sidecar ended with code {code}, see exec.log in state_dir; {command[0]} goes on without it")

    try:
        return run_command(program, command, wanted, sidecar, lost)
    except OSError as error:
        _say(f"{command[0]}: cannot be executed: {error.strerror}; expected a program")
        return _CANNOT_RUN


def _say(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"auth-sidecar: {line}\n")
        sys.stderr.flush()
