"""The decision tables as data: what the tests try and what docs/how-it-works.md shows are the same rows.

`python -m tests.unit.decision_table` prints the Markdown that belongs between the markers of that page.
"""

from dataclasses import dataclass
from typing import Any

from sidecar.policy.attempt import Attempt
from sidecar.policy.decide import Backoff, Decision, Pass, Past, Renew, Told
from sidecar.policy.reading import Sign

BEGIN = "<!-- decision table -->"
END = "<!-- end of decision table -->"
TOLD_BEGIN = "<!-- told table -->"
TOLD_END = "<!-- end of told table -->"

JITTER = 0.5  # with it, the wait after attempt n is base * 2**n / 2

SAFE: tuple[dict[str, Any], ...] = tuple({"method": method} for method in ("GET", "HEAD", "OPTIONS"))
METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    "repeatable": (
        *SAFE,
        *({"method": method, "conditional": True} for method in ("GET", "HEAD")),
        {"method": "PUT"},
        *({"method": method, "keyed": True} for method in ("POST", "PATCH", "DELETE", "get")),
        {"method": "POST", "repeats": True},
    ),
    "conditional": (
        {"method": "PUT", "conditional": True},
        {"method": "PATCH", "conditional": True, "keyed": True},
    ),
    "other": (
        *({"method": method} for method in ("POST", "PATCH", "DELETE", "MERGE", "get", "")),
        {"method": "PUT", "repeats": False},
    ),
    "safe": SAFE,
    "writes": tuple({"method": method} for method in ("PUT", "POST", "PATCH", "DELETE", "MERGE")),
}
METHODS["any"] = METHODS["repeatable"] + METHODS["conditional"] + METHODS["other"]


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


@dataclass(frozen=True, slots=True)
class ToldRow:
    """What a last attempt brought, what the attempts before left, and what is told, in words; then as values.

    *stopped*: why the attempt that was decided on could not be made; each of them, empty when none was decided on.
    """

    brought: str
    before: str
    method: str
    told: str
    attempts: tuple[dict[str, Any], ...]
    pasts: tuple[Past, ...]
    expected: Told
    stopped: tuple[str, ...] = ("",)

    def cases(self) -> list[tuple[Attempt, Past, str]]:
        """Return every attempt that the row speaks of, what it followed, and why there is no other."""
        return [
            (Attempt(**{"status": None} | attempt | method), past, stopped)
            for attempt in self.attempts
            for past in self.pasts
            for stopped in self.stopped
            for method in METHODS[self.method]
        ]


NOTHING_SENT = {"sent": False}
CUT_OFF = {"sent": True}
TIMED_OUT = {"sent": True, "timeout": True}
INVALID = {"sent": True, "invalid": True}
STALE = {"sent": True, "stale": True}
EXPIRED = {"status": 401, "sign": Sign.EXPIRED}
SESSION = EXPIRED | {"session": True}
MISDIRECTED = ({"status": 421}, {"status": 425})
CONFIGURED = ({"status": 502}, {"status": 503}, {"status": 504})

