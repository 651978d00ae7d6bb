"""What can go wrong, as a closed list of reasons and a tree of exceptions.

    SidecarError
    ├── ConfigurationError      the operator's file, option or secret; exit code 2
    ├── Refusal                 the client gets an answer of our own, named by a Reason
    ├── IssuerError             a token endpoint gave no token
    │   ├── CredentialRejected  it refused the credential: asked again after a long pause, if at all
    │   └── IssuerUnavailable   weather: it could not be reached, or said 5xx or 429; asked again soon
    │       ├── BrokenOff       it may have acted: no whole answer came
    │       ├── Lapsed          the session in which a part of the credential was to be obtained is dead
    │       ├── SeatTaken       another login keeps taking the account's only session
    │       ├── Misplaced       nothing answers there as an issuer does; asked again after a while
    │       └── Unusable        it granted what cannot be used; asked again after minutes
    ├── UpstreamFailure         the upstream gave no answer, or broke off
    └── StoreError              a record cannot be read or written
        └── SealError           it cannot be opened: damaged, moved
            └── UnknownSeal     sealed with a key, or in a version, that is not ours

Two catch points matter: `Refusal` at the edge to the client, `SidecarError` at the edge to the operator.
The client sees a reason and a fixed sentence; the operator sees the cause.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sidecar.secret import Secret


class Reason(StrEnum):
    """Why we answered a request ourselves; the value is the `reason` of the answer and of the log."""

    BAD_REQUEST = "bad_request"
    NO_ROUTE = "no_route"
    METHOD_REFUSED = "method_refused"
    REQUEST_TIMEOUT = "request_timeout"
    REQUEST_TOO_LARGE = "request_too_large"
    PROXY_AUTH_REQUIRED = "proxy_auth_required"
    CREDENTIAL_REJECTED = "credential_rejected"
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105  a name, not a token
    SEAT_TAKEN = "seat_taken"
    QUOTA_EXHAUSTED = "quota_exhausted"
    CIRCUIT_OPEN = "circuit_open"
    UPSTREAM_PAUSED = "upstream_paused"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    SHUTTING_DOWN = "shutting_down"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class ReasonFacts:
    """What a reason looks like on the wire."""

    status: int
    title: str
    error: str
    """The `error` parameter of Proxy-Status, a name of RFC 9209 section 2.3."""


REASONS: dict[Reason, ReasonFacts] = {
    Reason.BAD_REQUEST: ReasonFacts(400, "Bad Request", "http_request_error"),
    Reason.NO_ROUTE: ReasonFacts(403, "No upstream for this target", "http_request_denied"),
    Reason.METHOD_REFUSED: ReasonFacts(405, "Method refused", "http_request_denied"),
    Reason.REQUEST_TIMEOUT: ReasonFacts(408, "Request timeout", "http_request_error"),
    Reason.REQUEST_TOO_LARGE: ReasonFacts(431, "Request too large", "http_request_error"),
    Reason.PROXY_AUTH_REQUIRED: ReasonFacts(407, "Proxy authentication required", "http_request_denied"),
    Reason.CREDENTIAL_REJECTED: ReasonFacts(502, "Credential rejected by the issuer", "proxy_configuration_error"),
    Reason.TOKEN_UNAVAILABLE: ReasonFacts(503, "No token available", "proxy_internal_error"),
    Reason.SEAT_TAKEN: ReasonFacts(503, "Session taken by another login", "destination_unavailable"),
    Reason.QUOTA_EXHAUSTED: ReasonFacts(503, "Quota used up", "destination_unavailable"),
    Reason.CIRCUIT_OPEN: ReasonFacts(503, "Upstream in trouble", "destination_unavailable"),
    Reason.UPSTREAM_PAUSED: ReasonFacts(503, "Upstream asked for a pause", "destination_unavailable"),
    Reason.UPSTREAM_UNREACHABLE: ReasonFacts(502, "Upstream unreachable", "destination_unavailable"),
    Reason.UPSTREAM_TIMEOUT: ReasonFacts(504, "Upstream timeout", "connection_timeout"),
    Reason.TOO_MANY_CONNECTIONS: ReasonFacts(503, "Too many connections", "connection_limit_reached"),
    Reason.SHUTTING_DOWN: ReasonFacts(503, "Shutting down", "proxy_internal_error"),
    Reason.INTERNAL: ReasonFacts(500, "Internal error", "proxy_internal_error"),
}


class SidecarError(Exception):
    """The root of every exception of ours."""


class ConfigurationError(SidecarError):
    """The configuration cannot be used; the message is one line: key path, what is wrong, what is accepted."""


class Refusal(SidecarError):
    """Answer the client ourselves, with *reason*; *detail* is a sentence it may read, without secrets.

    *status* None: the reason's own. *retry_after* in seconds. *allow*: the methods a 405 names. *unknown*: whether the
    request was applied is not known, and the answer says so.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        status: int | None = None,
        retry_after: int | None = None,
        allow: str = "",
        unknown: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.status = status
        self.retry_after = retry_after
        self.allow = allow
        self.unknown = unknown


