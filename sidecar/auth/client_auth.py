"""How a client proves to a token endpoint who it is: one method per request. Knows nothing of sending."""

import base64
import secrets
from dataclasses import dataclass
from urllib.parse import quote_plus

import jwt

from sidecar.errors import ConfigurationError
from sidecar.secret import Secret
from sidecar.settings import OAuth2, SecretReference

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_BACKDATED = 10  # the issuer's clock may be behind ours
_ASSERTION_LIFETIME = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a request carries to authenticate the client; *hidden* is what of it must never be shown."""

    form: dict[str, str | Secret]
    authorization: Secret | None = None
    hidden: tuple[Secret, ...] = ()


def prove(settings: OAuth2, now: float) -> Proof:
    """Return the proof of the configured `client_auth`, made from the secrets as they are now.

    The client id goes in the form for every method but Basic: RFC 6749 section 2.3.1, RFC 8705 section 2 and
    public clients need it, RFC 7521 section 4.2 allows it and some issuers insist. Call it for each attempt:
    an assertion is good for one. Raises ConfigurationError when a secret cannot be read or used.
    """
    named: dict[str, str | Secret] = {"client_id": settings.client_id}
    if settings.client_auth == "client_secret_basic":
        secret = read_secret("client_secret", settings.client_secret)
        # RFC 6749 section 2.3.1: both are form-encoded first, so that a colon in the id stays in the id.
        pair = f"{quote_plus(settings.client_id)}:{quote_plus(secret.reveal())}"
        encoded = base64.b64encode(pair.encode()).decode()
        return Proof(form={}, authorization=Secret(f"Basic {encoded}"), hidden=(secret, Secret(encoded)))
    if settings.client_auth == "client_secret_post":
        secret = read_secret("client_secret", settings.client_secret)
        return Proof(form={**named, "client_secret": secret}, hidden=(secret,))
    if settings.client_auth == "private_key_jwt":
        assertion = _assertion(settings, now)
        form = {**named, "client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion}
        return Proof(form=form, hidden=(assertion,))
    return Proof(form=named)  # tls_client_auth: the certificate is in the handshake; none: a public client


def _assertion(settings: OAuth2, now: float) -> Secret:
    """Sign a fresh assertion (RFC 7523 section 3): new `jti`, `iat` and `exp`, so that it can be used once."""
    issued = int(now) - _ASSERTION_BACKDATED
    claims = {
        "iss": settings.client_id,
        "sub": settings.client_id,
        "aud": settings.token_url,
        "jti": secrets.token_urlsafe(24),
        "iat": issued,
        "nbf": issued,
        "exp": int(now) + _ASSERTION_LIFETIME,
    }
    headers = {"kid": settings.key_id} if settings.key_id else None
    key = read_secret("private_key", settings.private_key)
    try:
        return Secret(jwt.encode(claims, key.reveal(), algorithm=settings.algorithm, headers=headers))
    except Exception:  # noqa: BLE001, S110  whatever the library and its backend say of a key they cannot use
        pass
    raise ConfigurationError(f"private_key cannot sign {settings.algorithm}; expected an unencrypted PEM key for it")


def read_secret(key: str, reference: SecretReference | None) -> Secret:
    """Return the secret as it is now; ConfigurationError when there is no reference or it cannot be read."""
    if reference is None:
        raise ConfigurationError(f"oauth2.{key} is missing; expected {{file: PATH}}, {{env: NAME}} or {{value: TEXT}}")
    return reference.read()
