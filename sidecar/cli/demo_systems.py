"""`auth-sidecar demo --system`: a script that logs in by itself outlives its sessions, and a foreign login."""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.errors import ConfigurationError, SidecarError
from sidecar.events import Event

if TYPE_CHECKING:
    from sidecar.emulator.systems.system import System

_SCRIPTS = Path(__file__).parents[1] / "emulator/scripts"
_DEATHS = 5
_WITHIN = 0.05
"""Of the time that the script runs: a session that dies younger was taken by another login."""
_PASSWORD = "caNARY-of-last-year"  # noqa: S105  what the script knows, and the system must never see


def play(name: str, seconds: float) -> None:
    """Run the demo of the system *name* and print a table; raises SidecarError if the script saw a failure.

    ConfigurationError for a name that is none.
    """
    from sidecar.emulator.systems.known import NAMES

    if name not in NAMES:
        raise ConfigurationError(f"--system {name}: expected one of {', '.join(NAMES)}")
    from rich.console import Console
    from rich.table import Table

    from sidecar.settings.shipped import preset

    console = Console(soft_wrap=True)
    console.print(f"an emulated system ({preset(name).title}) ends every session {_DEATHS} times,")
    console.print(f"somebody else logs in once; the script logs in by itself, runs {seconds:g} s and knows nothing ...")
    if changes := _haste(name, seconds):
        console.print(f"(deaths follow each other here faster than in a plant, hence {json.dumps(changes)})")
    report, state, shown = asyncio.run(_play(name, seconds))
    counters = state["counters"]
    table = Table(box=None, show_header=False)
    table.add_row("requests made by the script", str(report["requests"]))
    table.add_row("failures the script saw", str(report["failures"]))
    table.add_row("deaths of the session", str(counters.get("deaths", 0)))
    table.add_row("logins of somebody else", str(counters.get("foreign_logins", 0)))
    table.add_row("logins of ours", str(counters.get("logins", 0)))
    table.add_row("writes of the script", str(report["writes"]))
    table.add_row("writes done, and done twice", f"{state['rows']}, {state['doubled']}")
    table.add_row("logouts of the script at the system", str(counters.get("logouts", 0)))
    table.add_row("times the script's password got there", str(int(_PASSWORD in shown)))
    console.print(table)
    for failure in report["first_failures"]:
        console.print(f"failed: {failure}")
    whole = state["rows"] == report["writes"] and not state["doubled"]
    if report["failures"] or not whole or counters.get("deaths", 0) < _DEATHS:
        raise SidecarError(
            "the demo did not show what it should: expected no failure, five deaths, each write done once"
        )


async def _play(name: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    from sidecar.clock import SystemClock
    from sidecar.emulator.systems.known import system_class
    from sidecar.run.running import running
    from sidecar.settings import Settings

    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    def quiet(_: Event) -> None:
        """Nobody reads a log here."""

    with tempfile.TemporaryDirectory(prefix="auth-sidecar-demo-") as folder:
        async with system_class(name).start() as system:
            settings = Settings.model_validate(_configuration(name, system, Path(folder), seconds))
            async with running(settings, clock=SystemClock(), emit=quiet) as app:
                target = system.api_url.replace("https://", "http://", 1)
                environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
                proxy = f"http://{app.addresses['proxy']}"
                places = {key: place.replace("https://", "http://", 1) for key, place in system.places.items()}
                script = await asyncio.create_subprocess_exec(
                    *(sys.executable, str(_SCRIPTS / f"{_script(name)}.py"), target, str(seconds)),
                    env=environment | places | {"http_proxy": proxy, "HTTP_PROXY": proxy, "PASSWORD": _PASSWORD},
                    stdout=asyncio.subprocess.PIPE,
                )
                trouble = asyncio.create_task(_trouble(system, seconds))
                output, _ = await script.communicate()
                trouble.cancel()
                state = system.state()
    try:
        return json.loads(output), state, system.shown
    except ValueError:
        raise SidecarError(f"the script ended with {script.returncode} and no report") from None


async def _trouble(system: "System", seconds: float) -> None:
    """End the sessions again and again, and let somebody else log in once, at even distances."""
    acts = [system.kill] * 3 + [system.foreign_login] + [system.kill] * 2
    for act in acts:
        await asyncio.sleep(seconds / (len(acts) + 1))
        act()


def _script(name: str) -> str:
    return name.replace("-", "_")


def _haste(name: str, seconds: float) -> dict[str, Any]:
    """Return what an upstream needs that does not take deaths in quick succession for mistakes, or foreign logins."""
    from sidecar.settings.shipped import preset

    recipe = preset(name)
    if recipe.login.oauth2 is not None:
        return {"renew": {"min_interval": 0}}
    if recipe.sessions.per_account == "one":
        return {"recipe": {"extends": name, "sessions": {"stolen": {"within": seconds * _WITHIN}}}}
    return {}


def _configuration(name: str, system: "System", folder: Path, seconds: float) -> dict[str, Any]:
    secrets = {key: {"value": value} for key, value in system.secrets.items()}
    changes = _haste(name, seconds)
    way = {} if "recipe" in changes else {"preset": name}
    upstream = {
        "base_url": system.api_url,
        "tls": {"ca": str(system.ca_path)},
        "credential": system.credential | secrets,
    }
    return {
        "state_dir": str(folder),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {"plm": upstream | way | changes},
    }
