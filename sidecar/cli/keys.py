"""`auth-sidecar keys`."""

import typer

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
