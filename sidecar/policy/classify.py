"""What an upstream's answer means for us: the kind of a 401, the wait it asks for."""

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

from sidecar.policy.message import Fields, value_of
from sidecar.policy.reading import Sign

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  the grammar's name
_PARAMETER = re.compile(rf"\s*({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|({_TOKEN}))\s*")
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|$|(?=,))")
_TOKEN68 = re.compile(r"[0-9A-Za-z._~+/-]+=*\s*(?=,|$)")
_MAX_CHALLENGE = 8 << 10
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def challenges(fields: Fields) -> list[tuple[str, dict[str, str]]]:
    """Return scheme and parameters (both in lower case) of all WWW-Authenticate fields.

    RFC 9110 section 11.6.1: several challenges in one field, several fields, quoted commas, any order. What
    cannot be read is left out, never an error.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for name, value in fields:
        if name.lower() == b"www-authenticate":
            found += _challenges_of(value[:_MAX_CHALLENGE].decode("latin-1"))
    return found


def classify_unauthorized(fields: Fields) -> Sign:
    """Return what a 401 says of a bearer token.

    Whatever schemes are named, or none, it was our credential that was refused: a new one may help. It cannot where
    Bearer says `insufficient_scope` (RFC 6750 section 3.1), or DPoP alone asks for a nonce (RFC 9449 section 9).
    """
    found = challenges(fields)
    errors = {(scheme, parameters.get("error", "").lower()) for scheme, parameters in found}
    if ("bearer", "insufficient_scope") in errors:
        return Sign.SCOPE
    return Sign.FOREIGN if errors == {("dpop", "use_dpop_nonce")} else Sign.EXPIRED


def retry_after(fields: Fields, now: float) -> float | None:
    """Return the seconds that Retry-After asks for (RFC 9110 section 10.2.3), None if absent or unreadable.

    A fraction of a second is taken as well. A date is compared with the answer's own Date, else with *now*
    (wall time); one in the past means 0. Of several fields the first counts.
    """
    raw = value_of(fields, b"retry-after")
    if raw is None:
        return None
    text = raw.decode("latin-1").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    when = _date(text)
    if when is None:
        return None
    own_date = _date((value_of(fields, b"date") or b"").decode("latin-1"))
    return max(0.0, when - (now if own_date is None else own_date))


def _date(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, IndexError):
        return None


def _challenges_of(text: str) -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while position < len(text):
        if text[position] in ", \t":
            position += 1
        elif (parameter := _PARAMETER.match(text, position)) and found:
            quoted = parameter[2]
            found[-1][1][parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
            position = parameter.end()
        elif scheme := _SCHEME.match(text, position):
            found.append((scheme[1].lower(), {}))
            position = scheme.end()
            if token68 := _TOKEN68.match(text, position):
                position = token68.end()
        else:
            position = text.find(",", position) + 1 or len(text)
    return found
