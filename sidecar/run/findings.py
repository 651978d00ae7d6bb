"""What is wrong with a sidecar that serves: what requests met, and how things stand, in the words of `diagnose`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from sidecar.clock import Clock
from sidecar.errors import Reason
from sidecar.events import Event, RequestDone
from sidecar.exchange.destination import Destination
from sidecar.policy.diagnose import Costs, Standing, diagnose, refused

_REASONS = frozenset(reason.value for reason in Reason)
_ERRORS = 400
_NONE: Costs = {}


class Findings:
    """Keeps what requests met since the last one that got through, by upstream; *destinations* are those of now."""

    def __init__(self, destinations: Callable[[], Mapping[str, Destination]], clock: Clock) -> None:
        self._destinations = destinations
        self._clock = clock
        self._costs: dict[str, Costs] = {}

    def observe(self, event: Event) -> None:
        """Take note of how a request ended; of any other event nothing."""
        if not isinstance(event, RequestDone):
            return
        if event.outcome in _REASONS:
            costs = self._costs.get(event.upstream, _NONE)
            self._costs[event.upstream] = refused(costs, Reason(event.outcome), self._clock.now())
        elif event.outcome == "passed" and event.status < _ERRORS:
            self._costs.pop(event.upstream, None)

    def quotas(self) -> dict[str, tuple[float | None, float | None]]:
        """Return, by upstream, what is left of its allowance, and the end of one that is used up; None: unknown."""
        return {
            name: (each.admission.quota_remaining, self._quota_until(each))
            for name, each in self._destinations().items()
        }

    def _quota_until(self, destination: Destination) -> float | None:
        left = destination.admission.quota_left(self._clock.monotonic())
        return self._clock.now() + left if left > 0 else None

    def now(self) -> list[dict[str, Any]]:
        """Return what is wrong, as plain data; empty in calm."""
        standings = tuple(self._standing(name, each) for name, each in self._destinations().items())
        return [asdict(finding) for finding in diagnose(standings, self._clock.now())]

    def _standing(self, name: str, destination: Destination) -> Standing:
        states = [broker.status() for broker in destination.brokers]
        status = next((state for state in states if not state.usable), states[0])
        failed = status.last if status.last and status.last.result != "ok" else None
        return Standing(
            upstream=name,
            state=status.state,
            failure=failed.detail if failed else "",
            failed_at=failed.time if failed else None,
            quota_until=self._quota_until(destination),
            costs=self._costs.get(name, _NONE),
        )
