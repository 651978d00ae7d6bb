"""What obtaining a credential gives, and what obtaining it again costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sidecar.secret import Secret


class Anew(StrEnum):
    """What it costs to obtain a credential from what is configured alone.

    FREE: nothing. ONCE: a refresh token that may be presented once. EVICTS: the session that everybody uses.
    """

    FREE = "free"
    ONCE = "once"
    EVICTS = "evicts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the issuer gave.

    *values*: what is shown to the upstream; for OAuth `access_token` alone. *kept*: what only the next obtain may use:
    a refresh token, None when none was issued: keep the old one (RFC 6749 section 6). *lifetime*: seconds, counted from
    *requested_at*, the wall time just before the request was sent. *source*: what said so: expires_in, jwt, header or
    configured. *how*: the OAuth grant that gave it. *scope* None: the issuer did not name it, so that it is the one
    *asked* for; None where none was.
    """

    values: Mapping[str, Secret]
    kept: Secret | None
    requested_at: float
    lifetime: float
    source: str
    how: str
    scope: str | None
    asked: str | None
