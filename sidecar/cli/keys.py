"""`auth-sidecar keys`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sidecar.cli.options import ConfigOption, SetOption

app = typer.Typer(help="Keys that seal the token store.")


@app.callback()
def _keys() -> None:
    """Keys that seal the token store."""


@app.command("new")
def new() -> None:
    """Print one fresh key, a line that fits a key file.

    Example: (umask 077 && auth-sidecar keys new > store-key)
    """
    from sidecar.tokens.seal import new_key

    print(new_key())


@app.command("rotate")
def rotate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The key file, one of store.keys.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the new content of FILE instead: for a Secret of Kubernetes, say.")
    ] = False,
) -> None:
    """Put a fresh key first in a key file and seal the store with it; running sidecars pick it up.

    With --print nothing is changed: give the content to every instance, and records get the new key with their next
    renewal. Remove the old key when `token show` works without it.

    Example: auth-sidecar keys rotate -c auth-sidecar.yaml /run/secrets/store-key
    """
    from sidecar.run.rotation import rotate as do_rotate
    from sidecar.run.rotation import with_fresh_key

    if only_print:
        sys.stdout.write(with_fresh_key(file).reveal())
        return
    from sidecar.settings import load

    done = do_rotate(load(config, overrides=overrides or ()), file)
    print(f"{file} has a fresh key; {done.sealed} records are sealed with it")
    for name in done.foreign:
        print(f"the record of {name} is sealed with another key and was left alone", file=sys.stderr)
