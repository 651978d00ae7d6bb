"""The simulated day: what the page shows is what happens, and it is good enough."""

from pathlib import Path

import pytest

from tests.properties.day import BEGIN, END, LIFETIMES, Row, all_rows, markdown

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return all_rows()


def test_the_page_shows_the_day(rows: list[Row]) -> None:
    """The table is the simulation's; `python -m tests.properties.day` prints it."""
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == markdown(rows).strip()


def test_renewals_come_in_time(rows: list[Row]) -> None:
    """More than 99.9 % of the renewals that were due brought their token before the old one's end."""
    due, in_time = sum(row.due for row in rows), sum(row.in_time for row in rows)
    assert due > 200
    assert in_time > 0.999 * due


def test_the_script_hardly_sees_a_401(rows: list[Row]) -> None:
    """Fewer than 0.1 % of the answers, although tokens are revoked; what is seen is absorbed."""
    requests = sum(row.requests for row in rows)
    assert requests > 50_000
    assert sum(row.visible_401 for row in rows) < 0.001 * requests
    assert sum(row.refused for row in rows) < 0.001 * requests
    assert [row.name for row in rows if row.absorbed < row.seen_401 - row.visible_401 or row.absorbed == 0] == []


def test_the_day_is_a_bad_one(rows: list[Row]) -> None:
    """A day on which nothing failed would show nothing; each lifetime has one."""
    assert [row.name for row in rows] == list(LIFETIMES)
    assert sum(row.failed_calls for row in rows) > 10
    assert all(row.forced and row.seen_401 for row in rows)
