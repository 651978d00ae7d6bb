"""What a token endpoint's answer means: a grant, a refusal, or weather. Pure; lets no secret into a message."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from sidecar.auth.lifetimes import granted_lifetime
from sidecar.auth.token_endpoint import Answer, BrokenOff
from sidecar.errors import CredentialRejected, IssuerUnavailable
from sidecar.policy.classify import retry_after
from sidecar.secret import Secret

REMEDIES = {
    "invalid_client": "check client_id, client_auth and the client's secret, key or certificate",
    "invalid_grant": "check username and password, or log in anew for a fresh refresh_token",
    "unauthorized_client": "have the issuer allow this grant to the client, or set another grant",
    "unsupported_grant_type": "set a grant that the issuer offers",
    "invalid_scope": "set a scope that the issuer grants to this client",
    "invalid_request": "check scope, extra and client_auth against the issuer's documentation",
}
"""The errors of RFC 6749 section 5.2, which trying again cannot mend, and what can."""

_DOUBTFUL = frozenset({500, 502, 504})
"""Statuses after which nobody knows whether the issuer acted: it failed half-way, or a gateway lost its answer."""

_MAX_TOKEN = 8 << 10
_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1
_VSCHARS = re.compile(r"[\x20-\x7e]+")  # RFC 6749 appendix A
_ERROR_CODE = re.compile(r"[a-z_]{1,64}")
_MAX_DESCRIPTION = 200
_PIECE = 8
"""So many characters in a row of a secret are a part of it; fewer also occur in plain English."""


class Unusable(IssuerUnavailable):
    """The issuer granted an access token that cannot be used.

    *refresh_token*: the one that came with it, None if none did; the one that was presented is spent then.
    """

    def __init__(self, message: str, refresh_token: Secret | None) -> None:
        super().__init__(message)
        self.refresh_token = refresh_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the issuer gave.

    *lifetime*: seconds, counted from *requested_at*, the wall time just before the request was sent.
    *lifetime_source*: expires_in, jwt, header or configured. *grant*: the OAuth grant that gave it. *scope* is
    None when the issuer did not name it, which means the one asked for. *refresh_token* is None when none was
    issued: keep the old one (RFC 6749 section 6).
    """

    access_token: Secret
    lifetime: float
    requested_at: float
    lifetime_source: str
    grant: str
    scope: str | None
    refresh_token: Secret | None


def read_grant(
    answer: Answer, *, who: str, grant: str, requested_at: float, configured: float, hidden: Iterable[Secret]
) -> Grant:
    """Return the grant in *answer*; the error of the body decides, whatever the status (RFC 6749 section 5.2).

    A 429 is weather even with such an error: it speaks of the rate. Unknown members are ignored. Raises
    CredentialRejected and IssuerUnavailable: BrokenOff when it may have acted all the same, Unusable when it granted
    what cannot be used. Their messages show nothing that repeats one of *hidden*.
    """
    document = _document(answer.body)
    wait = retry_after(answer.fields, requested_at)
    error, shown = document.get("error"), _shown(document, [secret.reveal() for secret in hidden])
    if isinstance(error, str) and error in REMEDIES and answer.status != 429:  # noqa: PLR2004
        raise CredentialRejected(error, f"{who} refused the grant {grant}{shown}; {REMEDIES[error]}")
    granted = 200 <= answer.status < 300  # noqa: PLR2004
    if error or not granted or not document:
        doubtful = not error and (granted or answer.status in _DOUBTFUL)
        raise (BrokenOff if doubtful else IssuerUnavailable)(
            f"{who} answered with {answer.status}{shown}; {_expected(answer)}", retry_after=wait
        )
    refresh_token = _secret(document.get("refresh_token"))
    token = document.get("access_token")
    if not isinstance(token, str) or len(token) > _MAX_TOKEN or not _B64TOKEN.fullmatch(token):
        raise Unusable(
            f"{who} answered without a usable access_token; expected a token of RFC 6750 section 2.1, up to 8 KiB",
            refresh_token,
        )
    if str(document.get("token_type")).lower() != "bearer":
        raise Unusable(
            f"{who} answered with a token_type that is not Bearer; have the issuer grant bearer tokens", refresh_token
        )
    lifetime, source = granted_lifetime(
        document.get("expires_in"), token, answer.fields, requested_at=requested_at, configured=configured
    )
    if lifetime <= 0:
        raise Unusable(
            f"{who} granted a token that has already expired ({source}); expected a lifetime above 0", refresh_token
        )
    return Grant(
        access_token=Secret(token),
        lifetime=lifetime,
        requested_at=requested_at,
        lifetime_source=source,
        grant=grant,
        scope=_text(document.get("scope")),
        refresh_token=refresh_token,
    )


def _document(body: bytes) -> dict[str, Any]:
    """Return the JSON object in *body*, whatever its Content-Type says; an empty one if there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # bad JSON, a wrong charset; nested too deeply
        return {}
    return document if isinstance(document, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and _VSCHARS.fullmatch(value) else None


def _secret(value: object) -> Secret | None:
    text = _text(value)
    return Secret(text) if text else None


def _expected(answer: Answer) -> str:
    if 300 <= answer.status < 400:  # noqa: PLR2004
        return "a redirect is not followed, lest the secret go elsewhere; set token_url to the final address"
    return f"expected a token in a JSON object{answer.flaw and f', but the body {answer.flaw}'}; check token_url"


def _shown(document: dict[str, Any], hidden: list[str]) -> str:
    """Return `: error (description)` as far as it may be printed, else less of it or nothing."""
    error, description = document.get("error"), document.get("error_description")
    if not isinstance(error, str) or not _ERROR_CODE.fullmatch(error) or _repeats(error, hidden):
        return ""
    # Looked through a little further than it is shown, so that the cut does not hide a secret from the search.
    text = _printable(description[: _MAX_DESCRIPTION + _PIECE]) if isinstance(description, str) else ""
    if _repeats(text, hidden):
        text = "*** its description repeats a secret ***"
    return f": {error} ({text[:_MAX_DESCRIPTION].strip()})" if text.strip() else f": {error}"


def _repeats(text: str, hidden: list[str]) -> bool:
    """Tell whether *text* holds a secret, plain or form-encoded, or a piece of one."""
    pieces = (
        form[start : start + _PIECE]
        for secret in hidden
        for form in (_printable(secret), quote_plus(secret))
        for start in range(max(1, len(form) - _PIECE + 1))
    )
    return any(piece in text for piece in pieces)


def _printable(text: str) -> str:
    """Replace every character that is not printable ASCII by a space, one for one."""
    return "".join(char if " " <= char <= "~" else " " for char in text)
