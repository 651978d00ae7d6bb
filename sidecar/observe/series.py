"""The metrics by name: kind, labels, what they mean, buckets."""

from dataclasses import dataclass

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_OWN_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; *labels* beside `upstream`, which all have; a histogram has *buckets*."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


REQUESTS = Metric(
    "auth_sidecar_requests_total", "counter", ("method", "status", "outcome"), "Requests of clients that ended."
)
REQUEST_SECONDS = Metric(
    "auth_sidecar_request_seconds", "histogram", (), "From a request's head to the end of its answer.", _SECONDS
)
OVERHEAD = Metric(
    "auth_sidecar_overhead_seconds", "histogram", (), "Our own share of the time of a request.", _OWN_SECONDS
)
ATTEMPTS = Metric("auth_sidecar_attempts_total", "counter", ("verdict",), "Attempts at the upstream that ended.")
RETRIES = Metric("auth_sidecar_retries_total", "counter", ("cause",), "Retries, by what caused them.")
RETRIES_REFUSED = Metric(
    "auth_sidecar_retries_refused_total", "counter", ("reason",), "Retries that were called for and not made."
)
RENEWALS = Metric("auth_sidecar_renewals_total", "counter", ("trigger", "result"), "Calls to the token endpoint.")
RENEWAL_SECONDS = Metric(
    "auth_sidecar_renewal_seconds", "histogram", (), "Duration of calls to the token endpoint.", _SECONDS
)
UNAUTHORIZED = Metric(
    "auth_sidecar_unauthorized_total",
    "counter",
    ("visible",),
    "Answers that refused the credential, and whether the client saw them.",
)
STORE_ERRORS = Metric("auth_sidecar_store_errors_total", "counter", ("operation",), "Failures of the token store.")
WORKERS_REPLACED = Metric(
    "auth_sidecar_workers_replaced_total", "counter", (), "Workers that ended unasked and were replaced."
)
EXPIRES_IN = Metric("auth_sidecar_token_expires_in_seconds", "gauge", (), "Until the token expires; 0 without one.")
LIFETIME = Metric("auth_sidecar_token_lifetime_seconds", "gauge", (), "Lifetime of the token; 0 without one.")
IN_FLIGHT = Metric("auth_sidecar_in_flight", "gauge", (), "Requests under way.")
BREAKER_STATE = Metric("auth_sidecar_breaker_state", "gauge", (), "The breaker: 0 closed, 1 half-open, 2 open.")
CREDENTIAL_STATE = Metric(
    "auth_sidecar_credential_state", "gauge", ("state",), "1 for the state that the credential is in, 0 for the others."
)
QUOTA_REMAINING = Metric(
    "auth_sidecar_quota_remaining", "gauge", (), "What is left of the upstream's quota; absent where it tells none."
)

COUNTED = (
    *(REQUESTS, REQUEST_SECONDS, OVERHEAD, ATTEMPTS, RETRIES, RETRIES_REFUSED),
    *(RENEWALS, RENEWAL_SECONDS, UNAUTHORIZED, STORE_ERRORS, WORKERS_REPLACED),
)
METRICS = (*COUNTED, EXPIRES_IN, LIFETIME, IN_FLIGHT, BREAKER_STATE, CREDENTIAL_STATE, QUOTA_REMAINING)
