"""What is wrong, and what to do: from what is known of the upstreams to findings in words. Pure.

Times are wall seconds. A finding begins with the first request that it cost, and ends with the next one that gets
through, or after ten minutes in which it cost none. Its rows are those of docs/operations.md, "What is wrong".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sidecar.errors import REASONS, Reason

_FORGOTTEN = 600.0
_PAGE = 30.0
"""Seconds in which nothing got through, from when on somebody is to be called."""


class Severity(StrEnum):
    """Who is to look: somebody now, somebody in working hours, nobody."""

    PAGE = "page"
    TICKET = "ticket"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do; *command* None: none does it."""

    text: str
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with an *upstream*, as contract and page show it.

    *since* and *until*: when it began, and when it ends by itself, None: nobody knows. *effect*: what clients got.
    *cause*: in the other side's words, empty when it said nothing. *runbook*: a heading of docs/operations.md.
    """

    id: str
    severity: Severity
    upstream: str
    what: str
    since: float
    until: float | None
    effect: str
    cause: str
    steps: tuple[Step, ...]
    runbook: str


@dataclass(frozen=True, slots=True)
class Cost:
    """The requests that one trouble cost: when the *first* and the *last* of them ended, and how many they are."""

    first: float
    last: float
    count: int = 1


Costs = Mapping[Reason, Cost]
"""What each trouble of one upstream has cost since the last request that got through."""


def refused(costs: Costs, reason: Reason, now: float) -> Costs:
    """Return *costs* after a request that was refused for *reason*; what is long past is begun anew."""
    before = costs.get(reason)
    if before is None or now - before.last >= _FORGOTTEN:
        return {**costs, reason: Cost(now, now)}
    return {**costs, reason: replace(before, last=now, count=before.count + 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of one *upstream*: the *state* of its credential, and what the last call that failed was told.

    *failed_at*: when that was. *quota_until*: the end of its used up quota, None or past: it is not.
    """

    upstream: str
    state: str
    failure: str = ""
    failed_at: float | None = None
    quota_until: float | None = None
    costs: Costs = field(default_factory=dict)


def diagnose(standings: tuple[Standing, ...], now: float) -> tuple[Finding, ...]:
    """Return what is wrong, the worst first; empty in calm."""
    found = [finding for standing in standings for finding in _of(standing, now)]
    return tuple(sorted(found, key=lambda finding: (finding.severity is not Severity.PAGE, finding.since)))


def _of(standing: Standing, now: float) -> list[Finding]:
    costs = {reason: cost for reason, cost in standing.costs.items() if now - cost.last < _FORGOTTEN}
    if standing.state == "rejected" and Reason.CREDENTIAL_REJECTED not in costs:
        # A latch is worth a call before a request runs into it.
        since = now if standing.failed_at is None else standing.failed_at
        costs[Reason.CREDENTIAL_REJECTED] = Cost(since, since, 0)
    return [_ROWS[reason](standing, cost, now) for reason, cost in costs.items() if reason in _ROWS]


def _rejected(standing: Standing, cost: Cost, now: float) -> Finding:
    name = standing.upstream
    return _finding(
        *(Reason.CREDENTIAL_REJECTED, standing, cost, now),
        what=f"The credential of {name} was refused; it is not shown again, so that no account is locked.",
        latch=True,
        steps=(
            Step(f"Set the right secret where upstreams.{name} takes it from; it is tried as soon as it changes."),
            Step("Or, when it was right and was mended on the other side, have it tried again.", _renew(name)),
        ),
    )


def _seat(standing: Standing, cost: Cost, now: float) -> Finding:
    name = standing.upstream
    return _finding(
        *(Reason.SEAT_TAKEN, standing, cost, now),
        what=f"The account of {name} has one session, and another login keeps taking it.",
        steps=(
            Step("Find who else logs in with this account, a person's browser or another script, and end that."),
            Step("Give the sidecar an account of its own."),
            Step("Then take the session back at once.", _renew(name)),
        ),
    )


def _quota(standing: Standing, cost: Cost, now: float) -> Finding:
    return _finding(
        *(Reason.QUOTA_EXHAUSTED, standing, cost, now),
        what=f"The quota of {standing.upstream} is used up; nothing is sent there before it is reset.",
        until=standing.quota_until,
        steps=(
            Step("Wait for the reset, or ask the vendor for a larger quota."),
            Step("See which scripts use it: the log names method and path of each request."),
        ),
    )


def _issuer(standing: Standing, cost: Cost, now: float) -> Finding:
    name = standing.upstream
    return _finding(
        *(Reason.TOKEN_UNAVAILABLE, standing, cost, now),
        what=f"There is no usable credential for {name}, and none could be had.",
        steps=(
            Step("See what the last attempt was told.", f"auth-sidecar token show {name}"),
            Step("See whether its login answers from this machine, and whether the store does."),
            Step("Once it does, nothing need be done; this tries at once.", _renew(name)),
        ),
    )


_ROWS = {
    Reason.CREDENTIAL_REJECTED: _rejected,
    Reason.SEAT_TAKEN: _seat,
    Reason.QUOTA_EXHAUSTED: _quota,
    Reason.TOKEN_UNAVAILABLE: _issuer,
}


def _finding(
    reason: Reason,
    standing: Standing,
    cost: Cost,
    now: float,
    *,
    what: str,
    steps: tuple[Step, ...],
    until: float | None = None,
    latch: bool = False,
) -> Finding:
    plural = "" if cost.count == 1 else "s"
    return Finding(
        id=reason.value,
        severity=Severity.PAGE if latch or now - cost.first >= _PAGE else Severity.TICKET,
        upstream=standing.upstream,
        what=what,
        since=cost.first,
        until=until if until is None or until > now else None,
        effect=f"{cost.count} request{plural} got {REASONS[reason].status} {reason.value}; none has got through since",
        cause=standing.failure,
        steps=steps,
        runbook=f"docs/operations.md#{reason.value}",
    )


def _renew(name: str) -> str:
    return f"auth-sidecar token renew {name}"