ROWS = (
    Row(
        "the address may not be connected to", "any", "pass", (NOTHING_SENT | {"prohibited": True},), Pass("prohibited")
    ),
    Row(
        "no connection, or none in time: nothing was sent",
        "any",
        "back off",
        (NOTHING_SENT, NOTHING_SENT | {"timeout": True}),
        Backoff(0.1, "connect"),
    ),
    Row("an answer that cannot be passed on", "any", "pass", (INVALID, INVALID | {"stale": True}), Pass("invalid")),
    Row("sent, and ended by a time-out of ours", "any", "pass", (TIMED_OUT,), Pass("timeout")),
    Row(
        "a pooled connection was closed before any answer, first attempt",
        "repeatable",
        "again at once",
        (STALE, STALE | {"renewals": 1}, STALE | {"budget": False}, STALE | {"closed": False}),
        Backoff(0.0, "stale", fresh=True),
    ),
    Row(
        "a pooled connection was closed before any answer, later attempt",
        "repeatable",
        "back off",
        (STALE | {"attempts": 2},),
        Backoff(0.2, "failure"),
    ),
    Row(
        "sent, and no answer: reset, end of stream",
        "repeatable",
        "back off",
        (CUT_OFF,),
        Backoff(0.1, "failure"),
    ),
    Row(
        "sent, and no answer, a pooled connection or not", "conditional", "pass", (CUT_OFF, STALE), Pass("conditional")
    ),
    Row("sent, and no answer, a pooled connection or not", "other", "pass", (CUT_OFF, STALE), Pass("method")),
    Row(
        "`expired`, whatever the status; no renewal yet",
        "any",
        "renew",
        (
            EXPIRED,
            EXPIRED | {"attempts": 3},
            EXPIRED | {"budget": False, "closed": False},
            *(EXPIRED | {"status": status} for status in (200, 302, 403, 404, 429, 500, 503)),
        ),
        Renew(),
    ),
    Row("`expired` after a renewal", "any", "pass", (EXPIRED | {"renewals": 1},), Pass("renewed")),
    Row(
        "`expired` of a session, and a newer one is here, up to three times",
        "any",
        "renew",
        (SESSION | {"newer": True}, SESSION | {"newer": True, "renewals": 2, "replays": 2}),
        Renew(held=True),
    ),
    Row(
        "`expired` of a session after one renewal",
        "any",
        "renew",
        (SESSION | {"renewals": 1}, SESSION | {"renewals": 1, "newer": True, "replays": 3}),
        Renew(),
    ),
    Row("`expired` of a session after two renewals", "any", "pass", (SESSION | {"renewals": 2},), Pass("renewed")),
    Row("`throttled`", "any", "back off", ({"status": 200, "sign": Sign.THROTTLED},), Backoff(0.1, "200")),
    Row(
        "`scope`, `foreign`, `exhausted`, `rejected`",
        "any",
        "pass",
        tuple(
            {"status": status, "sign": sign}
            for sign in (Sign.SCOPE, Sign.FOREIGN, Sign.EXHAUSTED, Sign.REJECTED)
            for status in (200, 401, 403, 429, 503)
        ),
        Pass("sign"),
    ),
    Row("403", "any", "pass", ({"status": 403},), Pass("answer")),
    Row(
        "421, 425 where `retry.unapplied` has them, first attempt",
        "any",
        "back off",
        (MISDIRECTED[0],),
        Backoff(0.1, "421", fresh=True),
    ),
    Row(
        "421, 425 where `retry.unapplied` has them, later attempt",
        "any",
        "pass",
        tuple(answer | {"attempts": 2} for answer in MISDIRECTED),
        Pass("repeated"),
    ),
    Row("429: the others of `retry.unapplied`", "any", "back off", ({"status": 429},), Backoff(0.1, "429")),
    Row("502, 503, 504: those of `retry.statuses`", "repeatable", "back off", (CONFIGURED[0],), Backoff(0.1, "502")),
    Row("502, 503, 504: those of `retry.statuses`", "conditional", "pass", CONFIGURED, Pass("conditional")),
    Row("502, 503, 504: those of `retry.statuses`", "other", "pass", CONFIGURED, Pass("method")),
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
"""In the order of `decide`: a row speaks of what the rows above have left. What is told is not looked at here."""

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
        tuple(answer | {"replayable": False} for answer in (*MISDIRECTED, EXPIRED, SESSION, SESSION | {"newer": True})),
        Pass("not_replayable"),
    ),
    Row(
        "back off, but `Retry-After` is over `retry.max_retry_after`",
        "any",
        "pass",
        tuple(answer | {"retry_after": seconds} for answer in MISDIRECTED for seconds in (30.1, 1e12, float("inf"))),
        Pass("retry_after"),
    ),
    Row(
        "back off, but the breaker is not closed",
        "any",
        "pass",
        ({"status": 429, "closed": False}, NOTHING_SENT | {"closed": False, "budget": False}),
        Pass("circuit_open"),
    ),
    Row(
        "back off, but the budget of retries is used up",
        "any",
        "pass",
        ({"status": 429, "budget": False}, NOTHING_SENT | {"budget": False}),
        Pass("budget"),
    ),
)
"""What turns `back off` into `pass`; the body turns `renew` as well."""

_NONE = Past()
_LOST = Past(None, unknown=True)
_OPEN = Past(504, unknown=True)
_SAID = Past(503)
_STOPS = ("circuit_open", "token_unavailable", "not_renewed")
_REFUSED = tuple(
    {"status": status, "sign": sign} for status in (200, 401, 500) for sign in Sign if sign is not Sign.FINE
)
_DENIALS = (*({"status": status} for status in (400, 404, 409, 412, 421, 425, 429, 503)), *_REFUSED)
_DONE = tuple({"status": status} for status in (200, 204, 302, 304))
_OPEN_ANSWERS = tuple({"status": status} for status in (500, 502, 504))

