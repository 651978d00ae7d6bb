"""Figures as tables, for the terminal and for `results.md`; which goals were reached."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as Rich

from bench.figures import Figures, in_order, ratio
from bench.goals import GOALS, Goal
from bench.plan import Load

_PART = re.compile(r"^<!-- part: (\w+) -->\n", re.MULTILINE)
_HEAD = """\
# What the bench measured

`make bench` writes this file; edit `bench/notes.md` instead. All contenders took turns on the same upstream, under the
same load, in one run. A figure is the median of its rounds; in brackets, how many times the reference it is. Ratios
are what counts: the rest depends on the machine.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, what to know before reading, and cells of text."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def load_table(load: Load, figures: Figures, failure: str = "") -> Table:
    """Return the medians under one load, a row per case and contender; *failure*: what ended it too early."""
    found = figures.under(load.name)
    measured = in_order(sample.what for sample in found.samples)
    rows = [
        [case, who, *(_cell(found, case, who, what, load.reference) for what in measured)]
        for case, who in dict.fromkeys((sample.case, sample.who) for sample in found.samples)
    ]
    notes = [
        load.note,
        f"In brackets: times {load.reference}." if load.reference else "",
        failure and f"Failed: {failure}",
    ]
    return Table(load.title, " ".join(filter(None, notes)), ["case", "who", *measured], rows)


def goal_table(figures: Figures, loads: Iterable[str]) -> Table:
    """Return the goals of some loads: what was asked for, what it is, reached or not."""
    names = list(loads)
    rows = [_goal_row(goal, figures) for goal in GOALS if goal.load in names]
    return Table(
        "Goals" if len(names) > 1 else f"Goals: {names[0]}", "", ["load", "goal", "limit", "measured", "verdict"], rows
    )


def number(value: float) -> str:
    """Return three or more digits, and never an exponent."""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2  # noqa: PLR2004
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or not value else f"{value:.3f}"  # noqa: PLR2004


def rich_table(table: Table) -> Rich:
    """Return a table for the terminal."""
    drawn = Rich(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
    for name in table.columns:
        drawn.add_column(name, overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def markdown(tables: Iterable[Table]) -> str:
    """Return tables as a part of a page."""
    return "\n".join(line for table in tables for line in _markdown(table))


def conditions(versions: Mapping[str, str], cores: int, absent: Sequence[str]) -> str:
    """Return who took part, and on how many cores; *absent*: what to say of those who could not."""
    taking_part = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([f"{cores} cores; {taking_part}.", *absent, ""])


def page(file: Path, notes: Path, **parts: str) -> str:
    """Return `results.md` with its parts `run` or `soak` written anew; the other one is kept, notes come last."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    _, *found = _PART.split(text)
    kept = dict(zip(found[::2], found[1::2], strict=True)) | parts
    kept["notes"] = f"## Notes\n\n{notes.read_text(encoding='utf-8')}" if notes.exists() else ""
    bodies = (f"<!-- part: {name} -->\n\n{kept[name].strip()}\n" for name in ("run", "soak", "notes") if kept.get(name))
    return "\n".join([_HEAD, *bodies])


def _cell(figures: Figures, case: str, who: str, what: str, reference: str) -> str:
    value = figures.median(case, who, what)
    if value is None:
        return ""
    times = ratio(value, figures.median(case, reference, what)) if who != reference else None
    return number(value) if times is None else f"{number(value)} ({number(times)} x)"


def _goal_row(goal: Goal, figures: Figures) -> list[str]:
    value = goal.value(figures)
    sign = ">=" if goal.at_least else "<="
    verdict = {None: "not measured", True: "reached", False: "**not reached**"}[goal.reached(figures)]
    measured = "" if value is None else number(value)
    return [goal.load, goal.about, f"{sign} {number(goal.limit)} {goal.unit}".strip(), measured, verdict]


def _markdown(table: Table) -> Iterator[str]:
    yield from (f"## {table.title}", "")
    if table.note:
        yield from (table.note, "")
    if table.rows:
        yield f"| {' | '.join(table.columns)} |"
        yield f"|{'---|' * len(table.columns)}"
    for row in table.rows:
        yield f"| {' | '.join(row)} |"
    yield ""
