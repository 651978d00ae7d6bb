"""`auth-sidecar demo`: an unmodified script outlives its tokens, in front of everybody's eyes."""

import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.cli.demo_systems import play
from sidecar.errors import SidecarError
from sidecar.events import Event, Renewal, RequestDone

if TYPE_CHECKING:
    from sidecar.emulator import Emulator

_SCRIPT = Path(__file__).parents[1] / "emulator/scripts/oauth2.py"
_REVOKED_AFTER = 2
"""All tokens are revoked a quarter of a life after this renewal, so that the script meets a 401."""
_SCOPE = "supplier_mgmt offline_access"


def demo(
    seconds: Annotated[float, typer.Option(metavar="SECONDS", help="How long the script runs.")] = 20.0,
    lifetime: Annotated[float, typer.Option(metavar="SECONDS", help="How long a token lives.")] = 5.0,
    system: Annotated[str | None, typer.Option(metavar="PRESET", help="Another system's, by its preset.")] = None,
) -> None:
    """Run a script that knows nothing of tokens through several of their lives; exit 0 if it saw no failure.

    Starts a bundled PLM system (it also sends 429 and 503, and revokes every token once), the sidecar in front
    of it, and the script with HTTP_PROXY set.

    Example: auth-sidecar demo --seconds 60
    """
    if system is not None:
        play(system, seconds)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(f"tokens live {lifetime:g} s; the script runs {seconds:g} s and knows nothing of them ...")
    report, counters, events = asyncio.run(_play(seconds, lifetime))
    renewals = [event for event in events if isinstance(event, Renewal) and event.result == "ok"]
    requests = [event for event in events if isinstance(event, RequestDone)]
    table = Table(box=None, show_header=False)
    table.add_row("requests made by the script", str(report["requests"]))
    table.add_row("failures the script saw", str(report["failures"]))
    table.add_row("tokens issued", str(counters["tokens_issued"]))
    table.add_row("renewals", f"{len(renewals) - 1} ({_causes(renewals[1:])})")
    table.add_row("401s absorbed", str(counters["sent"].get(401, 0)))
    table.add_row("429s and 503s absorbed", str(counters["sent"].get(429, 0) + counters["sent"].get(503, 0)))
    table.add_row("retries", str(sum(event.retries for event in requests)))
    console.print(table)
    for failure in report["first_failures"]:
        console.print(f"failed: {failure}")
    if report["failures"] or len(renewals) < 3:  # noqa: PLR2004  the first token and two renewals
        raise SidecarError("the demo did not show what it should: expected no failure and at least two renewals")


def _causes(renewals: list[Renewal]) -> str:
    counted = Counter(event.trigger for event in renewals)
    words = {"due": "ahead of expiry", "unauthorized": "after a 401", "demand": "on demand"}
    return ", ".join(f"{number} {words.get(cause, cause)}" for cause, number in counted.items()) or "none"


async def _play(seconds: float, lifetime: float) -> tuple[dict[str, Any], dict[str, Any], list[Event]]:
    from sidecar.clock import SystemClock
    from sidecar.emulator import Emulator, Switches
    from sidecar.run.running import running
    from sidecar.settings import Settings

    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if sum(isinstance(earlier, Renewal) for earlier in events) == _REVOKED_AFTER and isinstance(event, Renewal):
            loop.call_later(lifetime / 4, plm.revoke_all)

    switches = Switches(lifetime=lifetime, supplier_lifetime=lifetime, every_429=60, every_503=85)
    with tempfile.TemporaryDirectory(prefix="auth-sidecar-demo-") as folder:
        async with Emulator.start(switches=switches) as plm:
            settings = Settings.model_validate(_configuration(plm, Path(folder)))
            async with running(settings, clock=SystemClock(), emit=note) as app:
                target = plm.base_url.replace("https://", "http://", 1)
                script = await _start_script(target, seconds, app.addresses["proxy"])
                output, _ = await script.communicate()
            counters = {"tokens_issued": plm.counters.tokens_issued, "sent": plm.counters.sent}
    try:
        return json.loads(output), counters, events
    except ValueError:
        raise SidecarError(f"the script ended with {script.returncode} and no report") from None


def _configuration(plm: "Emulator", folder: Path) -> dict[str, Any]:
    return {
        "state_dir": str(folder),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {
            "plm": {
                "base_url": plm.base_url,
                "tls": {"ca": str(plm.ca_path)},
                "oauth2": {
                    "token_url": plm.token_url,
                    "client_id": plm.client_id,
                    "client_secret": {"value": plm.client_secret},
                    "scope": _SCOPE,
                },
            }
        },
    }


async def _start_script(target: str, seconds: float, proxy: str) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(_SCRIPT),
        target,
        str(seconds),
        env=environment | {"http_proxy": f"http://{proxy}", "HTTP_PROXY": f"http://{proxy}"},
        stdout=asyncio.subprocess.PIPE,
    )