TOLD = (
    ToldRow("an answer", "anything", "safe", "that answer", (*_DONE, *_DENIALS), (_NONE, _SAID), Told.THIS),
    ToldRow("no answer", "an answer", "safe", "the answer before", (CUT_OFF, NOTHING_SENT), (_SAID,), Told.EARLIER),
    ToldRow(
        "no answer",
        "none, or `expired`, 421 or 425",
        "safe",
        "502 or 504",
        (CUT_OFF, NOTHING_SENT, TIMED_OUT, INVALID),
        (_NONE,),
        Told.THIS,
    ),
    ToldRow("an answer under 400", "anything", "writes", "that answer", _DONE, (_NONE, _SAID, _LOST, _OPEN), Told.THIS),
    ToldRow(
        "a 5xx other than 503",
        "anything",
        "writes",
        "that answer",
        _OPEN_ANSWERS,
        (_NONE, _SAID, _LOST, _OPEN),
        Told.THIS,
    ),
    ToldRow(
        "a 4xx or 503, or another sign than `fine`: nothing was done",
        "no attempt that may have been applied",
        "writes",
        "that answer",
        _DENIALS,
        (_NONE, _SAID),
        Told.THIS,
        ("", *_STOPS),
    ),
    ToldRow(
        "a 4xx or 503, or another sign than `fine`: nothing was done",
        "an attempt that may have been applied",
        "writes",
        "502, outcome unknown",
        _DENIALS,
        (_LOST, _OPEN),
        Told.UNKNOWN,
        ("", *_STOPS, "shutting_down"),
    ),
    ToldRow(
        "sent, and no answer",
        "anything",
        "writes",
        "502 or 504, outcome unknown",
        (CUT_OFF, TIMED_OUT, INVALID, STALE),
        (_NONE, _SAID, _LOST, _OPEN),
        Told.UNKNOWN,
        ("", *_STOPS, "shutting_down"),
    ),
    ToldRow(
        "nothing was sent",
        "an answer, and nothing sent since",
        "writes",
        "the answer before",
        (NOTHING_SENT,),
        (_SAID, _OPEN),
        Told.EARLIER,
        ("", *_STOPS),
    ),
    ToldRow(
        "nothing was sent",
        "an attempt that may have been applied, and no answer since",
        "writes",
        "502 or 504, outcome unknown",
        (NOTHING_SENT,),
        (_LOST,),
        Told.UNKNOWN,
        ("", *_STOPS, "shutting_down"),
    ),
    ToldRow("nothing was sent", "nothing", "writes", "502 or 504", (NOTHING_SENT,), (_NONE,), Told.THIS),
    ToldRow(
        "no answer, and the next attempt could not be made",
        "nothing",
        "safe",
        "why not",
        (CUT_OFF, NOTHING_SENT),
        (_NONE,),
        Told.REFUSAL,
        _STOPS,
    ),
    ToldRow(
        "a session that is dead, with a status under 400",
        "no attempt that may have been applied",
        "any",
        "why not, 503 if nothing else",
        (SESSION | {"status": 200}, SESSION | {"status": 302}),
        (_NONE,),
        Told.REFUSAL,
        ("", *_STOPS),
    ),
    ToldRow(
        "a session that is dead, and why there is no newer one",
        "no attempt that may have been applied",
        "any",
        "why not",
        (SESSION, SESSION | {"status": 500}),
        (_NONE,),
        Told.REFUSAL,
        ("credential_rejected", "seat_taken", "token_unavailable"),
    ),
    ToldRow(
        "a session that is dead, when all was tried",
        "no attempt that may have been applied",
        "any",
        "that answer",
        (SESSION, SESSION | {"status": 500}),
        (_NONE,),
        Told.THIS,
        ("", "not_renewed"),
    ),
    ToldRow(
        "nothing was done, and the sidecar stops",
        "no attempt that may have been applied",
        "writes",
        "503 `shutting_down`",
        (*_DENIALS, NOTHING_SENT),
        (_NONE, _SAID),
        Told.REFUSAL,
        ("shutting_down",),
    ),
    ToldRow(
        "anything, and the sidecar stops",
        "anything",
        "safe",
        "503 `shutting_down`",
        (*_DENIALS, *_OPEN_ANSWERS, CUT_OFF, NOTHING_SENT),
        (_NONE, _SAID),
        Told.REFUSAL,
        ("shutting_down",),
    ),
)
"""What is told when nothing more is tried, because nothing is decided on or because that could not be done."""


def markdown() -> str:
    """Return the table of decisions for the page, with a line end."""
    lines = ["| event | method | decision |", "|---|---|---|"]
    lines += [f"| {row.event} | {row.method} | {row.decision} |" for row in (*ROWS, *LIMITS)]
    return "\n".join(lines) + "\n"


def told_markdown() -> str:
    """Return the table of what is told for the page, with a line end."""
    lines = ["| the last attempt brought | before it | method | the script is told |", "|---|---|---|---|"]
    lines += [f"| {row.brought} | {row.before} | {row.method} | {row.told} |" for row in TOLD]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown())
    print(told_markdown(), end="")
