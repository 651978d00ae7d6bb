"""`auth-sidecar token`: state of the tokens, from the running sidecar or, when none runs, from its store."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from sidecar.cli.options import ConfigOption, JsonOption, SetOption
from sidecar.clock import span
from sidecar.settings import load

app = typer.Typer(help="State of the shared tokens; never the token itself.")
UpstreamArgument = Annotated[str | None, typer.Argument(metavar="UPSTREAM", help="Default: all.")]


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
    from sidecar.run.operator import act

    states = act(load(config, overrides=overrides or ()), action, upstream)
    if as_json:
        print(json.dumps(states, indent=2))
        return
    # A terminal gets lines that fit it, a pipe whole ones: what is searched for is never cut in two.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for name, state in states.items():
        for line in _lines(name, state):
            print(textwrap.fill(line, width, subsequent_indent="    ", break_on_hyphens=False) if width else line)


def _lines(name: str, state: Mapping[str, Any]) -> Iterator[str]:
    """Yield what there is to say of one upstream: its name and state first, the rest indented."""
    yield f"{name}: {', '.join(filter(None, [state['state'], *_life(state)]))}"
    uses = ", ".join(f"{instance}: {generation}" for instance, generation in state["instances"].items())
    yield f"  generation {state['generation']}, got by {state['renewed_by'] or 'nobody'}, used by {uses or 'nobody'}"
    detail, last = state.get("detail") or "", state["last_renewal"]
    if last is not None:
        detail = last["detail"] or detail
        yield f"  last renewal here {_when(last['at'])} {last['trigger']}: {last['result']} {detail}".rstrip()
    elif detail:
        yield f"  last failure: {detail}"
    scope = state.get("scope") or {"granted": None, "missing": None}
    if scope["granted"] or scope["missing"]:
        less = f", narrower than asked: no {scope['missing']}" if scope["missing"] else ""
        yield f"  scope {scope['granted'] or 'of nothing'}{less}"
    if seal := state.get("sealed_with"):
        place = "one that the ring lacks" if seal["key"] is None else f"number {seal['key']} of the ring"
        yield f"  sealed with key {seal['id']}, {place}"


def _life(state: Mapping[str, Any]) -> Iterator[str]:
    left = state["expires_in"]
    if left is not None:
        yield f"expires in {span(left)}" if left > 0 else f"expired {span(-left)} ago"
        yield _when(state["expires_at"])
    if state["lifetime"] is not None:
        yield f"lifetime {span(state['lifetime'])}"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
