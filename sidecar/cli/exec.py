"""`auth-sidecar exec`."""

from pathlib import Path
from typing import Annotated

import typer

from sidecar.cli.options import ConfigOption, SetOption
from sidecar.errors import ConfigurationError


def execute(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[--] CMD [ARG]...", help="The command; its options are its own.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Run a command through a sidecar, with the proxy and CA variables that its clients read.

    The running sidecar of the same configuration is used, else one is started for this command, on free ports, and
    stopped with it; its log is exec.log in state_dir. Hosts that are no upstream are reached as without it. The exit
    code is the command's: 128 + N if signal N ended it, 127 if it is not found, 126 if it cannot be run.

    Example: auth-sidecar exec -c auth-sidecar.yaml -- curl https://plm.example.com/items
    """
    if not command:
        raise ConfigurationError("exec: missing a command; expected auth-sidecar exec [-c FILE] -- CMD ARG...")
    from sidecar.run.exec.execute import execute as run
    from sidecar.settings import load

    return run(load(config, overrides=overrides or ()), _options(config, overrides), command)


def _options(config: Path | None, overrides: list[str] | None) -> list[str]:
    """Return the options again, each in one word: a value may start with a dash."""
    given = [f"--set={override}" for override in overrides or ()]
    return given if config is None else [f"--config={config}", *given]
