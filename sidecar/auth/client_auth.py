"""How a client proves to a token endpoint who it is, and what it signs. Knows nothing of sending."""

import base64
import hashlib
import re
import secrets
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

import jwt

from sidecar.auth.token_endpoint import Form
from sidecar.errors import ConfigurationError
from sidecar.secret import Secret
from sidecar.settings import OAuth2, SecretReference
from sidecar.settings.secrets import EXPECTED

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_BACKDATED = 25  # the issuer's clock may be behind ours, or ahead
_ASSERTION_LIFETIME = 120
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a request carries to authenticate the client; *hidden* is what of it must never be shown.

    *encoded*: form-encoding changed the id or the secret, which an issuer that does not decode takes for wrong.
    """

    form: Form = field(default_factory=list)
    authorization: Secret | None = None
    hidden: tuple[Secret, ...] = ()
    encoded: bool = False


def prove(settings: OAuth2, now: float) -> Proof:
    """Return the proof of the configured `client_auth`, made from the secrets as they are now.

    The client id goes in the form for every method but Basic: RFC 6749 section 2.3.1, RFC 8705 section 2 and
    public clients need it, RFC 7521 section 4.2 allows it and some issuers insist. Call it for each attempt:
    an assertion is good for one. *now* is the issuer's time. Raises ConfigurationError when a secret cannot be read
    or used.
    """
    named: Form = [("client_id", settings.client_id)]
    way = settings.client_auth
    if way.startswith("client_secret"):
        secret = read_secret("client_secret", settings.client_secret)
        if way == "client_secret_post":
            return Proof(form=[*named, ("client_secret", secret)], hidden=(secret,))
        plain = settings.client_id, secret.reveal()
        # RFC 6749 section 2.3.1: both are form-encoded first, so that a colon in the id stays in the id.
        pair = tuple(map(quote_plus, plain)) if way == "client_secret_basic" else plain
        basic = Secret(base64.b64encode(":".join(pair).encode()).decode())
        authorization = Secret(f"Basic {basic.reveal()}")
        return Proof(authorization=authorization, hidden=(secret, basic), encoded=pair != plain)
    if way in ("private_key_jwt", "assertion"):
        assertion = (
            sign(settings, settings.client_id, now)
            if way == "private_key_jwt"
            else read_secret("client_assertion", settings.client_assertion)
        )
        form = [*named, ("client_assertion_type", _ASSERTION_TYPE), ("client_assertion", assertion)]
        return Proof(form=form, hidden=(assertion,))
    return Proof(form=named)  # tls_client_auth: the certificate is in the handshake; none: a public client


def sign(settings: OAuth2, subject: str, now: float) -> Secret:
    """Sign a fresh assertion (RFC 7523 section 3): new `jti`, `iat` and `exp`, so that it can be used once."""
    issued = int(now) - _ASSERTION_BACKDATED
    claims = {
        "iss": settings.client_id,
        "sub": subject,
        "aud": settings.assertion.audience or settings.token_url,
        "jti": secrets.token_urlsafe(24),
        "iat": issued,
        "nbf": issued,
        "exp": int(now) + _ASSERTION_LIFETIME,
    }
    key = read_secret("private_key", settings.private_key)
    headers: dict[str, Any] = {"kid": settings.key_id} if settings.key_id else {}
    if "x5t#S256" in settings.assertion.headers:
        headers["x5t#S256"] = _thumbprint(key)
    try:
        return Secret(jwt.encode(claims, key.reveal(), algorithm=settings.algorithm, headers=headers))
    except Exception:  # noqa: BLE001, S110  whatever the library and its backend say of a key they cannot use
        pass
    raise ConfigurationError(f"private_key cannot sign {settings.algorithm}; expected an unencrypted PEM key for it")


def _thumbprint(pem: Secret) -> str:
    """Return the SHA-256 of the first certificate beside the key (RFC 7515 section 4.1.8)."""
    try:
        found = _CERTIFICATE.search(pem.reveal())
        der = ssl.PEM_cert_to_DER_cert(found[0] if found else "")
    except ValueError:
        raise ConfigurationError(
            "assertion.headers x5t#S256 needs a certificate; expected one in PEM beside the key in private_key"
        ) from None
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def read_secret(key: str, reference: SecretReference | None) -> Secret:
    """Return the secret as it is now; ConfigurationError when there is no reference or it cannot be read."""
    if reference is None:
        raise ConfigurationError(f"oauth2.{key} is missing; {EXPECTED}")
    return reference.read()


def user_of(settings: OAuth2) -> str | None:
    """Return whom the grant names."""
    return {"password": settings.username, "jwt_bearer": settings.subject}.get(settings.grant)


def given_of(settings: OAuth2) -> Secret | None:
    """Return the ready token that says whose the new one is to be, None with a grant that sends none."""
    if settings.grant == "token_exchange":
        return read_secret("subject_token", settings.subject_token)
    if settings.grant == "jwt_bearer" and settings.assertion_file:
        return SecretReference(file=settings.assertion_file).read()
    return None
