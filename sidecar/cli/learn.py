"""`auth-sidecar learn`."""

from pathlib import Path
from typing import Annotated

import typer

from sidecar.errors import ConfigurationError


def learn(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[--] CMD [ARG]...", help="The command; its options are its own.")
    ] = None,
    base_url: Annotated[str, typer.Option(metavar="URL", help="What the system's addresses begin with.")] = "",
    out: Annotated[Path, typer.Option(metavar="FILE", help="What to write; - is standard output.")] = Path(
        "auth-sidecar.yaml"
    ),
    check: Annotated[bool, typer.Option("--check", help="Run the command again, through what was learned.")] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the upstream; default: from the URL's host.")] = "",
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="ENV_NAME", help="Environment variable whose value is a secret; repeatable."),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Another host that it logs in at; repeatable.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="CA certificates of the system, PEM.")] = None,
) -> int:
    """Run a command once, watch how it logs in, and write a configuration with a recipe for the system that it met.

    Its login and its session are seen by this process alone: what is written names where secrets are read from, and
    every guess is marked. After the command, a harmless read is repeated with a dead session to see what the system
    says of it. The command should log in, do what it does, and log out. It is run twice with --check.

    Example: auth-sidecar learn --base-url https://plm.example.com/api --check -- python sync.py
    """
    if not command:
        raise ConfigurationError("learn: missing a command; expected auth-sidecar learn --base-url URL -- CMD ARG...")
    if not base_url:
        raise ConfigurationError("learn: missing --base-url; expected what the addresses of the system begin with")
    from sidecar.learn.learn import learn as run
    from sidecar.learn.order import Order

    order = Order(
        base_url=base_url,
        out=None if str(out) == "-" else out,
        check=check,
        name=name,
        ca=ca,
        secrets=secret or (),
        also=also or (),
        command=command,
    )
    return run(order)
