"""Events as numbers for Prometheus: counters and histograms of what happened, gauges of what is.

Labels are bounded: names of upstreams come from the configuration, what a client may choose freely does not count.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from sidecar.clock import Clock
from sidecar.events import BreakerChanged, Event, Renewal, RequestDone, StoreTrouble, WorkerReplaced
from sidecar.observe.series import (
    ATTEMPTS,
    BREAKER_STATE,
    COUNTED,
    CREDENTIAL_STATE,
    EXPIRES_IN,
    IN_FLIGHT,
    LIFETIME,
    OVERHEAD,
    QUOTA_REMAINING,
    RENEWAL_SECONDS,
    RENEWALS,
    REQUEST_SECONDS,
    REQUESTS,
    RETRIES,
    RETRIES_REFUSED,
    STORE_ERRORS,
    UNAUTHORIZED,
    WORKERS_REPLACED,
    Metric,
)
from sidecar.observe.slots import PUBLISH_SECONDS, Slot, Standing

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_OTHER = "other"
_NO_RETRY = frozenset({"pass", "fail", "renew"})

_STATES = ("rejected", "seat_taken", "none", "expired", "refused", "due", "valid")
"""Of a credential; of several processes that counts which is in the first one."""
_BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Status(Protocol):
    """What is read of a credential's status; its times are None without a token."""

    @property
    def state(self) -> str:
        """Where it stands, in a word."""
        ...

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

    *status*, *in_flight* and *quota* tell of each upstream how it stands now, and return at once. One object with a
    slot per process. Raises ConfigurationError when the slot has no room on its disk.
    """

    def __init__(
        self,
        *,
        status: Callable[[], Mapping[str, Status]],
        in_flight: Callable[[], Mapping[str, int]],
        quota: Callable[[], Mapping[str, float | None]],
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
        self._quota = quota
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
        counts, breakers, quota = self._in_flight(), self.breakers(), self._quota()
        return {
            name: Standing(
                each.expires_at,
                each.lifetime,
                counts.get(name, 0),
                _BREAKER_STATES[breakers.get(name, "closed")],
                each.state,
                quota.get(name),
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
        state = self._gauge(CREDENTIAL_STATE.name, CREDENTIAL_STATE.meaning, labels=("upstream", "state"))
        remaining = self._gauge(QUOTA_REMAINING.name, QUOTA_REMAINING.meaning, labels=("upstream",))
        now = self._clock.now()
        for name in sorted({name for each in all_of for name in each}):
            standings = [each[name] for each in all_of if name in each]
            first = min(standings, key=lambda standing: standing.expires_at or 0.0)
            expires.add_metric((name,), first.expires_at - now if first.expires_at is not None else 0.0)
            lifetime.add_metric((name,), first.lifetime or 0.0)
            in_flight.add_metric((name,), sum(standing.in_flight for standing in standings))
            breaker.add_metric((name,), max(standing.breaker for standing in standings))
            worst = next((each for each in _STATES if any(standing.state == each for standing in standings)), "none")
            for each in _STATES:
                state.add_metric((name, each), each == worst)
            if known := [standing.quota for standing in standings if standing.quota is not None]:
                remaining.add_metric((name,), min(known))
        return expires, lifetime, in_flight, breaker, state, remaining
