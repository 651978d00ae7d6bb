"""`auth-sidecar token`: state of the tokens, from the running sidecar or, when none runs, from its store."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from sidecar.cli.options import ConfigOption, JsonOption, SetOption
from sidecar.settings import load

app = typer.Typer(help="State of the shared tokens; never the token itself.")
UpstreamArgument = Annotated[str | None, typer.Argument(metavar="[UPSTREAM]", help="Default: all.")]


@app.callback()
def _token() -> None:
    """State of the shared tokens; never the token itself."""


@app.command("show")
def show(
    upstream: UpstreamArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show state, expiry, who got the token, which generation each instance of the fleet uses, and the last renewal.

    Example: auth-sidecar token show -c auth-sidecar.yaml
    """
    _run("show", upstream, config, overrides, as_json)


@app.command("renew")
def renew(
    upstream: UpstreamArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Get a new token now.

    Example: auth-sidecar token renew plm
    """
    _run("renew", upstream, config, overrides, as_json)


@app.command("revoke")
def revoke(
    upstream: UpstreamArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop the token and its refresh token from memory and store; the issuer is not told.

    Example: auth-sidecar token revoke plm
    """
    _run("revoke", upstream, config, overrides, as_json)


def _run(
    action: Literal["show", "renew", "revoke"],
    upstream: str | None,
    config: Any,
    overrides: list[str] | None,
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from sidecar.run.operator import act

    states = act(load(config, overrides=overrides or ()), action, upstream)
    if as_json:
        print(json.dumps(states, indent=2))
        return
    titles = ("upstream", "state", "expires", "in", "generation", "got by", "used by", "last renewal here")
    table = Table(*(Column(title, no_wrap=True) for title in titles), box=None)
    for name, state in states.items():
        last = state["last_renewal"]
        table.add_row(
            name,
            state["state"],
            _when(state["expires_at"]),
            "-" if state["expires_in"] is None else f"{state['expires_in']:.0f} s",
            str(state["generation"]),
            state["renewed_by"] or "-",
            ", ".join(f"{instance}: {used}" for instance, used in state["instances"].items()) or "-",
            "-"
            if last is None
            else f"{_when(last['at'])} {last['trigger']}: {last['result']} {last['detail']}".strip(),
        )
    console = Console()
    # Never narrower than its longest line: a terminal wraps it, a pipe takes it as it is.
    console.print(table, width=max(console.width, console.measure(table).maximum), crop=False, soft_wrap=True)


def _when(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
