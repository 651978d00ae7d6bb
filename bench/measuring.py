"""A run from its start to its end: loads in order, each shown as it ends; one that fails takes no other along."""

import contextlib
import signal
from asyncio import current_task, get_running_loop
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console

from bench import report
from bench.figures import Figures, Sample
from bench.plan import Load, Plan
from sidecar.errors import SidecarError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found: tables in order, the goals first, and how many loads failed."""

    tables: list[report.Table]
    failed: int


async def measure(plan: Plan, loads: Sequence[Load], console: Console) -> Outcome:
    """Run *loads*, and show each table as it is known. SIGTERM ends it, and all that it started."""
    samples: list[Sample] = []
    tables, failed = [], 0
    with _ended_by(signal.SIGTERM):
        for load in loads:
            found, failure = await collect(load.run(plan))
            samples += found
            failed += bool(failure)
            if failure:
                console.print(f"{load.name} failed: {failure}", markup=False)
            tables.append(report.load_table(load, Figures(tuple(found)), failure))
            console.print(report.rich_table(tables[-1]))
    goals = report.goal_table(Figures(tuple(samples)), [load.name for load in loads])
    console.print(report.rich_table(goals))
    return Outcome([goals, *tables], failed)


async def collect(load: AsyncGenerator[Sample]) -> tuple[list[Sample], str]:
    """Return what a load gave, and what ended it too early, if anything did; all that it started has ended then."""
    found: list[Sample] = []
    try:
        async with contextlib.aclosing(load):
            async for sample in load:
                found.append(sample)  # noqa: PERF401  what came before a failure is kept
    except (SidecarError, OSError, ExceptionGroup) as error:
        return found, _why(error)
    return found, ""


def _why(error: Exception) -> str:
    """Return the one line of an error; a fault of the bench itself is raised again."""
    if isinstance(error, ExceptionGroup):
        _, rest = error.split((SidecarError, OSError))
        if rest is not None:
            raise error
        return _why(error.exceptions[0])
    return " ".join(f"{error}".split()) or type(error).__name__


@contextlib.contextmanager
def _ended_by(number: signal.Signals) -> Iterator[None]:
    """Cancel the current task on a signal, so that no program stays behind."""
    loop, task = get_running_loop(), current_task()
    if task is not None:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(number)
