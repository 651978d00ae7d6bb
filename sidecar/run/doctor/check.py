"""One line of a diagnosis. docs/operations.md, "doctor", has a row for each name."""

from dataclasses import dataclass
from enum import StrEnum


class Row(StrEnum):
    """What is looked at, in the order in which it is told."""

    CONFIGURATION = "configuration"
    SECRETS = "secrets"
    STATE_DIR = "state_dir"
    PROXY = "proxy"
    CA = "ca"
    STORE = "store"
    TLS = "tls"
    ISSUER = "issuer"
    CLOCK = "clock"
    SEAT = "seat"
    LOGIN = "login"
    SCOPE = "scope"
    REFRESH = "refresh"
    LIFETIME = "lifetime"
    EXPIRY = "expiry"
    UPSTREAM = "upstream"
    BASE_URL = "base_url"
    QUOTA = "quota"


class Verdict(StrEnum):
    """How a line is meant: fine, worth a look, broken."""

    PASS = "PASS"  # noqa: S105  not a password
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """*what* was found of *name*, and the *remedy*, None where nothing need be done; *upstream* None: of all."""

    name: Row
    verdict: Verdict
    what: str
    remedy: str | None = None
    upstream: str | None = None


def passed(name: Row, what: str, upstream: str | None = None) -> Check:
    """Return the line of what is fine."""
    return Check(name, Verdict.PASS, what, None, upstream)


def warned(name: Row, what: str, remedy: str, upstream: str | None = None) -> Check:
    """Return the line of what is worth a look."""
    return Check(name, Verdict.WARN, what, remedy, upstream)


def failed(name: Row, what: str, remedy: str, upstream: str | None = None) -> Check:
    """Return the line of what is broken."""
    return Check(name, Verdict.FAIL, what, remedy, upstream)
