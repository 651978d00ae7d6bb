"""One attempt at an upstream as plain values, and the settings that what follows it depends on."""

from dataclasses import dataclass

from sidecar.policy.reading import Sign


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """An upstream's `retry` settings; durations in seconds."""

    attempts: int = 3
    statuses: frozenset[int] = frozenset({429, 502, 503, 504})
    methods: frozenset[str] = frozenset({"GET", "HEAD", "OPTIONS", "PUT"})
    unapplied: frozenset[int] = frozenset({421, 425, 429})
    base: float = 0.1
    cap: float = 20.0
    max_retry_after: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What happened; *status* None means a failure without an answer that could be passed on.

    *attempts* counts this one. *sign*: what the answer says of the credential; *session*: one of a login, of which the
    client is told no death that it could do nothing about. *newer*: a newer one is here already; *replays*: how often
    that was so. *sent*: a byte left on an established connection. *stale*: the connection came from the pool and was
    closed before any byte of an answer. *timeout*: we ended it. *invalid*: there was an answer. *prohibited*: we
    refused the address. *repeats*: whether it may be sent again whatever its method, None: its method decides.
    *replayable*: the body can be sent again. *keyed*: the client gave an Idempotency-Key. *conditional*: it gave a
    precondition. *closed*: the breaker is. *budget*: a retry is left in it.
    """

    method: str
    status: int | None
    sign: Sign = Sign.FINE
    sent: bool = True
    stale: bool = False
    timeout: bool = False
    invalid: bool = False
    prohibited: bool = False
    retry_after: float | None = None
    replayable: bool = True
    keyed: bool = False
    conditional: bool = False
    repeats: bool | None = None
    session: bool = False
    newer: bool = False
    replays: int = 0
    attempts: int = 1
    renewals: int = 0
    closed: bool = True
    budget: bool = True
