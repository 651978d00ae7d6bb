"""What is found wrong, from when on, how badly, and until when."""

import re
from pathlib import Path

import pytest

from sidecar.errors import Reason
from sidecar.policy.diagnose import Cost, Costs, Severity, Standing, diagnose, refused

NOW = 1_700_000_000.0
ROWS = (Reason.CREDENTIAL_REJECTED, Reason.SEAT_TAKEN, Reason.QUOTA_EXHAUSTED, Reason.TOKEN_UNAVAILABLE)
PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def standing(reason: Reason | None = None, *, first: float = 0.0, last: float = 0.0, **more: object) -> Standing:
    costs: Costs = {} if reason is None else {reason: Cost(NOW - first, NOW - last, 3)}
    return Standing(**({"upstream": "arena", "state": "valid", "costs": costs} | more))  # type: ignore[arg-type]


def test_in_calm_nothing_is_found() -> None:
    """An upstream whose requests get through has no finding, whatever its credential is up to."""
    assert diagnose((standing(), standing(state="due"), standing(state="expired")), NOW) == ()


@pytest.mark.parametrize("reason", ROWS)
def test_each_row_says_what_it_cost_and_what_to_do(reason: Reason) -> None:
    """What, since when, what clients got, the other side's words, steps, and a heading of the runbook that is there."""
    (found,) = diagnose((standing(reason, first=10, failure="code 4001"),), NOW)
    assert (found.id, found.upstream, found.since, found.cause) == (reason.value, "arena", NOW - 10, "code 4001")
    assert re.match(rf"3 requests got 50[23] {reason.value}; ", found.effect)
    assert "arena" in found.what
    assert found.steps
    page, _, heading = found.runbook.partition("#")
    assert page == "docs/operations.md"
    assert re.search(rf"^#+ `?{heading}`?$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("reason", [reason for reason in ROWS if reason is not Reason.CREDENTIAL_REJECTED])
@pytest.mark.parametrize(("seconds", "severity"), [(29, Severity.TICKET), (30, Severity.PAGE)])
def test_half_a_minute_without_success_is_worth_a_call(reason: Reason, seconds: float, severity: Severity) -> None:
    """Before that it is a ticket: the next request may get through."""
    (found,) = diagnose((standing(reason, first=seconds),), NOW)
    assert found.severity is severity


def test_a_latch_is_worth_a_call_at_once() -> None:
    """Even before a request has run into it: nothing but a person helps."""
    (found,) = diagnose((standing(state="rejected", failed_at=NOW - 5, failure="invalid_client"),), NOW)
    assert (found.id, found.severity, found.since) == ("credential_rejected", Severity.PAGE, NOW - 5)
    assert found.effect.startswith("0 requests")
    (found,) = diagnose((standing(Reason.CREDENTIAL_REJECTED, first=1),), NOW)
    assert found.severity is Severity.PAGE


@pytest.mark.parametrize(("seconds", "count"), [(599, 1), (600, 0)])
def test_what_costs_nothing_any_more_is_forgotten(seconds: float, count: int) -> None:
    """Ten minutes after the last request that it cost a finding ends, though nothing got through."""
    assert len(diagnose((standing(Reason.SEAT_TAKEN, first=900, last=seconds),), NOW)) == count


def test_what_is_long_past_begins_anew() -> None:
    """A request that is refused an hour after the last one is the first of another trouble."""
    costs = refused({}, Reason.SEAT_TAKEN, 100.0)
    costs = refused(costs, Reason.SEAT_TAKEN, 110.0)
    assert costs == {Reason.SEAT_TAKEN: Cost(100.0, 110.0, 2)}
    assert refused(costs, Reason.SEAT_TAKEN, 710.0) == {Reason.SEAT_TAKEN: Cost(710.0, 710.0, 1)}
    assert refused(costs, Reason.QUOTA_EXHAUSTED, 120.0)[Reason.SEAT_TAKEN] == Cost(100.0, 110.0, 2)


def test_a_used_up_quota_says_until_when() -> None:
    """The reset is told while it is ahead; one that is past is told no more."""
    (found,) = diagnose((standing(Reason.QUOTA_EXHAUSTED, quota_until=NOW + 60),), NOW)
    assert found.until == NOW + 60
    (found,) = diagnose((standing(Reason.QUOTA_EXHAUSTED, quota_until=NOW - 1),), NOW)
    assert found.until is None


def test_the_worst_stands_first() -> None:
    """Then what began first; reasons without a row are left out."""
    several = (
        standing(Reason.SEAT_TAKEN, first=5, upstream="a"),
        standing(Reason.QUOTA_EXHAUSTED, first=20, upstream="b"),
        standing(Reason.TOKEN_UNAVAILABLE, first=40, upstream="c"),
        standing(Reason.NO_ROUTE, first=40, upstream="d"),
    )
    assert [found.upstream for found in diagnose(several, NOW)] == ["c", "b", "a"]
