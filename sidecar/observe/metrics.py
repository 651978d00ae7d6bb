"""Events as numbers for Prometheus: counters and histograms of what happened, gauges of what is.

Labels are bounded: names of upstreams come from the configuration, what a client may choose freely does not count.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sidecar.clock import Clock
from sidecar.events import BreakerChanged, Event, Renewal, RequestDone, StoreTrouble, WorkerReplaced
from sidecar.observe.slots import PUBLISH_SECONDS, Slot, Standing

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_OTHER = "other"
_NO_RETRY = frozenset({"pass", "fail", "renew"})

_BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}

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

COUNTED = (
    *(REQUESTS, REQUEST_SECONDS, OVERHEAD, ATTEMPTS, RETRIES, RETRIES_REFUSED),
    *(RENEWALS, RENEWAL_SECONDS, UNAUTHORIZED, STORE_ERRORS, WORKERS_REPLACED),
)
METRICS = (*COUNTED, EXPIRES_IN, LIFETIME, IN_FLIGHT, BREAKER_STATE)


class Status(Protocol):
    """What is read of a credential's status; None without a token."""

    @property
    def expires_at(self) -> float | None:
        """When the token expires, in wall time."""
        ...

    @property
    def lifetime(self) -> float | None:
        """How long it lasts from its issue, in seconds."""
        ...


class Metrics:
    """The numbers of this process, or with a *slot* of all processes that share its folder.

    *status* and *in_flight* tell of each upstream how it stands now; both return at once. One object with a slot per
    process. Raises ConfigurationError when the slot has no room on its disk.
    """

    def __init__(
        self,
        *,
        status: Callable[[], Mapping[str, Status]],
        in_flight: Callable[[], Mapping[str, int]],
        clock: Clock,
        slot: Slot | None = None,
    ) -> None:
        # Late: a command that does not serve is spared the memory.
        import prometheus_client as library
        from prometheus_client import multiprocess, values
        from prometheus_client.core import GaugeMetricFamily

        library.disable_created_metrics()  # type: ignore[no-untyped-call]
        if slot is None:
            values.ValueClass = values.MutexValue
        else:
            slot.reserve()
            # The folder of somebody else, such as the application beside us, is never written to.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(slot.folder)
            values.ValueClass = values.MultiProcessValue(lambda: slot.number)  # type: ignore[no-untyped-call]
        self._status = status
        self._in_flight = in_flight
        self._clock = clock
        self._slot = slot
        self._registry = library.CollectorRegistry()
        self._render = library.generate_latest
        self._merge = multiprocess.MultiProcessCollector.merge
        self._gauge = GaugeMetricFamily
        own = None if slot else self._registry
        self._families: dict[str, Any] = {}
        for metric in COUNTED:
            labels = ("upstream", *metric.labels)
            if metric.kind == "counter":
                self._families[metric.name] = library.Counter(metric.name, metric.meaning, labels, registry=own)
            else:
                self._families[metric.name] = library.Histogram(
                    metric.name, metric.meaning, labels, registry=own, buckets=metric.buckets
                )
        self._children: dict[tuple[str, ...], Any] = {}
        self._breakers: dict[str, BreakerChanged] = {}
        self._registry.register(self)

    def observe(self, event: Event) -> None:
        """Count *event*; one that is not counted is none of our business."""
        if isinstance(event, RequestDone):
            self._request(event)
        elif isinstance(event, Renewal):
            self._of(RENEWALS, event.upstream, event.trigger, event.result).inc()
            self._of(RENEWAL_SECONDS, event.upstream).observe(event.seconds)
        elif isinstance(event, BreakerChanged):
            self._breakers[event.upstream] = event
        elif isinstance(event, StoreTrouble):
            self._of(STORE_ERRORS, event.upstream, event.operation).inc()
        elif isinstance(event, WorkerReplaced):
            self._of(WORKERS_REPLACED, "").inc()

    def breakers(self) -> Mapping[str, str]:
        """Return the states of the breakers that ever opened, by upstream: closed, half_open or open."""
        return {name: event.state for name, event in self._breakers.items()}

    def render(self) -> bytes:
        """Return all numbers as of now, in the text format of Prometheus, version 0.0.4."""
        return self._render(self._registry)

    def collect(self) -> Iterable[Any]:
        """Yield what the library does not hold in this process: the gauges, and the counts of files."""
        if self._slot is not None:
            merged = self._merge(self._slot.counts())  # type: ignore[no-untyped-call]
            yield from sorted(merged, key=lambda family: str(family.name))
        yield from self._gauges()

    def publish(self) -> None:
        """Tell the processes that share our folder how we stand; without a slot there is nothing to tell."""
        if self._slot is not None:
            self._slot.publish(self._standings(), self._clock.monotonic())

    async def keep_publishing(self) -> None:
        """Publish once a second, until cancelled."""
        while True:
            self.publish()
            await self._clock.sleep(PUBLISH_SECONDS)

    def _request(self, event: RequestDone) -> None:
        upstream = event.upstream
        method = event.method if event.method in _METHODS else _OTHER
        self._of(REQUESTS, upstream, method, str(event.status), event.outcome).inc()
        self._of(REQUEST_SECONDS, upstream).observe(event.seconds)
        if event.overhead is not None:
            self._of(OVERHEAD, upstream).observe(event.overhead)
        for verdict in event.verdicts:
            if verdict in _NO_RETRY:
                self._of(ATTEMPTS, upstream, verdict).inc()
            else:
                self._of(ATTEMPTS, upstream, "backoff").inc()
                self._of(RETRIES, upstream, verdict).inc()
        if event.refused:
            self._of(RETRIES_REFUSED, upstream, event.refused).inc()
        if event.unauthorized:
            self._of(UNAUTHORIZED, upstream, "true").inc(event.visible)
            self._of(UNAUTHORIZED, upstream, "false").inc(event.unauthorized - event.visible)

    def _of(self, metric: Metric, *labels: str) -> Any:
        key = (metric.name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._families[metric.name].labels(*labels)
        return child

    def _standings(self) -> dict[str, Standing]:
        counts, breakers = self._in_flight(), self.breakers()
        return {
            name: Standing(
                each.expires_at,
                each.lifetime,
                counts.get(name, 0),
                _BREAKER_STATES[breakers.get(name, "closed")],
            )
            for name, each in self._status().items()
        }

    def _gauges(self) -> Iterable[Any]:
        """Yield the gauges; of several processes that speaks whose token ends first, and whose breaker is most open."""
        all_of = [self._standings()]
        if self._slot is not None:
            all_of += self._slot.others(self._clock.monotonic())
        expires, lifetime, in_flight, breaker = (
            self._gauge(metric.name, metric.meaning, labels=("upstream",))
            for metric in (EXPIRES_IN, LIFETIME, IN_FLIGHT, BREAKER_STATE)
        )
        now = self._clock.now()
        for name in sorted({name for each in all_of for name in each}):
            standings = [each[name] for each in all_of if name in each]
            first = min(standings, key=lambda standing: standing.expires_at or 0.0)
            expires.add_metric((name,), first.expires_at - now if first.expires_at is not None else 0.0)
            lifetime.add_metric((name,), first.lifetime or 0.0)
            in_flight.add_metric((name,), sum(standing.in_flight for standing in standings))
            breaker.add_metric((name,), max(standing.breaker for standing in standings))
        return expires, lifetime, in_flight, breaker
