"""An OAuth 2.0 token endpoint as a source of tokens (RFC 6749). Knows nothing of stores, leases and backoff."""

import asyncio
import hmac
import json
import secrets
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.auth.client_auth import prove, read_secret
from sidecar.auth.tls import Contexts, read_pem
from sidecar.auth.token_answer import Grant, Unusable, read_grant
from sidecar.auth.token_endpoint import BrokenOff, open_client, post
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, CredentialRejected, IssuerUnavailable
from sidecar.policy.routing import parse_base_url
from sidecar.secret import Secret
from sidecar.settings import OAuth2, Tls

if TYPE_CHECKING:
    import httpx

__all__ = ["Grant", "OAuth2Issuer"]


class OAuth2Issuer:
    """Obtain tokens for one credential.

    Nothing is kept between calls but the TLS context, one of *contexts*, which others may use as well: secrets are
    read anew each time, each request has its own connection. Calls may overlap; that only one instance renews at a
    time is the caller's business.
    """

    def __init__(
        self,
        settings: OAuth2,
        *,
        tls: Tls,
        timeout: float,
        clock: Clock,
        fingerprint_key: bytes | None = None,
        contexts: Contexts | None = None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._timeout = timeout
        self._clock = clock
        self._who = f"issuer {parse_base_url(settings.token_url).authority}, client {settings.client_id!r}:"
        self._contexts = contexts or Contexts()
        self._context: ssl.SSLContext | None = None
        self._fingerprint_key = fingerprint_key or secrets.token_bytes(32)

    async def obtain(self, refresh_token: Secret | None) -> Grant:
        """Return a new token, by *refresh_token* if one is given, else by the configured grant.

        With grant refresh_token, None means the configured first one; should a given one be refused as
        `invalid_grant`, the configured one is tried once, if it is another. With the other grants, a refused
        refresh falls back to the grant itself, unless it was the client that was refused. All of this shares
        one deadline. Raises CredentialRejected, IssuerUnavailable (BrokenOff when it may have acted all the same),
        and ConfigurationError when a secret or certificate cannot be read.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                self._context = await self._contexts.of(self._tls)
                async with open_client(self._context) as client:
                    if self._settings.grant == "refresh_token":
                        return await self._refresh_or_start_over(client, refresh_token)
                    return await self._refresh_or_primary(client, refresh_token)
        raise BrokenOff(
            f"{self._who} gave no complete answer within {self._timeout:g} s; check it, or raise renew.timeout"
        )

    @property
    def starts_anew(self) -> bool:
        """Whether the configured grant needs no refresh token."""
        return self._settings.grant != "refresh_token"

    def identity(self) -> str:
        """Return what tells this credential from others, as canonical text without secrets.

        Two with the same text share a token (RFC 9700 section 2.3): issuer, client and how it authenticates,
        grant, user, scope as a set, extra parameters.
        """
        settings = self._settings
        parts = {
            "token_url": settings.token_url,
            "client_id": settings.client_id,
            "client_auth": settings.client_auth,
            "grant": settings.grant,
            "username": settings.username,
            "scope": sorted(set((settings.scope or "").split())),
            "extra": settings.extra,
        }
        return json.dumps(parts, sort_keys=True)

    def fingerprint(self) -> str:
        """Return a text that changes when a secret of the credential does; the secrets are read anew.

        It is keyed, so that it does not help to guess a secret: with *fingerprint_key*, which those may have with
        whom it is compared, else with bytes of this object alone. A secret that cannot be read counts as a value of
        its own, and so does how an assertion is signed.
        """
        settings, tls = self._settings, self._tls
        references = (
            settings.client_secret,
            settings.private_key,
            settings.password,
            settings.refresh_token,
            tls.client_key,
        )
        values = [_current(reference.read) if reference else "" for reference in references]
        values.append(_current(lambda: Secret(read_pem("tls.client_cert", tls.client_cert) or "")))
        values += [settings.key_id or "", settings.algorithm]
        return hmac.new(self._fingerprint_key, json.dumps(values).encode(), "sha256").hexdigest()

    def presentation(self, token: Secret) -> tuple[bytes, bytes]:
        """Return the header field that presents *token* to the upstream (RFC 6750 section 2.1)."""
        return b"Authorization", b"Bearer " + token.reveal().encode("ascii")

    async def aclose(self) -> None:
        """Forget the TLS context; no connection outlives a call, so there is nothing else to close."""
        self._context = None

    async def _refresh_or_start_over(self, client: "httpx.AsyncClient", given: Secret | None) -> Grant:
        if not given:
            return await self._refresh(client, read_secret("refresh_token", self._settings.refresh_token))
        try:
            return await self._refresh(client, given)
        except CredentialRejected as refusal:
            if refusal.error != "invalid_grant":
                raise
            try:
                configured = read_secret("refresh_token", self._settings.refresh_token)
            except ConfigurationError:  # once there is a newer one, the first may well be gone
                raise refusal from None
            if configured == given:
                raise
            first = refusal
        try:
            return await self._refresh(client, configured)
        except CredentialRejected as refusal:
            both = f"{refusal}; so was the newer one that was stored: {first}"
            raise CredentialRejected(refusal.error, both) from None

    async def _refresh_or_primary(self, client: "httpx.AsyncClient", given: Secret | None) -> Grant:
        if given:
            try:
                return await self._refresh(client, given)
            except CredentialRejected as refusal:
                if refusal.error == "invalid_client":  # it would be refused for the grant as well
                    raise
        settings = self._settings
        form: dict[str, str | Secret | None] = {"scope": settings.scope}
        if settings.grant == "password":
            form["username"] = settings.username
            form["password"] = read_secret("password", settings.password)
        return await self._ask(client, settings.grant, form)

    async def _refresh(self, client: "httpx.AsyncClient", token: Secret) -> Grant:
        """Use the refresh grant (RFC 6749 section 6).

        When the answer is lost the issuer may have rotated the token; FAPI 2.0 has it accept the previous one
        then, so the same request is made once more. The scope is sent only if the refresh token is the
        operator's own: for ours, leaving it out means what was granted, which may be less than asked.
        """
        form: dict[str, str | Secret | None] = {"refresh_token": token}
        if self._settings.grant == "refresh_token":
            form["scope"] = self._settings.scope
        with suppress(BrokenOff):
            return await self._ask(client, "refresh_token", form)
        try:
            return await self._ask(client, "refresh_token", form)
        except CredentialRejected as refusal:
            lost = "the answer to an earlier attempt was lost, and the next refresh token may have been in it"
            raise CredentialRejected(refusal.error, f"{refusal} ({lost})") from None
        except Unusable as granted:
            if granted.refresh_token is None:
                raise BrokenOff(str(granted)) from None
            raise
        except IssuerUnavailable as busy:  # what became of the first attempt is as unknown as before
            raise BrokenOff(str(busy), retry_after=busy.retry_after) from None

    async def _ask(self, client: "httpx.AsyncClient", grant: str, form: dict[str, str | Secret | None]) -> Grant:
        """Make one attempt, with a proof of its own; a parameter without a value is left out (section 3.2)."""
        settings = self._settings
        proof = prove(settings, self._clock.now())
        whole = {"grant_type": grant, **form, **settings.extra, **proof.form}
        hidden = [*proof.hidden, *(value for value in form.values() if isinstance(value, Secret))]
        requested_at = self._clock.now()
        answer = await post(
            client,
            settings.token_url,
            {name: value for name, value in whole.items() if value},
            proof.authorization,
            who=self._who,
        )
        return read_grant(
            answer,
            who=self._who,
            grant=grant,
            requested_at=requested_at,
            configured=settings.lifetime,
            hidden=hidden,
        )


def _current(read: Callable[[], Secret]) -> str:
    """Return a text for what *read* gives now; one that cannot be read differs from every one that can."""
    try:
        return "=" + read().reveal()
    except ConfigurationError:
        return "!"
