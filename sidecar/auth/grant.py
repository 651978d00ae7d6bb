"""What obtaining a credential gives, and what obtaining it again costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sidecar.secret import Secret

Values = Mapping[str, Secret]
"""What a credential consists of, by name; of a recipe's each is JSON text, the cookie jar among them."""


JAR = "=jar"
"""The name under which a credential has its cookies: JSON, a list for each, name and value first."""


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
    *requested_at*, the wall time just before the request was sent; math.inf: until an upstream says that it is over.
    *idle*: seconds without use after which it is over, None: however long it is not used. *source*: what said so:
    expires_in, jwt, header, configured or recipe. *how*: the OAuth grant that gave it, or login. *scope* None: the
    issuer did not name it, so that it is the one *asked* for; None where none was.
    """

    values: Values
    kept: Secret | None
    requested_at: float
    lifetime: float
    source: str
    how: str
    scope: str | None = None
    asked: str | None = None
    idle: float | None = None
