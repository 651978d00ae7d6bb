"""What the status page says of breakers: those of all upstreams, where they are of interest."""

from typing import Any

from sidecar.clock import SystemClock
from sidecar.run.status import status


class Quiet:
    """A broker of which nothing is known, and its status."""

    def status(self) -> "Quiet":
        return self

    def __getattr__(self, name: str) -> None:
        return None


def breakers_of(page: dict[str, Any]) -> dict[str, Any]:
    return {name: each.get("breaker") for name, each in page["upstreams"].items()}


def test_every_upstream_has_a_breaker() -> None:
    """One that never opened is closed; one that is gone is not shown."""
    brokers: Any = {"plm": Quiet(), "erp": Quiet()}
    page = status(brokers, {}, "1", SystemClock(), {"plm": "half_open", "gone": "open"})
    assert breakers_of(page) == {"plm": "half_open", "erp": "closed"}


def test_where_nothing_is_served_there_is_none() -> None:
    """The store alone knows nothing of upstreams."""
    brokers: Any = {"plm": Quiet()}
    assert breakers_of(status(brokers, {}, "1", SystemClock())) == {"plm": None}