class IssuerError(SidecarError):
    """A token endpoint gave no token."""


class CredentialRejected(IssuerError):
    """The issuer refused the credential; *error* is its code (RFC 6749 section 5.2), such as `invalid_client`.

    It is empty where the issuer gave none. *locks*: an account may be locked by asking again. *skew*: seconds that the
    issuer's clock is ahead of ours, 0.0 when that is little or not known. *shown*: what is held shows the same secret
    with each request, so that it is of no use either.
    """

    def __init__(self, error: str, message: str, *, locks: bool = False, skew: float = 0.0) -> None:
        super().__init__(message)
        self.error = error
        self.locks = locks
        self.shown = False
        self.skew = skew


class IssuerUnavailable(IssuerError):
    """The issuer could not be reached or understood; *retry_after* is in seconds when it said so."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BrokenOff(IssuerUnavailable):
    """The request was sent and no whole answer came: whether the issuer acted on it is unknown."""


class Lapsed(IssuerUnavailable):
    """The session in which a part of the credential was to be obtained is dead: all of it is to be obtained."""


class SeatTaken(IssuerUnavailable):
    """Another login keeps taking the account's only session: no login for `retry_after` seconds."""


class Misplaced(IssuerUnavailable):
    """What answered does not know the address, the method or the host: a roll-out, or a wrong token_url."""


class Unusable(IssuerUnavailable):
    """The issuer granted an access token that cannot be used.

    *kept*: the refresh token that came with it, None if none did; the one that was presented is spent then.
    """

    def __init__(self, message: str, kept: Secret | None) -> None:
        super().__init__(message)
        self.kept = kept


class UpstreamFailure(SidecarError):
    """The upstream gave no answer.

    *sent*: at least one byte of the request left on an established connection. *reused*: the connection was
    an idle one from the pool, and ended before any byte of an answer. *timeout*: a limit of ours passed.
    *prohibited*: we refused the address. *invalid*: there was an answer, and it cannot be passed on.
    """

    def __init__(
        self,
        message: str,
        *,
        sent: bool,
        reused: bool = False,
        timeout: bool = False,
        prohibited: bool = False,
        invalid: bool = False,
    ) -> None:
        super().__init__(message)
        self.sent = sent
        self.reused = reused
        self.timeout = timeout
        self.prohibited = prohibited
        self.invalid = invalid


class StoreError(SidecarError):
    """The token store cannot be read or written; *silent*: it gave no answer in time, and may only be slow."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class SealError(StoreError):
    """A record cannot be opened: damaged, or moved from another name."""


class UnknownSeal(SealError):
    """A record of another version, or sealed with a key we lack: it may serve others, so that it is left alone."""


def where(error: BaseException) -> str:
    """Return file and line of the innermost frame: enough to find a bug, without any value."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "unknown place"
