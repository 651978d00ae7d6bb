"""What the status page says: of each credential, and of all breakers where they are of interest."""

from typing import Any

from sidecar.run.status import status, upstream_status
from tests.unit.broker_rig import LIFETIME, WALL, Rig, rig

__all__ = ["rig"]


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
    brokers: Any = {"plm": [Quiet()], "erp": [Quiet()]}
    page = status(brokers, {}, "1", {"plm": "half_open", "gone": "open"})
    assert breakers_of(page) == {"plm": "half_open", "erp": "closed"}


def test_where_nothing_is_served_there_is_none() -> None:
    """The store alone knows nothing of upstreams."""
    brokers: Any = {"plm": [Quiet()]}
    assert breakers_of(status(brokers, {}, "1")) == {"plm": None}


async def test_a_credential_is_shown_without_its_secrets(rig: Rig) -> None:
    """Its state, what was granted and what of the scope was not, and which key sealed its record."""
    rig.issuer.default = {"scope": "a", "asked": "a b"}
    broker = rig.broker()
    shown = upstream_status([broker])
    assert (shown["state"], shown["scope"], shown["sealed_with"], shown["last_renewal"]) == ("none", None, None, None)
    await broker.token(rig.after(60))
    rig.clock.wall += 10
    rig.clock.mono += 10
    sealed_with = broker.status().sealed_with
    assert sealed_with is not None
    assert upstream_status([broker]) == {
        "state": "valid",
        "usable": True,
        "generation": 1,
        "renewed_by": "test/1",
        "forced_renewals": "allowed",
        "expires_at": WALL + LIFETIME,
        "expires_in": LIFETIME - 10,
        "lifetime": LIFETIME,
        "scope": {"granted": "a", "missing": "b"},
        "sealed_with": {"key": 1, "id": sealed_with[1]},
        "last_renewal": {"at": WALL, "trigger": "demand", "result": "ok", "seconds": 0.0, "detail": ""},
    }
