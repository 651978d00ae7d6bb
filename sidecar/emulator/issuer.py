"""The issuer behind the token endpoint (RFC 6749): grants, tokens, their lives. Pure state, no HTTP.

As on the systems it stands for, supplier-scoped tokens live shorter than configured, a refresh token comes
only with `offline_access`, and a sliding idle window may end a token before its `expires_in`.
"""

import base64
import binascii
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import unquote_plus

from sidecar.clock import Clock
from sidecar.emulator.faults import Switches

ACCESS_PREFIX = "canary-access-"
REFRESH_PREFIX = "canary-refresh-"
"""Every token starts with one of the two, so that a search of logs and dumps finds a leak."""

SCOPES = ("api", "supplier_mgmt", "offline_access")
GRANTS = ("client_credentials", "password", "refresh_token")
REALM = "arena"
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who may ask for tokens; the defaults hold every kind of character that RFC 6749 section 2.3.1 escapes."""

    client_id: str = "demo client"
    client_secret: str = field(default="s3cr:et/+%&= ü", repr=False)
    username: str = "svc@example.com"
    password: str = field(default="pass wörd&more", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the token endpoint answers; a 401 carries a challenge."""

    status: int
    body: Mapping[str, object] = field(repr=False)

    @property
    def challenge(self) -> str | None:
        """The WWW-Authenticate field (RFC 6749 section 5.2), None if the status needs none."""
        return f'Basic realm="{REALM}", charset="UTF-8"' if self.status == _UNAUTHORIZED else None


