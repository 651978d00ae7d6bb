"""`python -m bench`: all contenders in one run, by turns; tables on the terminal, and in `results.md`."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from bench import report
from bench.contenders import envoy_binary, versions
from bench.figures import ENVOY
from bench.loads.order import LOADS
from bench.loads.soak import soak as run_soak
from bench.measuring import Outcome, measure
from bench.plan import FULL, QUICK, Effort, Load, Plan
from bench.programs import find, version
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.settings.values import parse_duration

_RESULTS = Path(__file__).with_name("results.md")
_NOTES = Path(__file__).with_name("notes.md")
_NAMES = [load.name for load in LOADS]
_WIDTH = 160  # of a log file
_NO_ENVOY = f"{ENVOY} took no part: it is not installed, or has no build for this platform."


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes, only to see that everything works.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"One load: {', '.join(_NAMES)}.")] = None,
    soak: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Only half load, for so long, such as 30m.")
    ] = None,
) -> None:
    """Measure the sidecar beside no proxy, stock mitmdump and Envoy.

    A whole run takes under 20 minutes and writes bench/results.md; so does --soak its own part of it. --quick and
    --only write nothing. Keep the machine quiet meanwhile.

    Example: python -m bench --only keepalive --only storm
    """
    if soak and (quick or only):
        raise ConfigurationError("--soak is a run of its own; expected it without --quick and --only")
    loads = [_soak_for(soak)] if soak else _chosen(only or [])
    for name in ("nginx", "wrk", "curl", "mitmdump"):
        find(name)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
    outcome, conditions = asyncio.run(_run(loads, QUICK if quick else FULL, console))
    if not quick and not only:
        text = conditions + "\n" + report.markdown(outcome.tables)
        page = report.page(_RESULTS, _NOTES, **{"soak" if soak else "run": text})
        _RESULTS.write_text(page, encoding="utf-8")
        console.print(f"written: {_RESULTS}")
    if outcome.failed:
        raise SidecarError(f"{outcome.failed} of {len(loads)} loads failed; the tables say which, and why")


async def _run(loads: Sequence[Load], effort: Effort, console: Console) -> tuple[Outcome, str]:
    envoy = envoy_binary()
    taking_part = versions() | {name: version(find(name), option) for name, option in (("nginx", "-v"), ("wrk", "-v"))}
    absent = [] if envoy else [_NO_ENVOY]
    conditions = report.conditions(taking_part, len(os.sched_getaffinity(0)), absent)
    console.print(conditions, markup=False)
    with tempfile.TemporaryDirectory(prefix="auth-sidecar-bench-") as folder:
        plan = Plan(effort, Path(folder), envoy, lambda text: console.print(f"  [dim]{text} ...[/dim]"))
        return await measure(plan, loads, console), conditions


def _chosen(names: Sequence[str]) -> list[Load]:
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise ConfigurationError(f"--only {unknown[0]} is no load; expected one of {', '.join(_NAMES)}")
    return [load for load in LOADS if not names or load.name in names]


def _soak_for(duration: str) -> Load:
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise ConfigurationError(f"--soak {duration}: {error}") from None
    return Load(
        name="soak",
        title=f"Soak: {duration} at half load",
        note="Half of the rate of c=16. Clients come, end each connection after 1 to 200 requests, and go.",
        reference="",
        run=partial(run_soak, seconds=seconds),
    )


def main() -> NoReturn:
    """Run the command line; exit 0, 1 when a load failed, 2 for bad usage. A goal that is not reached is no failure."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(bench)
    try:
        app(sys.argv[1:], standalone_mode=False, prog_name="python -m bench")
    except typer.TyperException as error:
        _complain(f"{error.format_message()} See --help.", 2)
    except (typer.Abort, KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    except SidecarError as error:
        _complain(str(error), 2 if isinstance(error, ConfigurationError) else 1)
    sys.exit(0)


def _complain(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"bench: {' '.join(message.split())}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
