"""The configuration of an OAuth 2.0 credential: every key, its default, and what cannot be combined."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from sidecar.policy.routing import Origin, parse_base_url
from sidecar.settings.base import Model
from sidecar.settings.secrets import SecretReference
from sidecar.settings.values import Duration

_RESERVED = frozenset(
    {
        "assertion",
        "client_assertion",
        "client_assertion_type",
        "client_id",
        "client_secret",
        "grant_type",
        "password",
        "refresh_token",
        "resource",
        "scope",
        "subject_token",
        "subject_token_type",
        "username",
    }
)
"""Parameters of a token request that keys of their own, or the grant, decide."""

_NEEDS = {
    "client_secret_basic": ("client_secret",),
    "client_secret_basic_raw": ("client_secret",),
    "client_secret_post": ("client_secret",),
    "private_key_jwt": ("private_key",),
    "assertion": ("client_assertion",),
    "password": ("username", "password"),
    "token_exchange": ("subject_token",),
}
"""What a client authentication, or a grant, cannot do without."""

_MAX_TOKEN_URL = 8 << 10
_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def parse_token_url(url: str) -> tuple[Origin, bytes]:
    """Return origin and request target of a token endpoint, which is taken as its owner published it.

    Its query is kept (RFC 6749 section 3.2), and its path byte for byte; only what is not ASCII is escaped. ValueError
    says what is expected, and shows no part of *url*.
    """
    expected = "expected a URL such as https://sso.example.com/oauth/token, without user and fragment, up to 8 KiB"
    if len(url) > _MAX_TOKEN_URL or not url.isprintable() or " " in url:
        raise ValueError(expected)
    try:
        scheme, netloc = urlsplit(url)[:2]
        origin = parse_base_url(f"{scheme}://{netloc}")
    except ValueError:
        raise ValueError(expected) from None
    target = url.partition("://")[2][len(netloc) :]
    if "#" in target:
        raise ValueError(expected)
    return origin, quote(target if target.startswith("/") else f"/{target}", safe=_ASCII).encode()


def _token_url(url: str) -> str:
    parse_token_url(url)
    return url


Text = Annotated[str, Field(min_length=1)]


class Assertion(Model):
    audience: Text | None = None
    headers: tuple[Literal["x5t#S256"], ...] = ()


class OAuth2(Model):
    token_url: Annotated[str, AfterValidator(_token_url)]
    grant: Literal["client_credentials", "password", "refresh_token", "jwt_bearer", "token_exchange"] = (
        "client_credentials"
    )
    lifetime: Annotated[Duration, Field(gt=0)] = 300.0
    client_id: Text
    client_secret: SecretReference | None = None
    client_auth: Literal[
        "client_secret_basic",
        "client_secret_basic_raw",
        "client_secret_post",
        "private_key_jwt",
        "assertion",
        "tls_client_auth",
        "none",
    ] = "client_secret_basic"
    private_key: SecretReference | None = None
    key_id: str | None = None
    algorithm: Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"] = (
        "RS256"
    )
    assertion: Assertion = Assertion()
    client_assertion: SecretReference | None = None
    username: str | None = None
    password: SecretReference | None = None
    refresh_token: SecretReference | None = None
    subject: Text | None = None
    assertion_file: Path | None = None
    subject_token: SecretReference | None = None
    subject_token_type: Text = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  the name of a type
    scope: str | None = None
    resource: tuple[Text, ...] = ()
    extra: dict[str, str] = Field(default={})

    @property
    def origin(self) -> Origin:
        """Scheme, host and port of the token endpoint."""
        return parse_token_url(self.token_url)[0]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key in ("client_auth", "grant"):
            way = getattr(self, key)
            if not all(getattr(self, needed) for needed in _NEEDS.get(way, ())):
                raise ValueError(f"{key} {way} needs {' and '.join(_NEEDS[way])}")
        if self.grant == "refresh_token" and self.refresh_token is None:
            raise ValueError("grant refresh_token needs refresh_token, the first one")
        if self.grant == "jwt_bearer" and (self.subject is None) == (self.assertion_file is None):
            raise ValueError("grant jwt_bearer needs exactly one of subject and assertion_file")
        signs_grant = self.grant == "jwt_bearer" and self.subject is not None
        if signs_grant and self.private_key is None:
            raise ValueError("grant jwt_bearer with subject needs private_key, which signs its assertion")
        if self.assertion != Assertion() and self.client_auth != "private_key_jwt" and not signs_grant:
            raise ValueError("assertion needs client_auth private_key_jwt, or grant jwt_bearer with subject")
        if clash := sorted(_RESERVED & self.extra.keys()):
            raise ValueError(f"extra cannot set {', '.join(clash)}; use the key of that name")
        return self
