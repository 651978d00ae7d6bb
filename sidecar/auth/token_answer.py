"""What a token endpoint's answer means: a grant, a refusal, or weather. Pure; lets no secret into a message."""

import json
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote_plus

from sidecar.auth.cures import RAW, SUBJECTS, cure
from sidecar.auth.grant import Grant
from sidecar.auth.lifetimes import granted_lifetime, issuer_time
from sidecar.auth.token_endpoint import Answer
from sidecar.errors import BrokenOff, CredentialRejected, IssuerUnavailable, Misplaced, Unusable
from sidecar.policy.classify import retry_after
from sidecar.policy.message import value_of
from sidecar.secret import Secret

Judge = Callable[[Answer, Grant], Grant]
"""From an answer and what it grants to the grant that counts; raises CredentialRejected for one that is of no use."""

_WEATHER = frozenset({"server_error", "temporarily_unavailable", "slow_down", "rate_limit_exceeded"})
"""Codes that speak of the issuer's state or of the rate, not of the credential."""
_KNOWN = _WEATHER | SUBJECTS.keys()
"""Words that everybody knows: they give nothing away, and who says one did not act."""

_REFUSED = frozenset({400, 401, 403})
_BUSY = frozenset({408, 425, 429, *range(500, 600)})
_MISPLACED = frozenset({404, 405, 410, 421, *range(300, 400)})
_DOUBTFUL = frozenset({500, 502, 504})
"""Statuses after which nobody knows whether the issuer acted: it failed half-way, or a gateway lost its answer."""

_PROOF_OF_POSSESSION = frozenset({"mac", "dpop", "pop"})
_DESCRIPTIONS = ("error_description", "message", "developerMessage", "errorSummary", "faultstring", "detail")

_MAX_TOKEN = 16 << 10  # Entra's have 4 KiB with two hundred groups
_TOKEN = re.compile(r"[\x21-\x7e]+")  # RFC 6749 appendix A.12, less the space, which ends a field's credentials
_VSCHARS = re.compile(r"[\x20-\x7e]+")
_ERROR_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_DESCRIPTION = 200
_MIN_SKEW = 60.0
_PIECE = 8
"""So many characters in a row of a secret are a part of it; fewer also occur in plain English."""


def read_grant(
    answer: Answer,
    *,
    who: str,
    grant: str,
    requested_at: float,
    configured: float,
    hidden: Iterable[Secret],
    asked: str | None = None,
    client_auth: str = "client_secret_basic",
    encoded: bool = False,
    received_at: float | None = None,
) -> Grant:
    """Return the grant in *answer*, by what it means rather than by its words; unknown members are ignored.

    Raises CredentialRejected for a no: 400, 401, 403, or an `error` (RFC 6749 section 5.2) with any status but those
    that speak of the issuer's own state. Else IssuerUnavailable: BrokenOff when it may have acted all the same,
    Misplaced when it is no token endpoint that answers, Unusable when it granted what cannot be used. Their messages
    show nothing that repeats one of *hidden*, or a token of the answer. *encoded*: form-encoding changed id or secret.
    """
    document, status = _document(answer), answer.status
    wait = retry_after(answer.fields, requested_at)
    secrets = [secret.reveal() for secret in hidden]
    given = [str(document.get(name)) for name in ("access_token", "refresh_token")]
    said, code, description = _error(document, status, secrets + [text for text in given if len(text) >= _PIECE])
    shown = (f": {code}" if code else "") + (f" ({description})" if description else "")
    if status in _BUSY or code in _WEATHER:
        doubtful = status in _DOUBTFUL and code not in _KNOWN
        raise (BrokenOff if doubtful else IssuerUnavailable)(
            f"{who} answered with {status}{shown}; {_expected(answer)}", retry_after=wait
        )
    if status in _REFUSED or (code if status in _MISPLACED else said):
        check = cure(
            grant=grant,
            client_auth=client_auth,
            status=status,
            error=code,
            description=description,
            page=bool(answer.body) and not document,
            mute=not answer.body,
        )
        if answer.body and not document and "token_url" not in check:
            check += "; a page came with it, so check token_url as well"
        raw = RAW if encoded and ("client_secret" in check or "client_auth" in check) else ""
        skew = _skew(answer, requested_at if received_at is None else received_at)
        raise CredentialRejected(
            code,
            f"{who} refused the grant {grant} with {status}{shown}; {check}{raw}{_clocks(skew)}",
            locks=grant == "password",
            skew=skew,
        )
    if status in _MISPLACED:
        cause = "nothing there answers as a token endpoint; check token_url"
        if status < HTTPStatus.BAD_REQUEST:
            cause = "a redirect is not followed, lest the secret go elsewhere; set token_url to the final address"
        raise Misplaced(f"{who} answered with {status}{shown}; {cause}", retry_after=wait)
    granted = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
    if not granted or not document:
        raise (BrokenOff if granted else IssuerUnavailable)(
            f"{who} answered with {status}{shown}; {_expected(answer)}", retry_after=wait
        )
    token, kept = document.get("access_token"), _text(document.get("refresh_token"))
    lifetime, source = granted_lifetime(
        document.get("expires_in"),
        token if isinstance(token, str) else "",
        answer.fields,
        requested_at=requested_at,
        configured=configured,
    )
    fault = ""
    if not isinstance(token, str) or len(token) > _MAX_TOKEN or not _TOKEN.fullmatch(token):
        fault = "answered without a usable access_token; expected visible ASCII, up to 16 KiB"
    elif str(document.get("token_type")).strip().lower() in _PROOF_OF_POSSESSION:
        fault = "granted a token_type that signs each request, not Bearer; have the issuer grant bearer tokens"
    elif lifetime <= 0:
        fault = f"granted a token that has already expired ({source}); expected a lifetime above 0"
    if fault or not isinstance(token, str):
        unusable = Unusable(f"{who} {fault}", Secret(kept) if kept else None)
        unusable.retry_after = wait
        raise unusable
    return Grant(
        values={"access_token": Secret(token)},
        kept=Secret(kept) if kept else None,
        requested_at=requested_at,
        lifetime=lifetime,
        source=source,
        how=grant,
        scope=_scope(document.get("scope")),
        asked=asked,
    )


