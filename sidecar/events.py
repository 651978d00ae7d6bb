"""What happened, as frozen facts: the parts report them through one function, logs and status read them.

No event carries a secret, a header value, a query or a body.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The listeners are open; *addresses* maps `proxy`, `admin` and upstream names to what was bound."""

    addresses: dict[str, str]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """A call to an issuer ended.

    *trigger*: start, due, demand (no usable token), unauthorized (a 401), forced (an operator). *result*: ok,
    rejected, unavailable. *grant* is the OAuth grant that gave the token; *detail* a cause without secrets.
    """

    upstream: str
    trigger: str
    result: str
    seconds: float
    generation: int = 0
    lifetime: float = 0.0
    grant: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeDiffers:
    """The issuer grants another lifetime than is configured; reported once per pair of numbers, in seconds."""

    upstream: str
    configured: float
    granted: float
    source: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeNarrower:
    """The issuer *granted* a narrower scope than was asked for; told once for what is *missing*."""

    upstream: str
    granted: str
    missing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDone:
    """One request of a client ended; *outcome* is `passed`, a Reason, or `client_gone`; *path* has no query.

    *overhead*: seconds of our own work on it, None when not measured. *verdicts*: what was decided after each
    attempt: `pass`, `fail` (no answer that could be passed on), `renew`, or the cause of a retry (a status, connect,
    stale or reset). *unauthorized*: how many attempts were told that the credential did not do; *visible*: the
    client was told so too. *refused*: why an outcome that calls for a retry or a
    newer token got none, empty when none did. *applied*: `unknown` when the client was told so, else empty.
    """

    upstream: str
    method: str
    path: str
    status: int
    outcome: str
    attempts: int
    renewals: int
    retries: int
    seconds: float
    overhead: float | None
    verdicts: tuple[str, ...]
    unauthorized: int
    visible: bool
    refused: str
    applied: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something failed that an operator should know of; the service goes on."""

    where: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTrouble(Trouble):
    """A token store did not do its part for *upstream*; *operation*: read, write or lease."""

    upstream: str
    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged:
    """The breaker of an upstream changed its *state*: closed, half_open (a probe is under way) or open.

    *requests* and *failures* of the window that opened it. *wait*: seconds to the next probe; 0 unless it is open.
    """

    upstream: str
    state: str
    requests: int
    failures: int
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The sidecar stops; told at once, with *in_flight* requests, and again at the end, with those that were *cut*.

    *ended*: whether it is the end. *seconds* since the beginning.
    """

    ended: bool
    in_flight: int
    cut: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """The configuration was read again; *result*: ok, unchanged or refused. *detail*: why, or what is new."""

    result: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReplaced:
    """The worker at place *number* ended unasked, with *code* (negative: by that signal), and is replaced.

    *wait*: in so many seconds.
    """

    number: int
    code: int
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedRenewals:
    """A 401 forces no renewal any more, or does again; told at each change.

    *stopped*: whether only a probe does, now and then. *refused*: how many renewed tokens were refused in a row.
    """

    upstream: str
    stopped: bool
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleLimit:
    """Tokens die before their time when they are not used; told once.

    *survived*: the longest time without use that one was seen to live, *died*: after which they were dead; seconds.
    """

    upstream: str
    survived: float
    died: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatContested:
    """Another login keeps taking the only session of an account, or has left it alone; told at each change.

    *taken*: so many sessions in a row, each soon after it was obtained; 0: it is over. *wait*: seconds without a login.
    """

    upstream: str
    taken: int
    wait: float
    detail: str


Event = (
    Ready
    | Renewal
    | LifetimeDiffers
    | ScopeNarrower
    | RequestDone
    | Trouble
    | BreakerChanged
    | Drain
    | Reload
    | WorkerReplaced
    | ForcedRenewals
    | IdleLimit
    | SeatContested
)
Emit = Callable[[Event], None]
