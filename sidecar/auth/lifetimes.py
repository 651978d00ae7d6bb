"""How long a token lasts, by the issuer's own words. Knows nothing of requests, nor of how tokens are kept."""

from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import jwt

from sidecar.policy.message import Fields, value_of

MAX_LIFETIME = 366 * 86_400.0
"""What can be believed; more is an epoch, milliseconds or a mistake, and renewing too often does no harm."""


def granted_lifetime(
    expires_in: object, access_token: str, fields: Fields, *, requested_at: float, configured: float
) -> tuple[float, str]:
    """Return the seconds granted, counted from *requested_at*, and the source that said so.

    That is the earlier of `expires_in` (RFC 6749 section 5.1) and the `exp` of a token that is a JWT, by the issuer's
    own clock; else what the header X-Token-Expires-In says, else *configured*. A number, or its text, of up to 366 days
    is believed; absent, null, a boolean, NaN, any other text or more says nothing. Zero or less is believed too:
    the token has expired, 0.0 is returned.
    """
    said = (("expires_in", _believed(expires_in)), ("jwt", _until_exp(access_token, fields, requested_at)))
    if found := [(seconds, source) for source, seconds in said if seconds is not None]:
        return min(found, key=lambda pair: pair[0])
    header = _believed((value_of(fields, b"x-token-expires-in") or b"").decode("latin-1"))
    return (min(configured, MAX_LIFETIME), "configured") if header is None else (header, "header")


def issuer_time(fields: Fields) -> float | None:
    """Return the issuer's own clock, its Date field; None where there is none that can be read."""
    try:
        when = parsedate_to_datetime((value_of(fields, b"date") or b"").decode("latin-1"))
        return when.replace(tzinfo=UTC).timestamp()  # a date of HTTP is in GMT, whatever it says (RFC 9110 5.6.7)
    except (ValueError, OverflowError):
        return None


def _believed(value: object) -> float | None:
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= MAX_LIFETIME:  # NaN is not
        return None
    return float(max(0, value))


def _until_exp(access_token: str, fields: Fields, requested_at: float) -> float | None:
    """Return the seconds to the `exp` of a JWT (RFC 7519 section 4.1.4), None for an opaque token.

    They are counted from the issuer's Date, so that a skew between the two clocks cancels out. The signature is the
    resource server's business: a wrong `exp` costs a renewal, no more.
    """
    exp = claims_of(access_token).get("exp")
    if isinstance(exp, bool) or not isinstance(exp, int | float):
        return None
    date = issuer_time(fields)
    now = requested_at if date is None else date
    # Bounded before the subtraction: an integer of JSON may be too large for a float.
    return _believed(max(min(exp, now + 2 * MAX_LIFETIME), 0) - now)


def claims_of(token: str) -> dict[str, Any]:
    """Return what a JWT says, its signature not looked at; nothing for an opaque token."""
    try:
        return jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, RecursionError):
        return {}