def _document(answer: Answer) -> dict[str, Any]:
    """Return the JSON object in the body, or the form where Content-Type says that it is one; else nothing."""
    try:
        if b"application/x-www-form-urlencoded" in (value_of(answer.fields, b"content-type") or b"").lower():
            return dict(parse_qsl(answer.body.decode("ascii")))
        document = json.loads(answer.body)  # of bytes it tells UTF-8, 16 and 32 apart, and takes a BOM
    except (ValueError, RecursionError):  # bad JSON, a wrong charset; nested too deeply
        return {}
    return document if isinstance(document, dict) else {}


def _error(document: dict[str, Any], status: int, secrets: list[str]) -> tuple[bool, str, str]:
    """Return whether the issuer named an error, its code and its description, as far as they may be printed.

    An error that only repeats the phrase of the status is a framework's, not an issuer's.
    """
    error: Any = document.get("error")
    inner = next((value for value in (error, document.get("fault")) if isinstance(value, dict)), {})
    code = inner.get("code") if isinstance(error, dict) else error
    text = next((value for each in (document, inner) for name in _DESCRIPTIONS if (value := each.get(name))), None)
    said = bool(error) and isinstance(error, str | dict)
    if isinstance(error, str) and error not in _KNOWN and _words(error) == _phrase(status):
        said, code = False, ""
    if not isinstance(code, str) or not (
        code in _KNOWN or (_ERROR_CODE.fullmatch(code) and not _repeats(code, secrets))
    ):
        code = ""
    # Looked through a little further than it is shown, so that the cut does not hide a secret from the search.
    text = _printable(text[: _MAX_DESCRIPTION + _PIECE]) if isinstance(text, str) else ""
    if _repeats(text, secrets):
        text = "*** its description repeats a secret ***"
    return said, code, text[:_MAX_DESCRIPTION].strip()


def _phrase(status: int) -> str:
    try:
        return _words(HTTPStatus(status).phrase)
    except ValueError:
        return ""


def _words(text: str) -> str:
    return re.sub(r"[^a-z]+", "_", text.lower())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and _VSCHARS.fullmatch(value) else None


def _scope(value: object) -> str | None:
    """Return the scope as text; some issuers give a list."""
    return _text(" ".join(map(str, value)) if isinstance(value, list) else value)


def _expected(answer: Answer) -> str:
    return f"expected a token in a JSON object{answer.flaw and f', but the body {answer.flaw}'}; check token_url"


def _skew(answer: Answer, received_at: float) -> float:
    """Return by how many seconds the issuer's clock is ahead of ours, 0.0 when that is little or not known."""
    date = issuer_time(answer.fields)
    skew = 0.0 if date is None else date - received_at
    return skew if abs(skew) > _MIN_SKEW else 0.0


def _clocks(skew: float) -> str:
    if not skew:
        return ""
    unit, seconds = next(each for each in _UNITS if abs(skew) >= 2 * each[1] or each[1] == 1)
    where = "behind" if skew > 0 else "ahead of"
    return f"; this machine's clock is {abs(skew) / seconds:.0f} {unit} {where} the issuer's"


_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def _repeats(text: str, secrets: list[str]) -> bool:
    """Tell whether *text* holds a secret, plain or form-encoded, or a piece of one."""
    pieces = (
        form[start : start + _PIECE]
        for secret in secrets
        for form in (_printable(secret), quote_plus(secret, errors="replace"))
        for start in range(max(1, len(form) - _PIECE + 1))
    )
    return bool(text) and any(piece in text for piece in pieces)


def _printable(text: str) -> str:
    """Replace every character that is not printable ASCII by a space, one for one."""
    return "".join(char if " " <= char <= "~" else " " for char in text)
