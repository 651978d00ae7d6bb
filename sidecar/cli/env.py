"""`auth-sidecar env`."""

import os
import sys
from typing import Annotated, Literal

import typer

from sidecar.cli.options import ConfigOption, SetOption
from sidecar.errors import SidecarError


def env(
    config: ConfigOption = None,
    overrides: SetOption = None,
    shell: Annotated[
        Literal["sh", "fish", "powershell", "docker"], typer.Option("--shell", help="Whose words to use.")
    ] = "sh",
) -> None:
    """Print the proxy and CA variables for the running sidecar; with the proxy's password, if it has one.

    Example: eval "$(auth-sidecar env -c auth-sidecar.yaml)"

    For fish: auth-sidecar env --shell fish | source. For PowerShell: auth-sidecar env --shell powershell | Out-String |
    Invoke-Expression. For docker, the output is a file for --env-file; the container needs --network host.
    """
    from sidecar.run.exec.execute import client_environment
    from sidecar.run.exec.shells import render
    from sidecar.run.join import find_running
    from sidecar.settings import load

    settings = load(config, overrides=overrides or ())
    running = find_running(settings)
    if running is None:
        raise SidecarError(f"no sidecar runs with state_dir {settings.state_dir}; start it with auth-sidecar run")
    # A container has an environment of its own: what the caller's holds is not for it.
    environ = {} if shell == "docker" else os.environ
    text = render(shell, client_environment(settings, running.addresses, environ), settings.state_dir)
    # As bytes: a path need not be text.
    sys.stdout.buffer.write(os.fsencode(text))