class GrantError(Exception):
    """The request is refused with *error*, a code of RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(f"{error}: {description}")
        self.error = error
        self.description = description


def refusal(error: str, description: str) -> Answer:
    """Return the answer for an error code of section 5.2."""
    status = _UNAUTHORIZED if error == "invalid_client" else 400
    return Answer(status=status, body={"error": error, "error_description": description})


@dataclass(slots=True)
class _Grant:
    scope: str
    revoked: bool = False


@dataclass(slots=True)
class _Access:
    grant: _Grant
    issued_at: float
    lifetime: float
    used_at: float


@dataclass(slots=True)
class _Refresh:
    grant: _Grant
    ends_at: float
    spent: bool = False


class Issuer:
    """Issue tokens to one account and tell which of them live."""

    def __init__(self, account: Account, switches: Switches, clock: Clock) -> None:
        self._account = account
        self._switches = switches
        self._clock = clock
        self._access: dict[str, _Access] = {}
        self._refresh: dict[str, _Refresh] = {}
        self._issued: set[bytes] = set()

    def answer(self, form: Iterable[tuple[str, str]], authorization: str | None) -> Answer:
        """Answer a token request; *form* are the decoded pairs, *authorization* the header field."""
        try:
            fields = _once_each(form)
            self._authenticate(fields, authorization)
            return Answer(status=200, body=self._grant(fields))
        except GrantError as error:
            return refusal(error.error, error.description)

    def use(self, token: str) -> float | None:
        """Return the seconds *token* has left after this use, None if it is unknown, ended or revoked."""
        access = self._access.get(token)
        now = self._clock.now()
        if access is None or access.grant.revoked or self._ends_at(access) <= now:
            return None
        access.used_at = now
        return self._ends_at(access) - now

    def issued(self, token: str) -> bool:
        """Tell whether *token* was ever issued here, alive or not; survives a reset."""
        return _digest(token) in self._issued

    def live(self) -> int:
        """Return how many access tokens live."""
        now = self._clock.now()
        return sum(not access.grant.revoked and now < self._ends_at(access) for access in self._access.values())

    def revoke(self, *, grants: bool = False) -> None:
        """Revoke every access token, with *grants* the refresh tokens too."""
        self._access.clear()
        if grants:
            self._refresh.clear()

    def _authenticate(self, fields: Mapping[str, str], authorization: str | None) -> None:
        """Check the client: Basic or in the form, never both (section 2.3)."""
        if authorization is None:
            client_id, secret = fields.get("client_id", ""), fields.get("client_secret", "")
        else:
            if "client_secret" in fields:
                raise GrantError("invalid_request", "more than one way of client authentication")
            client_id, secret = _basic(authorization)
            if fields.get("client_id", client_id) != client_id:
                raise GrantError("invalid_request", "client_id differs from the one in Authorization")
        known = _same(client_id, self._account.client_id)
        if not (_same(secret, self._account.client_secret) and known):
            raise GrantError("invalid_client", "client authentication failed")

    def _grant(self, fields: Mapping[str, str]) -> dict[str, object]:
        match fields.get("grant_type"):
            case "client_credentials":
                return self._issue(_Grant(self._granted(fields)))
            case "password":
                known = _same(fields.get("username", ""), self._account.username)
                if not (_same(fields.get("password", ""), self._account.password) and known):
                    raise GrantError("invalid_grant", "unknown user or wrong password")
                return self._issue(_Grant(self._granted(fields)))
            case "refresh_token":
                return self._refreshed(fields)
            case None:
                raise GrantError("invalid_request", "grant_type is missing")
            case _:
                raise GrantError("unsupported_grant_type", f"grant_type is none of {', '.join(GRANTS)}")

    def _granted(self, fields: Mapping[str, str]) -> str:
        withheld = self._switches.withheld_scope.split()
        return " ".join(each for each in _allowed(fields.get("scope", "api"), SCOPES).split() if each not in withheld)

    def _refreshed(self, fields: Mapping[str, str]) -> dict[str, object]:
        refresh = self._refresh.get(fields.get("refresh_token", ""))
        if refresh is None or refresh.grant.revoked or refresh.ends_at <= self._clock.now():
            raise GrantError("invalid_grant", "the refresh token is unknown, expired or revoked")
        if refresh.spent:
            # RFC 9700 section 4.14.2: who comes second is a thief, or was robbed; neither may go on.
            refresh.grant.revoked = True
            raise GrantError("invalid_grant", "the refresh token was used before; the grant is revoked")
        scope = _allowed(fields.get("scope", refresh.grant.scope), refresh.grant.scope.split())
        refresh.spent = self._switches.rotate_refresh
        return self._issue(refresh.grant, scope=scope, with_refresh=refresh.spent)

    def _issue(self, grant: _Grant, *, scope: str | None = None, with_refresh: bool | None = None) -> dict[str, object]:
        """Issue an access token; without *with_refresh* the scope decides on a refresh token."""
        scope = grant.scope if scope is None else scope
        now, switches = self._clock.now(), self._switches
        lifetime = _lifetime(scope, switches)
        token = ACCESS_PREFIX + secrets.token_urlsafe(24)
        self._access[token] = _Access(grant, now, lifetime, now)
        self._issued.add(_digest(token))
        body: dict[str, object] = {"access_token": token, "token_type": "Bearer", "scope": scope}
        if not switches.omit_expires_in:
            claimed = lifetime if switches.claimed_expires_in is None else switches.claimed_expires_in
            body["expires_in"] = int(claimed) if claimed == int(claimed) else claimed
        if "offline_access" in scope.split() if with_refresh is None else with_refresh:
            refresh = REFRESH_PREFIX + secrets.token_urlsafe(24)
            self._refresh[refresh] = _Refresh(grant, now + switches.refresh_lifetime)
            body["refresh_token"] = refresh
        return body

    def _ends_at(self, access: _Access) -> float:
        window, absolute = self._switches.idle_window, self._switches.absolute_timeout
        if window is None:
            return access.issued_at + access.lifetime
        hard_end = access.issued_at + (access.lifetime if absolute is None else absolute)
        return min(access.used_at + window, hard_end)


def _lifetime(scope: str, switches: Switches) -> float:
    if "supplier_mgmt" in scope.split() and switches.supplier_lifetime is not None:
        return min(switches.lifetime, switches.supplier_lifetime)
    return switches.lifetime


def _once_each(form: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the parameters; a repeated one is refused, one without a value counts as omitted (section 3.2)."""
    fields: dict[str, str] = {}
    for name, value in form:
        if name in fields:
            raise GrantError("invalid_request", "a parameter is repeated")
        fields[name] = value
    return {name: value for name, value in fields.items() if value}


def _basic(authorization: str) -> tuple[str, str]:
    """Return id and secret, form-decoded after the split at the colon (section 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    client_id, colon, secret = text.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise GrantError("invalid_client", "Authorization is not Basic with a client id and secret")
    return unquote_plus(client_id), unquote_plus(secret)


def _allowed(scope: str, available: Iterable[str]) -> str:
    asked, allowed = scope.split(), set(available)
    if not allowed.issuperset(asked):
        raise GrantError("invalid_scope", "a scope is unknown or was not granted")
    return " ".join(asked)


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "surrogatepass"), right.encode())


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
