"""The decision table as data: what the tests try and what docs/how-it-works.md shows are the same rows.

`python -m tests.unit.decision_table` prints the Markdown that belongs between the two markers of that page.
"""

from dataclasses import dataclass
from typing import Any

from sidecar.policy.classify import Challenge
from sidecar.policy.decide import Attempt, Backoff, Decision, Pass, Renew

BEGIN = "<!-- decision table -->"
END = "<!-- end of decision table -->"

JITTER = 0.5  # with it, the wait after attempt n is base * 2**n / 2

METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    "idempotent": (
        *({"method": method} for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")),
        *({"method": method, "keyed": True} for method in ("POST", "PATCH", "get")),
    ),
    "other": tuple({"method": method} for method in ("POST", "PATCH", "MERGE", "TRACE", "get", "")),
}
METHODS["any"] = METHODS["idempotent"] + METHODS["other"]


@dataclass(frozen=True, slots=True)
class Row:
    """What happened, to which methods, and what is decided, in words; then the same as values.

    *attempts*: what an Attempt is made of, without the method; each of them leads to *expected*.
    """

    event: str
    method: str
    decision: str
    attempts: tuple[dict[str, Any], ...]
    expected: Decision

    def cases(self) -> list[Attempt]:
        """Return every attempt that the row speaks of."""
        return [
            Attempt(**{"status": None} | attempt | method)
            for attempt in self.attempts
            for method in METHODS[self.method]
        ]


NOTHING_SENT = {"sent": False}
CUT_OFF = {"sent": True}
STALE = {"sent": True, "stale": True}
FIRST_401 = {"status": 401, "challenge": Challenge.TOKEN}
UNAPPLIED = ({"status": 421}, {"status": 425})
CONFIGURED = ({"status": 429}, {"status": 502}, {"status": 503}, {"status": 504})

ROWS = (
    Row(
        "the address may not be connected to", "any", "pass", (NOTHING_SENT | {"prohibited": True},), Pass("prohibited")
    ),
    Row("no connection: nothing was sent", "any", "back off", (NOTHING_SENT,), Backoff(0.1, "connect")),
    Row(
        "a pooled connection was closed before any answer, first attempt",
        "idempotent",
        "again at once",
        (STALE, STALE | {"renewals": 1}),
        Backoff(0.0, "stale", fresh=True),
    ),
    Row(
        "a pooled connection was closed before any answer, later attempt",
        "idempotent",
        "back off",
        (STALE | {"attempts": 2},),
        Backoff(0.2, "failure"),
    ),
    Row(
        "a pooled connection was closed before any answer",
        "other",
        "pass",
        (STALE, STALE | {"attempts": 2}),
        Pass("not_idempotent"),
    ),
    Row(
        "sent, and no answer: reset, end of stream, time-out",
        "idempotent",
        "back off",
        (CUT_OFF,),
        Backoff(0.1, "failure"),
    ),
    Row("sent, and no answer: reset, end of stream, time-out", "other", "pass", (CUT_OFF,), Pass("not_idempotent")),
    Row(
        "401 with a Bearer challenge, with none, or with one that cannot be read; no renewal yet",
        "any",
        "renew",
        (FIRST_401, FIRST_401 | {"attempts": 3}, FIRST_401 | {"deadline_left": 0.0}),
        Renew(),
    ),
    Row("such a 401 after a renewal", "any", "pass", (FIRST_401 | {"renewals": 1},), Pass("renewed")),
    Row(
        "401 with `insufficient_scope`, or with other schemes only: Basic, Digest, Negotiate, DPoP",
        "any",
        "pass",
        ({"status": 401, "challenge": Challenge.SCOPE}, {"status": 401, "challenge": Challenge.FOREIGN}),
        Pass("challenge"),
    ),
    Row("403", "any", "pass", ({"status": 403},), Pass("answer")),
    Row("421, 425, first attempt", "any", "back off", (UNAPPLIED[0],), Backoff(0.1, "421", fresh=True)),
    Row(
        "421, 425, later attempt",
        "any",
        "pass",
        tuple(answer | {"attempts": 2} for answer in UNAPPLIED),
        Pass("repeated"),
    ),
    Row(
        "429, 502, 503, 504: those of `retry.statuses`", "idempotent", "back off", (CONFIGURED[0],), Backoff(0.1, "429")
    ),
    Row("429, 502, 503, 504: those of `retry.statuses`", "other", "pass", CONFIGURED, Pass("not_idempotent")),
    Row(
        "500, 501 and other 5xx",
        "any",
        "pass",
        tuple({"status": status} for status in (500, 501, 505, 507, 511, 599)),
        Pass("answer"),
    ),
    Row(
        "any other status",
        "any",
        "pass",
        tuple(
            {"status": status} for status in (200, 201, 204, 206, 301, 304, 307, 400, 404, 408, 409, 413, 423, 426, 499)
        ),
        Pass("answer"),
    ),
)
"""In the order of `decide`: a row speaks of what the rows above have left."""

LIMITS = (
    Row(
        "back off, but `retry.attempts` are used up",
        "any",
        "pass",
        (NOTHING_SENT | {"attempts": 3}, NOTHING_SENT | {"attempts": 4}),
        Pass("attempts"),
    ),
    Row(
        "back off or renew, but something was sent and the body was not kept",
        "any",
        "pass",
        tuple(answer | {"replayable": False} for answer in (*UNAPPLIED, FIRST_401)),
        Pass("not_replayable"),
    ),
    Row(
        "back off, but `Retry-After` is over `retry.max_retry_after`",
        "any",
        "pass",
        tuple(answer | {"retry_after": seconds} for answer in UNAPPLIED for seconds in (30.1, 1e12, float("inf"))),
        Pass("retry_after"),
    ),
    Row(
        "back off, but the wait does not fit into `timeout.total`",
        "any",
        "pass",
        (
            NOTHING_SENT | {"deadline_left": 0.1},
            NOTHING_SENT | {"deadline_left": -1.0},
            UNAPPLIED[0] | {"retry_after": 30.0, "deadline_left": 30.0},
        ),
        Pass("deadline"),
    ),
)
"""What turns `back off` into `pass`; the body turns `renew` as well."""


def markdown() -> str:
    """Return the table for the page, with a line end."""
    lines = ["| event | method | decision |", "|---|---|---|"]
    lines += [f"| {row.event} | {row.method} | {row.decision} |" for row in (*ROWS, *LIMITS)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
