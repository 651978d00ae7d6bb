"""An OAuth 2.0 token endpoint as a source of tokens (RFC 6749). Knows nothing of stores, leases and backoff."""

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sidecar.auth.client_auth import given_of, prove, read_secret, sign, user_of
from sidecar.auth.grant import Anew, Grant, Values
from sidecar.auth.lifetimes import claims_of, issuer_time
from sidecar.auth.tls import Contexts, read_pem
from sidecar.auth.token_answer import Judge, read_grant
from sidecar.auth.token_endpoint import Form, asked, open_client, post
from sidecar.auth.watch import Watch
from sidecar.clock import Clock
from sidecar.errors import BrokenOff, ConfigurationError, CredentialRejected, IssuerUnavailable, Unusable
from sidecar.secret import Secret
from sidecar.settings import OAuth2, SecretReference, Tls, prime

if TYPE_CHECKING:
    import httpx

_GRANT_TYPES = {
    "jwt_bearer": "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "token_exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
}


class OAuth2Issuer:
    """Obtain tokens for one credential; *judge* has the last word on each, None: what was granted counts.

    *slot*: the number of the token in a pool. *watch* is told of each request and its answer.

    Nothing is kept between calls but by how much the issuer's clock is ahead of ours, the TLS context, one of
    *contexts*, which others may use as well, and the first refresh token, as another one is another credential: all
    other secrets are read anew each time, each request has its own connection.
    Calls may overlap; that only one instance renews at a time is the caller's business.
    """

    def __init__(
        self,
        settings: OAuth2,
        *,
        tls: Tls,
        clock: Clock,
        contexts: Contexts | None = None,
        judge: Judge | None = None,
        slot: int = 0,
        watch: Watch | None = None,
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._slot = slot
        self._watch = watch
        self._tls = tls
        self._clock = clock
        user = user_of(settings)
        whose = f"client {settings.client_id!r}" + (f", user {user!r}" if user else "")
        self._who = f"issuer {settings.origin.authority}, {whose}:"
        self._contexts = contexts or Contexts()
        self._context: ssl.SSLContext | None = None
        self._skew = 0.0
        named = [value for _, value in settings if isinstance(value, SecretReference)]
        self._secrets = [*named, tls.client_key] if tls.client_key else named
        self._given_first: Secret | None = None

    @property
    def anew(self) -> Anew:
        """What it costs to obtain a token from what is configured alone."""
        return Anew.ONCE if self._settings.grant == "refresh_token" else Anew.FREE

    async def obtain(self, kept: Secret | None, seconds: float, *, values: Values | None = None) -> Grant:  # noqa: ARG002
        """Return a new token, by the refresh token *kept* if one is given, else by the configured grant alone.

        Raises CredentialRejected, IssuerUnavailable (BrokenOff when it may have acted all the same, also after
        *seconds*), and ConfigurationError when a secret or certificate cannot be read.
        """
        await self.prime()
        try:
            return await self._obtain(kept, seconds)
        except CredentialRejected:
            for reference in self._secrets:
                reference.doubt()
            raise

    async def release(self, values: Values, seconds: float) -> None:
        """Do nothing: a token lapses by itself (RFC 7009 is not spoken)."""

    async def prime(self) -> None:
        """Run the programs that secrets come from, where that is due, so that whoever reads one waits for none."""
        await prime(self._secrets)

    async def _obtain(self, kept: Secret | None, seconds: float) -> Grant:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                self._context = await self._contexts.of(self._tls)
                async with open_client(self._context) as client:
                    if kept or self._settings.grant == "refresh_token":
                        return await self._refresh(client, kept or self._first())
                    return await self._ask(client, self._settings.grant, self._primary(), self._settings.scope)
        raise BrokenOff(f"{self._who} gave no complete answer within {seconds:.3g} s; check it, or raise renew.timeout")

    def first(self) -> Secret | None:
        """Return the configured refresh token with the grant of that name, as it was when first asked for, else None.

        Raises ConfigurationError when it cannot be read.
        """
        return self._first() if self.anew is Anew.ONCE else None

    def identity(self) -> str:
        """Return what tells this credential from others, as canonical text without secrets.

        Two with the same text share a token (RFC 9700 section 2.3). A first refresh token is who and what it was given
        for, all in one; else it is issuer, client, grant, user, and what is asked for. Raises ConfigurationError when
        the refresh token, or what says whose token is asked for, cannot be read.
        """
        settings, origin = self._settings, self._settings.origin
        parts: dict[str, Any] = {"client_id": settings.client_id}
        if first := self.first():
            parts |= {"issuer": [origin.scheme, origin.host, origin.port], "first": _hash(first)}
        else:
            parts |= {
                "token_url": settings.token_url,
                "grant": settings.grant,
                "user": user_of(settings),
                "scope": sorted(set((settings.scope or "").split())),
                "extra": settings.extra,
                "resource": sorted(settings.resource),
            }
            if given := given_of(settings):
                # What says whose token it is stays when the text is renewed; of an opaque one nothing does.
                claims = claims_of(given.reveal())
                whose = [claims.get("iss"), claims.get("sub")]
                parts["subject"] = whose if whose[1] else _hash(given)
        if self._slot:
            parts["slot"] = self._slot
        return json.dumps(parts, sort_keys=True)

    def fingerprint(self, salt: str) -> str:
        """Return a text that changes with what decides whether the issuer says no: secrets, read anew, and settings.

        It is keyed with *salt*, so that it compares between those who have that. A secret that cannot be read counts as
        a value of its own.
        """
        values: dict[str, object] = {}
        for name, value in self._settings:
            if name == "refresh_token" and self.anew is Anew.ONCE:
                values[name] = _current(self._first)
            elif isinstance(value, SecretReference):
                values[name] = _current(value.read)
            elif name not in ("lifetime", "assertion", "assertion_file"):
                values[name] = value
        values["assertion"] = self._settings.assertion.model_dump()
        if file := self._settings.assertion_file:
            values["assertion_file"] = _current(SecretReference(file=file).read)
        if key := self._tls.client_key:
            values["client_key"] = _current(key.read)
            values["client_cert"] = _current(lambda: Secret(read_pem("tls.client_cert", self._tls.client_cert) or ""))
        return hmac.new(salt.encode(), json.dumps(values, sort_keys=True).encode(), "sha256").hexdigest()

    async def aclose(self) -> None:
        """Forget the TLS context; no connection outlives a call, so there is nothing else to close."""
        self._context = None

    def _first(self) -> Secret:
        if self._given_first is None:
            self._given_first = read_secret("refresh_token", self._settings.refresh_token)
        return self._given_first

    def _primary(self) -> Form:
        """Return what the configured grant sends of its own."""
        settings = self._settings
        if settings.grant == "password":
            return [("username", settings.username or ""), ("password", read_secret("password", settings.password))]
        if settings.grant == "jwt_bearer":
            given = given_of(settings) or sign(settings, settings.subject or "", self._clock.now() + self._skew)
            return [("assertion", given)]
        if settings.grant == "token_exchange":
            subject_token = read_secret("subject_token", settings.subject_token)
            return [("subject_token", subject_token), ("subject_token_type", settings.subject_token_type)]
        return []

    async def _refresh(self, client: "httpx.AsyncClient", token: Secret) -> Grant:
        """Use the refresh grant (RFC 6749 section 6).

        When the answer is lost the issuer may have rotated the token; FAPI 2.0 has it accept the previous one
        then, so the same request is made once more. The scope is sent only if the refresh token is the
        operator's own: for ours, leaving it out means what was granted, which may be less than asked.
        """
        scope = self._settings.scope if self.anew is Anew.ONCE else None
        form: Form = [("refresh_token", token)]
        with suppress(BrokenOff):
            return await self._ask(client, "refresh_token", form, scope)
        try:
            return await self._ask(client, "refresh_token", form, scope)
        except CredentialRejected as refusal:
            lost = "the answer to an earlier attempt was lost, and the next refresh token may have been in it"
            raise CredentialRejected(refusal.error, f"{refusal} ({lost})", skew=refusal.skew) from None
        except Unusable as granted:
            if granted.kept is None:
                raise BrokenOff(str(granted), retry_after=granted.retry_after) from None
            raise
        except IssuerUnavailable as busy:  # what became of the first attempt is as unknown as before
            raise BrokenOff(str(busy), retry_after=busy.retry_after) from None

    async def _ask(self, client: "httpx.AsyncClient", grant: str, form: Form, scope: str | None) -> Grant:
        """Make one attempt, with a proof of its own; a parameter without a value is left out (section 3.2)."""
        settings, requested_at = self._settings, self._clock.now()
        proof = prove(settings, requested_at + self._skew)
        whole: Form = [("grant_type", _GRANT_TYPES.get(grant, grant)), ("scope", scope or ""), *form]
        whole += [("resource", each) for each in settings.resource] + list(settings.extra.items()) + proof.form
        sent = [(name, value) for name, value in whole if value]
        answer = await post(client, settings.token_url, sent, proof.authorization, who=self._who)
        received_at = self._clock.now()
        if self._watch is not None:
            self._watch(asked(settings.token_url, sent, proof.authorization, answer))
        if (date := issuer_time(answer.fields)) is not None:
            self._skew = date - received_at
        granted = read_grant(
            answer,
            who=self._who,
            grant=grant,
            requested_at=requested_at,
            configured=settings.lifetime,
            hidden=[*proof.hidden, *(value for _, value in form if isinstance(value, Secret))],
            asked=scope or None,
            client_auth=settings.client_auth,
            encoded=proof.encoded,
            received_at=received_at,
        )
        return granted if self._judge is None else self._judge(answer, granted)


def _hash(secret: Secret) -> str:
    return hashlib.sha256(secret.reveal().encode()).hexdigest()


def _current(read: Callable[[], Secret]) -> str:
    """Return a text for what *read* gives now; one that cannot be read differs from every one that can."""
    try:
        return "=" + read().reveal()
    except ConfigurationError:
        return "!"
