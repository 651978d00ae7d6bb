"""The OAuth 2.0 issuer against a token endpoint of our own on loopback, scripted byte by byte per test."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import socket
import ssl
import struct
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import httpx
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from sidecar.auth.grant import Anew, Grant
from sidecar.auth.lifetimes import MAX_LIFETIME, granted_lifetime
from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.tls import Contexts, Material, client_context
from sidecar.auth.token_endpoint import Answer, open_client
from sidecar.errors import (
    BrokenOff,
    ConfigurationError,
    CredentialRejected,
    IssuerError,
    IssuerUnavailable,
    Misplaced,
    SidecarError,
    Unusable,
)
from sidecar.secret import Secret
from sidecar.settings import OAuth2, Tls
from tests.canary import NEEDLES

NOW = 1_800_000_000.0
CLIENT_ID = "a:b%+ ü&=/?#"
SECRET = "CANARY-s:e%+ ü&=/?#"
FIRST, SECOND, THIRD = Secret("CANARY-first"), Secret("CANARY-second"), Secret("CANARY-third")
TOKEN = {"access_token": "CANARY-token", "token_type": "Bearer", "expires_in": 300}

Step = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Call:
    """A request as the token endpoint got it."""

    line: str
    headers: dict[str, str]
    form: list[tuple[str, str]]
    certificate: str | None

    def value(self, name: str) -> str:
        return dict(self.form)[name]


@dataclass
class Endpoint:
    """A token endpoint that plays one step per connection, then closes; it keeps what it was sent."""

    steps: list[Step]
    calls: list[Call] = field(default_factory=list)
    url: str = ""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            certificate = writer.get_extra_info("peercert") or {}
            names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
            form = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True)
            self.calls.append(Call(head[0], headers, form, names[0] if names else None))
            try:
                await self.steps.pop(0)(writer)
                await writer.drain()
            except OSError:
                self.hung_up.set()


@contextlib.asynccontextmanager
async def endpoint(*steps: Step, context: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    issuer = Endpoint(list(steps))
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    issuer.url = f"http{'s' if context else ''}://127.0.0.1:{port}/oauth/token"
    try:
        yield issuer
    finally:
        server.close()
        await server.wait_closed()


def raw(content: bytes, status: int = 200, *headers: str) -> Step:
    """Answer with these bytes."""

    async def step(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + content)

    return step


def answer(document: object, status: int = 200, *headers: str) -> Step:
    """Answer with JSON."""
    return raw(json.dumps(document).encode(), status, *headers)


def refused(error: str, status: int = 400) -> Step:
    return answer({"error": error}, status)


async def reset(writer: asyncio.StreamWriter) -> None:
    """Reset the connection, the request having been read."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def cut_short(writer: asyncio.StreamWriter) -> None:
    """Close in the middle of the body."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + json.dumps(TOKEN).encode())


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a body of which there is always one more byte."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\n \r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def pour(writer: asyncio.StreamWriter) -> None:
    """Send a body without end as fast as it goes."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        await writer.drain()


def slowly(step: Step, seconds: float) -> Step:
    async def later(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await step(writer)

    return later


@dataclass
class StillClock:
    """A clock that moves when it is told to."""

    time: float = NOW

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time

    def jitter(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def settings(url: str = "https://plm.example.com/oauth/token", **values: Any) -> OAuth2:
    if values.get("client_auth", "client_secret_basic").startswith("client_secret"):
        values.setdefault("client_secret", {"value": SECRET})
    return OAuth2.model_validate({"token_url": url, "client_id": CLIENT_ID, **values})


def issuer_of(
    url: str = "https://plm.example.com/oauth/token",
    *,
    tls: Tls | None = None,
    clock: StillClock | None = None,
    **values: Any,
) -> OAuth2Issuer:
    return OAuth2Issuer(settings(url, **values), tls=tls or Tls(), clock=clock or StillClock())


PASSWORD = {"grant": "password", "username": "svc", "password": {"value": "CANARY-pass&word"}}
REFRESH = {"grant": "refresh_token", "refresh_token": {"value": FIRST.reveal()}}


async def failure[E: SidecarError](
    kind: type[E], issuer: OAuth2Issuer, kept: Secret | None = None, *, seconds: float = 5.0
) -> E:
    """Return the error of a call that must fail, having looked for secrets in all that hangs on it."""
    with pytest.raises(kind) as caught:
        await issuer.obtain(kept, seconds)
    error = caught.value
    no_leak("".join(traceback.format_exception(error)))
    chain: BaseException | None = error
    while chain is not None:
        no_leak(f"{chain} {chain!r} {chain.args} {vars(chain)}")
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, IssuerError):
        assert f"client {CLIENT_ID!r}" in str(error)
    assert "\n" not in str(error)
    return error


def no_leak(text: str) -> None:
    assert not [needle for needle in NEEDLES if needle in text.encode(errors="replace")]


# --- what is sent ---------------------------------------------------------------------------------------


async def test_basic_encodes_id_and_secret_before_joining_them() -> None:
    """Basic carries the form-encoded id and secret (RFC 6749 section 2.3.1) and the form neither of them."""
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url).obtain(None, 5)

    scheme, encoded = server.calls[0].headers["authorization"].split(" ")
    parts = base64.b64decode(encoded).decode("ascii").split(":")
    assert scheme == "Basic"
    assert [CLIENT_ID, SECRET] == [unquote_plus(part) for part in parts]
    assert [("grant_type", "client_credentials")] == server.calls[0].form


async def test_basic_may_be_raw() -> None:
    """Issuers that do not decode want id and secret as they are, in UTF-8 (RFC 7617)."""
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url, client_auth="client_secret_basic_raw").obtain(None, 5)

    encoded = server.calls[0].headers["authorization"].removeprefix("Basic ")
    assert base64.b64decode(encoded).decode() == f"{CLIENT_ID}:{SECRET}"
    assert server.calls[0].form == [("grant_type", "client_credentials")]


async def test_the_request_is_a_form_post_that_asks_for_plain_json() -> None:
    """A token request is a POST of a form on a connection of its own; it has no query and wants no compression."""
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url).obtain(None, 5)

    headers = server.calls[0].headers
    assert server.calls[0].line == "POST /oauth/token HTTP/1.1"
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert headers["accept-encoding"] == "identity"
    assert headers["accept"] == "application/json"
    assert headers["user-agent"] == "auth-sidecar"
    assert headers["connection"] == "close"


POST = [("client_id", CLIENT_ID), ("client_secret", SECRET)]
PUBLIC = [("client_id", CLIENT_ID)]


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        ({}, None, [("grant_type", "client_credentials"), *POST]),
        (
            {"scope": "read write", "extra": {"audience": "plm", "display": ""}},
            None,
            [("grant_type", "client_credentials"), ("scope", "read write"), ("audience", "plm"), *POST],
        ),
        ({"scope": ""}, None, [("grant_type", "client_credentials"), *POST]),
        (
            {**PASSWORD, "scope": "read"},
            None,
            [
                ("grant_type", "password"),
                ("scope", "read"),
                ("username", "svc"),
                ("password", "CANARY-pass&word"),
                *POST,
            ],
        ),
        (
            {**REFRESH, "scope": "read"},
            None,
            [("grant_type", "refresh_token"), ("scope", "read"), ("refresh_token", FIRST.reveal()), *POST],
        ),
        (REFRESH, SECOND, [("grant_type", "refresh_token"), ("refresh_token", SECOND.reveal()), *POST]),
        (
            {**PASSWORD, "scope": "read", "extra": {"audience": "plm"}},
            SECOND,
            [("grant_type", "refresh_token"), ("refresh_token", SECOND.reveal()), ("audience", "plm"), *POST],
        ),
        (
            PASSWORD,
            Secret(""),
            [("grant_type", "password"), ("username", "svc"), ("password", "CANARY-pass&word"), *POST],
        ),
        ({"client_auth": "none"}, None, [("grant_type", "client_credentials"), *PUBLIC]),
        (
            {"resource": ["https://b.example", "https://a.example"]},
            None,
            [
                ("grant_type", "client_credentials"),
                ("resource", "https://b.example"),
                ("resource", "https://a.example"),
                *POST,
            ],
        ),
        (
            {"grant": "token_exchange", "subject_token": {"value": "CANARY-subject"}, "extra": {"audience": "plm"}},
            None,
            [
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                ("subject_token", "CANARY-subject"),
                ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                ("audience", "plm"),
                *POST,
            ],
        ),
        (
            {"client_auth": "assertion", "client_assertion": {"value": "CANARY-projected"}},
            None,
            [
                ("grant_type", "client_credentials"),
                *PUBLIC,
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                ("client_assertion", "CANARY-projected"),
            ],
        ),
    ],
)
async def test_the_form_of_each_grant(
    values: dict[str, Any], given: Secret | None, expected: list[tuple[str, str]]
) -> None:
    """Each grant sends its own parameters, once each, without empty ones, and one client authentication."""
    values = {"client_auth": "client_secret_post", **values}
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url, **values).obtain(given, 5)

    assert expected == server.calls[0].form
    assert "authorization" not in server.calls[0].headers


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256"])
async def test_an_assertion_proves_the_client(algorithm: str, rsa_key: rsa.RSAPrivateKey) -> None:
    """private_key_jwt sends a signed assertion for this endpoint, a little backdated and short-lived (RFC 7523)."""
    key = ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else rsa_key
    values = {"client_auth": "private_key_jwt", "private_key": {"value": pem(key)}, "key_id": "k1"}
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url, algorithm=algorithm, **values).obtain(None, 5)

    call = server.calls[0]
    assertion = call.value("client_assertion")
    unchecked = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims = jwt.decode(assertion, key.public_key(), algorithms=[algorithm], audience=server.url, options=unchecked)
    assert jwt.get_unverified_header(assertion) == {"alg": algorithm, "typ": "JWT", "kid": "k1"}
    assert (claims["iss"], claims["sub"]) == (CLIENT_ID, CLIENT_ID)
    assert NOW - 30 < claims["iat"] == claims["nbf"] < NOW - 20
    assert NOW + 90 < claims["exp"] <= NOW + 120
    assert call.value("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert call.value("client_id") == CLIENT_ID
    assert "authorization" not in call.headers


def claims_in(call: Call, name: str = "client_assertion") -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(call.value(name), options={"verify_signature": False})
    return claims


@pytest.mark.parametrize("ahead", [-7200, -5, 5, 7200])
async def test_an_assertion_is_dated_by_the_issuers_clock_once_it_is_known(
    ahead: int, rsa_key: rsa.RSAPrivateKey
) -> None:
    """An earlier answer shows it, a refusal too; a wrong clock of this machine then harms no more."""
    said = f"Date: {format_datetime(datetime.fromtimestamp(NOW + ahead, UTC), usegmt=True)}"
    values = {"client_auth": "private_key_jwt", "private_key": {"value": pem(rsa_key)}}
    async with endpoint(answer({"error": "invalid_client"}, 401, said), answer(TOKEN)) as server:
        issuer = issuer_of(server.url, **values)
        await failure(CredentialRejected, issuer)
        await issuer.obtain(None, 5)

    before, after = map(claims_in, server.calls)
    assert after["iat"] - before["iat"] == after["nbf"] - before["nbf"] == after["exp"] - before["exp"] == ahead


@pytest.mark.parametrize("order", ["key first", "certificate first"])
@pytest.mark.parametrize("kind", ["rsa", "ec"])
async def test_an_assertion_names_its_certificate(order: str, kind: str, authority: trustme.CA) -> None:
    """x5t#S256 is the hash of the certificate beside the key, the first of them; the audience may be another."""
    leaf = authority.issue_cert("plm.example", key_type=trustme.KeyType[{"rsa": "RSA", "ec": "ECDSA"}[kind]])
    parts = [leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes(), authority.cert_pem.bytes()]
    if order != "key first":
        parts = [*parts[1:], parts[0]]
    values = {
        "client_auth": "private_key_jwt",
        "private_key": {"value": b"".join(parts).decode()},
        "algorithm": "RS256" if kind == "rsa" else "ES256",
        "assertion": {"audience": "https://sts.example", "headers": ["x5t#S256"]},
    }
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url, **values).obtain(None, 5)

    header = jwt.get_unverified_header(server.calls[0].value("client_assertion"))
    der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
    assert header["x5t#S256"] == base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
    assert claims_in(server.calls[0])["aud"] == "https://sts.example"


@pytest.mark.parametrize("beside", ["", "-----BEGIN CERTIFICATE-----\nCANARY!\n-----END CERTIFICATE-----\n"])
async def test_a_key_without_its_certificate_is_a_configuration_error(beside: str, rsa_key: rsa.RSAPrivateKey) -> None:
    """Where the assertion is to name one; the sentence says where it is looked for."""
    values = {"client_auth": "private_key_jwt", "private_key": {"value": beside + pem(rsa_key)}}
    async with endpoint() as server:
        error = await failure(ConfigurationError, issuer_of(server.url, assertion={"headers": ["x5t#S256"]}, **values))

    assert "x5t#S256 needs a certificate; expected one in PEM beside the key in private_key" in str(error)


async def test_a_signed_assertion_is_a_grant(rsa_key: rsa.RSAPrivateKey) -> None:
    """jwt_bearer asks for the subject's token with an assertion of the client's (RFC 7523 section 2.1)."""
    values = {"grant": "jwt_bearer", "client_auth": "none", "subject": "svc@example.com", "scope": "api"}
    async with endpoint(answer(TOKEN)) as server:
        grant = await issuer_of(server.url, private_key={"value": pem(rsa_key)}, **values).obtain(None, 5)

    call, claims = server.calls[0], claims_in(server.calls[0], "assertion")
    assert call.value("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert (claims["iss"], claims["sub"], claims["aud"]) == (CLIENT_ID, "svc@example.com", server.url)
    assert (call.value("client_id"), call.value("scope"), grant.how) == (CLIENT_ID, "api", "jwt_bearer")


async def test_an_assertion_of_a_grant_has_the_issuers_time_too(rsa_key: rsa.RSAPrivateKey) -> None:
    """As the one of a client, once an answer has shown it."""
    said = f"Date: {format_datetime(datetime.fromtimestamp(NOW + 600, UTC), usegmt=True)}"
    values = {"grant": "jwt_bearer", "client_auth": "none", "subject": "svc", "private_key": {"value": pem(rsa_key)}}
    async with endpoint(answer(TOKEN, 200, said), answer(TOKEN)) as server:
        issuer = issuer_of(server.url, **values)
        await issuer.obtain(None, 5)
        await issuer.obtain(None, 5)

    before, after = (claims_in(call, "assertion") for call in server.calls)
    assert after["iat"] - before["iat"] == 600


async def test_a_ready_assertion_is_a_grant(tmp_path: Path) -> None:
    """What is in assertion_file is sent as it is now; it is a secret, and one that is gone is named."""
    path = tmp_path / "assertion"
    async with endpoint(
        answer(TOKEN), answer({"error": "invalid_grant", "error_description": "CANARY-two"}, 400)
    ) as server:
        issuer = issuer_of(server.url, grant="jwt_bearer", assertion_file=path)
        path.write_text("CANARY-one\n")
        await issuer.obtain(None, 5)
        path.write_text("CANARY-two\n")
        error = await failure(CredentialRejected, issuer)
        path.unlink()
        await failure(ConfigurationError, issuer)

    assert [call.value("assertion") for call in server.calls] == ["CANARY-one", "CANARY-two"]
    assert "or what is in assertion_file" in str(error)


async def test_each_attempt_has_an_assertion_of_its_own(rsa_key: rsa.RSAPrivateKey) -> None:
    """A repeated request carries a new assertion, since an issuer takes each only once; no key_id, no kid."""
    values = {"client_auth": "private_key_jwt", "private_key": {"value": pem(rsa_key)}}
    async with endpoint(reset, answer(TOKEN)) as server:
        await issuer_of(server.url, **values).obtain(FIRST, 5)

    first, second = (call.value("client_assertion") for call in server.calls)
    ids = [jwt.decode(text, options={"verify_signature": False})["jti"] for text in (first, second)]
    assert ids[0] != ids[1]
    assert len(ids[0]) >= 16
    assert "kid" not in jwt.get_unverified_header(first)


@pytest.mark.parametrize("kind", ["garbage", "wrong type", "encrypted"])
async def test_a_key_that_cannot_sign_is_a_configuration_error(kind: str, rsa_key: rsa.RSAPrivateKey) -> None:
    """A private key that does not fit its algorithm is named, never shown, and nothing is sent."""
    key = {
        "garbage": "CANARY-no-key",
        "wrong type": pem(ec.generate_private_key(ec.SECP256R1())),
        "encrypted": pem(rsa_key, b"CANARY"),
    }[kind]
    values = {"client_auth": "private_key_jwt", "private_key": {"value": key}}
    async with endpoint() as server:
        error = await failure(ConfigurationError, issuer_of(server.url, **values))

    assert str(error).startswith("private_key cannot sign RS256; expected")
    assert not server.calls


async def test_a_missing_reference_is_a_configuration_error() -> None:
    """A secret that the configured way needs and does not have is named."""
    bare = settings(client_auth="none").model_copy(update={"client_auth": "client_secret_post"})
    issuer = OAuth2Issuer(bare, tls=Tls(), clock=StillClock())

    assert "oauth2.client_secret is missing" in str(await failure(ConfigurationError, issuer))


@pytest.mark.parametrize("name", ["client_assertion", "client_assertion_type"])
def test_extra_cannot_bring_a_second_authentication(name: str) -> None:
    """One request has one client authentication (RFC 6749 section 2.3), so extra may not add an assertion."""
    with pytest.raises(ValueError, match=f"extra cannot set {name}"):
        settings(extra={name: "x"})


async def test_secrets_are_read_for_each_request(tmp_path: Path) -> None:
    """A rotated secret file takes effect with the next request, without a restart."""
    path = tmp_path / "secret"
    path.write_text("CANARY-old\n")
    async with endpoint(answer(TOKEN), answer(TOKEN)) as server:
        issuer = issuer_of(server.url, client_auth="client_secret_post", client_secret={"file": path})
        await issuer.obtain(None, 5)
        path.write_text("CANARY-new\n")
        await issuer.obtain(None, 5)

    assert ["CANARY-old", "CANARY-new"] == [call.value("client_secret") for call in server.calls]


async def test_an_unreadable_secret_is_a_configuration_error(tmp_path: Path) -> None:
    """A secret that cannot be read is the operator's business, and nothing is sent."""
    async with endpoint() as server:
        await failure(ConfigurationError, issuer_of(server.url, client_secret={"file": tmp_path / "none"}))

    assert not server.calls


async def test_the_environment_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a proxy nor a netrc entry of the environment takes part: both would get at the credential."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login foreign password foreign\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url, client_auth="none").obtain(None, 5)

    assert "authorization" not in server.calls[0].headers


async def test_no_cookie_is_kept() -> None:
    """A cookie of the issuer is not sent back, not even by the next request of the same call."""
    cookie = "Set-Cookie: a=b; Path=/"
    async with endpoint(raw(b"", 502, cookie), answer(TOKEN)) as server:
        await issuer_of(server.url).obtain(FIRST, 5)

    assert len(server.calls) == 2
    assert "cookie" not in server.calls[1].headers


TARGETS = [
    "/oauth2/v2.0/token?p=b2c_1_x",
    "/My%20Realm//a/../token;v=1?grant_type=x&a=%2f",
    "?p=/x",
    "/stra%C3%9Fe?",
    "",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_the_target_goes_out_as_it_was_published(target: str) -> None:
    """Query (RFC 6749 section 3.2), escapes, doubled slashes and dot segments reach the issuer byte for byte."""
    async with endpoint(answer(TOKEN)) as server:
        await issuer_of(server.url.removesuffix("/oauth/token") + target).obtain(None, 5)

    sent = target if target.startswith("/") else f"/{target}"
    assert server.calls[0].line == f"POST {sent} HTTP/1.1"
    assert server.calls[0].headers["host"] == server.url.split("/")[2]


# --- what comes back ------------------------------------------------------------------------------------


async def test_a_grant_says_what_the_issuer_gave() -> None:
    """A grant holds the token, its lifetime counted from the sending, the scope and the next refresh token."""
    clock = StillClock()

    async def later(writer: asyncio.StreamWriter) -> None:
        clock.time += 7
        await answer({**TOKEN, "refresh_token": SECOND.reveal(), "scope": "read", "unknown": [1]})(writer)

    async with endpoint(later) as server:
        grant = await issuer_of(server.url, clock=clock, scope="read write").obtain(None, 5)

    assert grant == Grant(
        values={"access_token": Secret("CANARY-token")},
        kept=SECOND,
        lifetime=300.0,
        requested_at=NOW,
        source="expires_in",
        how="client_credentials",
        scope="read",
        asked="read write",
    )
    no_leak(repr(grant))


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [({}, None, "client_credentials"), (PASSWORD, None, "password"), (PASSWORD, FIRST, "refresh_token")],
)
async def test_a_grant_names_the_grant_that_gave_it(
    values: dict[str, Any], given: Secret | None, expected: str
) -> None:
    """A grant names its OAuth grant; without a scope and a refresh token in the answer it has none."""
    async with endpoint(answer(TOKEN)) as server:
        grant = await issuer_of(server.url, **values).obtain(given, 5)

    assert (grant.how, grant.scope, grant.asked, grant.kept) == (expected, None, None, None)


@pytest.mark.parametrize("value", ["", "CANARY\r\nX: y", "CANARY-\ud800", "CANARY-ü", 7, None, ["CANARY"]])
async def test_a_malformed_refresh_token_is_none(value: object) -> None:
    """A refresh token outside the grammar of RFC 6749 appendix A is as good as none: the old one is kept."""
    async with endpoint(answer({**TOKEN, "refresh_token": value, "scope": [value, "CANARY-ü"]})) as server:
        grant = await issuer_of(server.url).obtain(None, 5)

    assert (grant.kept, grant.scope) == (None, None)


@pytest.mark.parametrize("value", ["Bearer", "bearer ", "BearerToken", "N_A", "", None, 7, ["mac"], "bearer CANARY"])
async def test_any_token_type_is_taken_for_bearer(value: object) -> None:
    """Vendors spell it as they like, or leave it out; a status of 2xx and `error: null` will do."""
    async with endpoint(answer({**TOKEN, "token_type": value, "error": None}, 201)) as server:
        assert await issuer_of(server.url).obtain(None, 5)


@pytest.mark.parametrize("value", ["mac", "DPoP", "dpop", "PoP", " pop "])
async def test_a_token_that_signs_each_request_fails_closed(value: str) -> None:
    """A token of a type that needs more than showing it is not used (RFC 6749 section 7.1)."""
    async with endpoint(answer({**TOKEN, "token_type": value})) as server:
        error = await failure(Unusable, issuer_of(server.url))

    assert "granted a token_type that signs each request, not Bearer" in str(error)


@pytest.mark.parametrize("value", ["a", "00D5!AQ.x", "Atza|IwEBI", "a:b", "CANARY=x", "x" * 16_384])
async def test_a_token_of_visible_ascii_is_taken(value: str) -> None:
    """An access token is any visible ASCII (RFC 6749 appendix A.12, less the space) of up to 16 KiB."""
    async with endpoint(answer({**TOKEN, "access_token": value})) as server:
        grant = await issuer_of(server.url).obtain(None, 5)

    assert value == grant.values["access_token"].reveal()


@pytest.mark.parametrize(
    "value", ["", "CANARY\r\nX: y", "CANARY token", "CANARY\n", "CANARY-ü", "x" * 16_385, 7, None, ["CANARY"]]
)
async def test_any_other_token_fails_closed(value: object) -> None:
    """An access token that could not be one header value is not used."""
    async with endpoint(answer({**TOKEN, "access_token": value})) as server:
        error = await failure(Unusable, issuer_of(server.url))

    assert "without a usable access_token" in str(error)


FATAL = ["invalid_client", "invalid_grant", "unauthorized_client"]
FATAL += ["unsupported_grant_type", "invalid_scope", "invalid_request"]


@pytest.mark.parametrize("error", FATAL)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 409])
async def test_an_error_is_a_refusal(error: str, status: int) -> None:
    """An error of RFC 6749 section 5.2 rejects the credential with any such status, even beside a token."""
    async with endpoint(answer({**TOKEN, "error": error}, status)) as server:
        caught = await failure(CredentialRejected, issuer_of(server.url))

    assert (caught.error, caught.locks, caught.skew) == (error, False, 0.0)
    assert f"refused the grant client_credentials with {status}: {error};" in str(caught)
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>CANARY</html>", b"{}", b"null", b'{"error": ["CANARY"]}', b"Unauthorized"]
)
@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refusal_needs_no_words(status: int, body: bytes) -> None:
    """400, 401 and 403 are a no whatever comes with them; its code is then unknown, and the body is not shown."""
    async with endpoint(raw(body, status)) as server:
        caught = await failure(CredentialRejected, issuer_of(server.url))

    assert caught.error == ""
    assert f"refused the grant client_credentials with {status}; " in str(caught)


@pytest.mark.parametrize(("kept", "locks"), [(None, True), (FIRST, False)])
async def test_a_refused_password_may_lock_the_account(kept: Secret | None, locks: bool) -> None:
    """Asked again it may; a refused refresh token locks nobody out."""
    async with endpoint(raw(b"", 401)) as server:
        assert (await failure(CredentialRejected, issuer_of(server.url, **PASSWORD), kept)).locks is locks


@pytest.mark.parametrize("status", [404, 405, 410, 421])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": "Not Found", "status": 404, "path": "/token"}', b"{}"])
async def test_an_address_that_nobody_knows_is_no_refusal(status: int, body: bytes) -> None:
    """A roll-out or a wrong token_url: the credential was not looked at."""
    async with endpoint(raw(body, status, "Retry-After: 7")) as server:
        error = await failure(Misplaced, issuer_of(server.url))

    assert f"answered with {status}; nothing there answers as a token endpoint; check token_url" in str(error)
    assert error.retry_after == 7


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 503, 599])
async def test_an_issuer_in_trouble_refuses_nobody(status: int) -> None:
    """Whatever its body says: what it says of the credential is worth nothing while it cannot look."""
    async with endpoint(answer({"error": "invalid_client"}, status, "Retry-After: 7")) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url))

    assert type(error) is IssuerUnavailable
    assert error.retry_after == 7


@pytest.mark.parametrize("error", ["server_error", "temporarily_unavailable", "slow_down"])
@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
async def test_weather_in_words_is_weather(error: str, status: int) -> None:
    """With any status: the issuer says itself that it did not act, and that it is not about the credential."""
    async with endpoint(answer({"error": error}, status)) as server:
        assert type(await failure(IssuerUnavailable, issuer_of(server.url))) is IssuerUnavailable


async def test_a_form_is_read_where_it_says_that_it_is_one() -> None:
    """GitHub's default, a token or an error; without the Content-Type it is garbage."""
    form = b"access_token=CANARY-form&token_type=bearer&scope=&expires_in=90"
    kind = "Content-Type: application/x-www-form-urlencoded; charset=utf-8"
    steps = [
        raw(form, 200, kind),
        raw(b"error=incorrect_client_credentials", 200, kind),
        raw(form),
        raw("access_token=CANARY-é".encode(), 200, kind),
    ]
    async with endpoint(*steps) as server:
        grant = await issuer_of(server.url).obtain(None, 5)
        refusal = await failure(CredentialRejected, issuer_of(server.url))
        for _ in range(2):
            await failure(BrokenOff, issuer_of(server.url))

    assert (grant.values["access_token"].reveal(), grant.lifetime, grant.scope) == ("CANARY-form", 90.0, None)
    assert refusal.error == "incorrect_client_credentials"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
async def test_json_is_read_in_every_encoding_of_its_past(encoding: str) -> None:
    """With a byte order mark or without (RFC 8259 section 8.1, RFC 4627 section 3)."""
    async with endpoint(raw(json.dumps(TOKEN).encode(encoding))) as server:
        assert await issuer_of(server.url).obtain(None, 5)


async def test_a_list_of_scopes_is_a_scope() -> None:
    """Some issuers give one; it says what was granted as well as a text does."""
    async with endpoint(answer({**TOKEN, "scope": ["read", "write"]})) as server:
        assert (await issuer_of(server.url).obtain(None, 5)).scope == "read write"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            answer({"error": "server_error"}, 500),
            "answered with 500: server_error; expected a token in a JSON object; check",
        ),
        (answer({"error": "temporarily_unavailable", **TOKEN}), "answered with 200"),
        (answer(TOKEN, 502), "answered with 502"),
        (answer(TOKEN, 404), "answered with 404"),
        (raw(b"", 409), "answered with 409"),
        (raw(b"", 204), "answered with 204"),
        (raw(b"<html>CANARY</html>", 503), "answered with 503"),
        (raw(b"<html>CANARY</html>"), "answered with 200"),
        (raw(json.dumps(TOKEN).encode()[:-5]), "expected a token in a JSON object; check"),
        (raw(b""), "expected a token in a JSON object; check"),
        (raw(b"[]"), "expected a token in a JSON object; check"),
        (raw(b"{}"), "expected a token in a JSON object; check"),
        (raw(b'"CANARY"'), "expected a token in a JSON object; check"),
        (raw('{"access_token": "ü"}'.encode("latin-1")), "expected a token in a JSON object; check"),
        (raw(b"[" * 60_000), "expected a token in a JSON object; check"),
        (raw(b'{"a":' * 10_000), "expected a token in a JSON object; check"),
        (raw(b'{"expires_in": ' + b"9" * 5000 + b"}"), "expected a token in a JSON object; check"),
        (
            raw(gzip.compress(json.dumps(TOKEN).encode()), 200, "Content-Encoding: gzip"),
            "JSON object, but the body is compressed, which was not asked for; check token_url",
        ),
        (raw(b" " * 65_536 + json.dumps(TOKEN).encode()), "JSON object, but the body is over 64 KiB; check"),
        (pour, "JSON object, but the body is over 64 KiB; check"),
        (answer(TOKEN, 302, "Location: /elsewhere"), "answered with 302; a redirect is not followed"),
        (cut_short, "broke off"),
        (reset, "broke off before its answer was complete: Connection reset by peer"),
        (raw(b"", 200, "Broken header line"), "does not speak HTTP"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_weather(step: Step, message: str) -> None:
    """Whatever is neither a token nor a refusal is transient, and is asked for once."""
    async with endpoint(step) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url))

    assert message in str(error)
    assert error.retry_after is None
    assert len(server.calls) == 1


async def test_a_body_of_64_kib_and_any_content_type_is_read() -> None:
    """The limit is 64 KiB; the Content-Type is not looked at, nor an encoding that is none."""
    body = json.dumps(TOKEN).encode()
    step = raw(b" " * (65_536 - len(body)) + body, 200, "Content-Type: text/html", "Content-Encoding: Identity")
    async with endpoint(step) as server:
        assert await issuer_of(server.url).obtain(None, 5)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (answer({}, 429, "Retry-After: 20"), 20.0),
        (raw(b"<html>", 503, "Retry-After: 120"), 120.0),
        (answer({"error": "invalid_request"}, 429, "Retry-After: 20"), 20.0),
        (raw(b"", 429, f"Retry-After: {format_datetime(datetime.fromtimestamp(NOW + 30, UTC), usegmt=True)}"), 30.0),
        (raw(b"", 429), None),
    ],
)
async def test_the_issuer_may_ask_for_a_pause(step: Step, expected: float | None) -> None:
    """Retry-After, in seconds or as a date, is handed on; a 429 is about the rate, whatever error it names."""
    async with endpoint(step) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url))

    assert expected == error.retry_after


async def test_a_redirect_is_not_followed() -> None:
    """The secret goes to the configured endpoint and nowhere else (RFC 9700 section 4.12)."""
    async with endpoint() as other, endpoint(raw(b"", 307, f"Location: {other.url}")) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url))

    assert "answered with 307; a redirect is not followed" in str(error)
    assert not other.calls


@pytest.mark.parametrize(
    ("description", "shown"),
    [
        ("Client is\r\ndisabled \x1b[31m", ": invalid_client (Client is  disabled  [31m);"),
        ("x" * 500, f": invalid_client ({'x' * 200});"),
        (f"the secret {SECRET} is wrong", ": invalid_client (*** its description repeats a secret ***);"),
        (
            "got CANARY-s%3Ae%25%2B+%C3%BC%26%3D%2F%3F%23",
            ": invalid_client (*** its description repeats a secret ***);",
        ),
        ("x" * 190 + SECRET, ": invalid_client (*** its description repeats a secret ***);"),
        ("x" * 199 + SECRET, ": invalid_client (*** its description repeats a secret ***);"),
        ("it ended in e%+ ü&=/?#", ": invalid_client (*** its description repeats a secret ***);"),
        ("it ended in e%25%2B+%C3%BC", ": invalid_client (*** its description repeats a secret ***);"),
        ("it began with CANARY-s", ": invalid_client (*** its description repeats a secret ***);"),
        ("", ": invalid_client;"),
        (["CANARY"], ": invalid_client;"),
        (None, ": invalid_client;"),
    ],
)
async def test_a_description_is_shown_as_far_as_it_is_harmless(description: object, shown: str) -> None:
    """An error_description is shown in printable ASCII, 200 characters of it, unless it repeats a secret."""
    async with endpoint(answer({"error": "invalid_client", "error_description": description}, 401)) as server:
        assert shown in str(await failure(CredentialRejected, issuer_of(server.url)))


@pytest.mark.parametrize(
    ("values", "given", "echo"),
    [
        ({"client_auth": "client_secret_post"}, None, SECRET),
        ({}, None, "authorization"),
        (PASSWORD, None, "CANARY-pass&word"),
        (REFRESH, SECOND, SECOND.reveal()),
        ({"client_auth": "client_secret_post", "client_secret": {"value": "tiny"}}, None, "tiny"),
        ({"client_auth": "client_secret_post", "client_secret": {"value": "tiny_word"}}, None, "tiny_word"),
        ({"client_auth": "private_key_jwt"}, None, "client_assertion"),
    ],
)
async def test_an_echo_of_any_secret_is_hidden(
    values: dict[str, Any], given: Secret | None, echo: str, rsa_key: rsa.RSAPrivateKey
) -> None:
    """Whatever secret went into the request, an issuer that repeats it does not get it into our message."""

    async def step(writer: asyncio.StreamWriter) -> None:
        call = server.calls[0]
        said = dict(call.form).get(echo) or call.headers.get(echo, echo).removeprefix("Basic ")
        document = {"error": echo if echo == "tiny_word" else "server_error", "error_description": f"got {said}"}
        await answer(document, 401)(writer)
        said_in_full.append(said)

    said_in_full: list[str] = []
    values = {"private_key": {"value": pem(rsa_key)}, **values}
    async with endpoint(step) as server:
        error = await failure(IssuerError, issuer_of(server.url, **values), given)

    assert said_in_full[0][:8] not in str(error)


def test_an_answer_does_not_show_its_body() -> None:
    """The body of an answer holds tokens, so it is not in the text of one."""
    no_leak(repr(Answer(status=200, fields=(), body=b"CANARY")))


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (300, "5 minutes behind"),
        (-300, "5 minutes ahead of"),
        (62, "62 seconds behind"),
        (7200, "2 hours behind"),
        (-400 * 86_400, "400 days ahead of"),
        (30, None),
        (-59, None),
    ],
)
async def test_a_refusal_tells_of_a_wrong_clock(ahead: int, words: str | None) -> None:
    """By the issuer's Date, when it differs from ours by more than a minute: by how much, and which way."""
    said = f"Date: {format_datetime(datetime.fromtimestamp(NOW + ahead, UTC), usegmt=True)}"
    async with endpoint(answer({"error": "invalid_client"}, 401, said)) as server:
        error = await failure(CredentialRejected, issuer_of(server.url))

    assert error.skew == (ahead if words else 0)
    assert (f"; this machine's clock is {words} the issuer's" in str(error)) if words else ("clock" not in str(error))


# --- how long it lasts ----------------------------------------------------------------------------------


def jwt_of(**claims: object) -> str:
    return jwt.encode(claims, "k" * 32, algorithm="HS256")


def date(offset: float) -> tuple[bytes, bytes]:
    return b"Date", format_datetime(datetime.fromtimestamp(NOW + offset, UTC), usegmt=True).encode()


HEADER = (b"X-Token-Expires-In", b"90")
CYCLE = base64.urlsafe_b64encode(b"[" * 6000).decode().rstrip("=")


@pytest.mark.parametrize(
    ("expires_in", "token", "fields", "expected"),
    [
        (3600, jwt_of(exp=NOW + 60), (HEADER,), (60.0, "jwt")),
        (3_600_000, jwt_of(exp=NOW + 3600), (), (3600.0, "jwt")),
        (60, jwt_of(exp=NOW + 3600), (), (60.0, "expires_in")),
        (3600, jwt_of(exp=NOW + 3600), (), (3600.0, "expires_in")),
        (3600, jwt_of(exp=NOW + 3300), (date(-300),), (3600.0, "expires_in")),
        (3600, jwt_of(exp=NOW - 1), (), (0.0, "jwt")),
        (0, jwt_of(exp=NOW + 60), (), (0.0, "expires_in")),
        ("3600", "opaque", (), (3600.0, "expires_in")),
        ("3.6e3", "opaque", (), (3600.0, "expires_in")),
        (" 3599.9 ", "opaque", (), (3599.9, "expires_in")),
        (3599.9, "opaque", (), (3599.9, "expires_in")),
        (0.5, "opaque", (), (0.5, "expires_in")),
        (MAX_LIFETIME, "opaque", (), (MAX_LIFETIME, "expires_in")),
        (0, "opaque", (HEADER,), (0.0, "expires_in")),
        (-5, "opaque", (HEADER,), (0.0, "expires_in")),
        ("-5", "opaque", (HEADER,), (0.0, "expires_in")),
        ("-1e30", "opaque", (HEADER,), (0.0, "expires_in")),
        (-(10**400), "opaque", (HEADER,), (0.0, "expires_in")),
        (MAX_LIFETIME + 1, "opaque", (HEADER,), (90.0, "header")),
        (1e12, "opaque", (HEADER,), (90.0, "header")),
        ("9" * 400, "opaque", (HEADER,), (90.0, "header")),
        (10**400, "opaque", (HEADER,), (90.0, "header")),
        (math.inf, "opaque", (HEADER,), (90.0, "header")),
        (math.nan, "opaque", (HEADER,), (90.0, "header")),
        ("NaN", "opaque", (HEADER,), (90.0, "header")),
        ("", "opaque", (HEADER,), (90.0, "header")),
        ("1h", "opaque", (HEADER,), (90.0, "header")),
        (True, "opaque", (HEADER,), (90.0, "header")),
        ([60], "opaque", (HEADER,), (90.0, "header")),
        (None, jwt_of(exp=NOW + 60), (HEADER,), (60.0, "jwt")),
        (None, jwt_of(exp=NOW + 60.5), (HEADER,), (60.5, "jwt")),
        (None, jwt_of(exp=NOW - 60), (HEADER,), (0.0, "jwt")),
        (None, jwt_of(exp=-(10**400)), (HEADER,), (0.0, "jwt")),
        (None, jwt_of(exp=NOW + 660), (date(600), HEADER), (60.0, "jwt")),
        (None, jwt_of(exp=NOW - 540), (date(-600), HEADER), (60.0, "jwt")),
        (None, jwt_of(exp=NOW + 60), ((b"Date", b"soon"), HEADER), (60.0, "jwt")),
        (None, jwt_of(exp=NOW + 60), ((b"Date", b"Mon, 01 Jan 99999999999 10:00:00 GMT"), HEADER), (60.0, "jwt")),
        (None, jwt_of(exp=NOW + 2 * MAX_LIFETIME), (HEADER,), (90.0, "header")),
        (None, jwt_of(exp=10**400), (HEADER,), (90.0, "header")),
        (None, jwt_of(exp=math.nan), (HEADER,), (90.0, "header")),
        (None, jwt_of(exp=True), (HEADER,), (90.0, "header")),
        (None, jwt_of(exp="soon"), (HEADER,), (90.0, "header")),
        (None, jwt_of(sub="x"), (HEADER,), (90.0, "header")),
        (None, "a.b.c", (HEADER,), (90.0, "header")),
        (None, f"{CYCLE}.{CYCLE}.x", (HEADER,), (90.0, "header")),
        (None, f"{jwt_of().split('.')[0]}.{CYCLE}.x", (HEADER,), (90.0, "header")),
        (None, "opaque", ((b"x-token-expires-in", b" 45 "),), (45.0, "header")),
        (None, "opaque", ((b"x-token-expires-in", b"0"),), (0.0, "header")),
        (None, "opaque", ((b"x-token-expires-in", b"\xff"),), (300.0, "configured")),
        (None, "opaque", (), (300.0, "configured")),
    ],
)
def test_the_earlier_end_counts(
    expires_in: object, token: str, fields: tuple[tuple[bytes, bytes], ...], expected: tuple[float, str]
) -> None:
    """The earlier of expires_in and a JWT's exp, as far as they can be believed; else the header; else configured."""
    assert expected == granted_lifetime(expires_in, token, fields, requested_at=NOW, configured=300.0)


def test_even_a_configured_lifetime_has_an_end() -> None:
    """A configured lifetime is believed up to the same limit as a granted one."""
    assert granted_lifetime(None, "opaque", (), requested_at=NOW, configured=1e12)[0] == MAX_LIFETIME


numbers = st.integers() | st.floats() | st.integers(-10, 10**9) | st.integers(-(10**400), 10**400)


@given(
    granted=numbers | numbers.map(str) | st.decimals(0, 10**6, places=3).map(str),
    exp=st.none() | numbers,
    header=st.none() | st.integers(-10, 10**12),
    configured=st.floats(0.001, 1e15),
)
def test_a_token_is_never_valid_longer_than_granted(
    granted: float | str, exp: float | None, header: int | None, configured: float
) -> None:
    """Whatever number expires_in is, and whatever the other sources say, the lifetime is not above it."""
    try:
        limit = Fraction(granted)
    except (ValueError, OverflowError):  # not a finite number: it grants nothing in particular
        limit = Fraction(MAX_LIFETIME)
    token = "opaque" if exp is None else jwt_of(exp=exp)
    fields = () if header is None else ((b"X-Token-Expires-In", str(header).encode()),)

    seconds, source = granted_lifetime(granted, token, fields, requested_at=NOW, configured=configured)

    assert 0 <= seconds <= min(max(0, limit * (1 + Fraction(1, 2**52))), Fraction(MAX_LIFETIME))
    assert source in {"expires_in", "jwt", "header", "configured"}


@given(exp=st.integers(0, 2**40) | st.floats(0, 2**40), skew=st.none() | st.integers(-10_000, 10_000))
def test_a_jwt_is_never_valid_longer_than_its_exp(exp: float, skew: int | None) -> None:
    """With expires_in absent, the lifetime ends no later than exp does by the issuer's clock, ours if it shows none."""
    fields = () if skew is None else (date(skew),)

    seconds, _ = granted_lifetime(None, jwt_of(exp=exp), fields, requested_at=NOW, configured=1.0)

    assert seconds <= max(1.0, exp - NOW - (skew or 0))


async def test_the_lifetime_sources_are_those_of_the_answer() -> None:
    """The issuer reads the header of the answer, and the configured lifetime is that of the settings."""
    plain = {"access_token": "CANARY", "token_type": "bearer", "expires_in": None}
    async with endpoint(answer(plain, 200, "X-Token-Expires-In: 90"), answer(plain)) as server:
        issuer = issuer_of(server.url, lifetime="10m")
        grants = [await issuer.obtain(None, 5), await issuer.obtain(None, 5)]

    assert [(90.0, "header"), (600.0, "configured")] == [(grant.lifetime, grant.source) for grant in grants]


async def test_a_token_granted_for_no_time_is_not_used() -> None:
    """An expires_in of zero or less means that the token has expired: there is none."""
    async with endpoint(answer({**TOKEN, "expires_in": 0})) as server:
        assert "already expired (expires_in)" in str(await failure(IssuerUnavailable, issuer_of(server.url)))


# --- refreshing -----------------------------------------------------------------------------------------


def sent(server: Endpoint) -> list[str]:
    """Say per call which grant, and with which refresh token."""
    names = {FIRST.reveal(): "first", SECOND.reveal(): "second", THIRD.reveal(): "third"}
    return [
        call.value("grant_type") + f" {names.get(dict(call.form).get('refresh_token', ''), '')}".rstrip()
        for call in server.calls
    ]


WAYS: list[tuple[dict[str, Any], Secret | None, str]] = [
    (REFRESH, None, "refresh_token first"),
    (REFRESH, FIRST, "refresh_token first"),
    (REFRESH, SECOND, "refresh_token second"),
    (PASSWORD, None, "password"),
    (PASSWORD, SECOND, "refresh_token second"),
    ({}, None, "client_credentials"),
    ({}, SECOND, "refresh_token second"),
]


@pytest.mark.parametrize(("values", "kept", "expected"), WAYS)
@pytest.mark.parametrize("error", ["invalid_grant", "invalid_client", "unauthorized_client"])
async def test_nothing_else_is_tried(values: dict[str, Any], kept: Secret | None, expected: str, error: str) -> None:
    """What to do after a refusal is the caller's business: one way, one request."""
    async with endpoint(refused(error), answer(TOKEN)) as server:
        issuer = issuer_of(server.url, **values)
        assert (await failure(CredentialRejected, issuer, kept)).error == error
        assert (await issuer.obtain(kept, 5)).how == expected.split(" ", maxsplit=1)[0]

    assert sent(server) == [expected, expected]


async def test_weather_is_no_refusal() -> None:
    """A refresh that meets a 503 does not fall back: the refresh token is still good."""
    async with endpoint(raw(b"", 503)) as server:
        await failure(IssuerUnavailable, issuer_of(server.url), FIRST)

    assert sent(server) == ["refresh_token first"]


async def test_what_it_costs_to_start_anew(tmp_path: Path) -> None:
    """Nothing, but for the grant refresh_token: its first one may be presented once, and is what it was at first."""
    path = tmp_path / "first"
    path.write_text(FIRST.reveal())
    issuer = issuer_of(grant="refresh_token", refresh_token={"file": path})
    assert (issuer.anew, issuer.first()) == (Anew.ONCE, FIRST)
    path.unlink()
    assert issuer.first() == FIRST
    gone = issuer_of(grant="refresh_token", refresh_token={"file": path})
    with pytest.raises(ConfigurationError):
        gone.first()
    await failure(ConfigurationError, gone)
    for values in ({}, PASSWORD, {"refresh_token": {"file": path}}):
        other = issuer_of(**values)
        assert (other.anew, other.first()) == (Anew.FREE, None)


@pytest.mark.parametrize("lost", [reset, cut_short])
@pytest.mark.parametrize("values", [{}, REFRESH])
async def test_a_lost_answer_to_a_refresh_is_asked_for_once_more(lost: Step, values: dict[str, Any]) -> None:
    """When the answer to a refresh is lost, the same refresh token is sent once more (FAPI 2.0)."""
    async with endpoint(lost, answer({**TOKEN, "refresh_token": THIRD.reveal()})) as server:
        grant = await issuer_of(server.url, **values).obtain(SECOND, 5)

    assert sent(server) == ["refresh_token second", "refresh_token second"]
    assert grant.kept == THIRD


GARBLED = [raw(b"", 500), raw(b"<html>", 502), raw(b"", 504), raw(b"<html>sorry</html>", 200), raw(b'{"access', 200)]


@pytest.mark.parametrize("garbled", GARBLED, ids=["500", "502", "504", "page", "cut"])
async def test_an_answer_that_leaves_doubt_is_as_good_as_lost(garbled: Step) -> None:
    """A gateway's error, an issuer that failed half-way, a page: the refresh token may have been exchanged."""
    async with endpoint(garbled, answer({**TOKEN, "refresh_token": THIRD.reveal()})) as server:
        grant = await issuer_of(server.url).obtain(SECOND, 5)
    assert sent(server) == ["refresh_token second", "refresh_token second"]
    assert grant.kept == THIRD
    async with endpoint(garbled, garbled) as server:
        await failure(BrokenOff, issuer_of(server.url), SECOND)


@pytest.mark.parametrize("status", [429, 503])
async def test_an_issuer_that_is_busy_has_not_acted(status: int) -> None:
    """It says so itself: the refresh token is as good as before, and not sent again at once."""
    async with endpoint(raw(b"", status)) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url), SECOND)

    assert not isinstance(error, BrokenOff)
    assert len(server.calls) == 1


async def test_an_error_in_words_leaves_no_doubt() -> None:
    """An issuer that says server_error did not act, whatever its status."""
    async with endpoint(answer({"error": "server_error"}, 500)) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url), SECOND)

    assert not isinstance(error, BrokenOff)
    assert len(server.calls) == 1


USELESS = [{"token_type": "mac"}, {"access_token": ""}, {"expires_in": 0}]


@pytest.mark.parametrize("fields", USELESS, ids=str)
async def test_the_refresh_token_of_a_useless_grant_is_not_lost(fields: dict[str, object]) -> None:
    """The one that was presented is spent, whatever is wrong with the access token: the failure carries the next."""
    whole = {**TOKEN, "refresh_token": THIRD.reveal(), **fields}
    async with endpoint(answer(whole)) as server:
        error = await failure(Unusable, issuer_of(server.url), SECOND)
    assert error.kept == THIRD
    assert THIRD.reveal() not in f"{error!r} {error}"

    async with endpoint(answer({**TOKEN, **fields})) as server:
        error = await failure(Unusable, issuer_of(server.url), SECOND)
    assert error.kept is None


async def test_the_refresh_token_of_a_useless_grant_counts_after_a_lost_answer() -> None:
    """It is the newest there is; without one the lost answer may have had it."""
    whole = {**TOKEN, "refresh_token": THIRD.reveal(), "token_type": "mac"}
    async with endpoint(reset, answer(whole)) as server:
        error = await failure(Unusable, issuer_of(server.url), SECOND)
    assert error.kept == THIRD

    async with endpoint(reset, answer({**TOKEN, "token_type": "mac"})) as server:
        await failure(BrokenOff, issuer_of(server.url), SECOND)


async def test_what_is_asked_for_after_a_lost_answer_is_told() -> None:
    """A pause, and how far apart the clocks are, as after any other answer."""
    useless = {**TOKEN, "token_type": "mac"}
    async with endpoint(reset, answer(useless, 200, "Retry-After: 7")) as server:
        assert (await failure(BrokenOff, issuer_of(server.url), SECOND)).retry_after == 7
    async with endpoint(answer(useless, 200, "Retry-After: 7")) as server:
        assert (await failure(Unusable, issuer_of(server.url))).retry_after == 7

    said = f"Date: {format_datetime(datetime.fromtimestamp(NOW + 600, UTC), usegmt=True)}"
    async with endpoint(reset, answer({"error": "invalid_grant"}, 400, said)) as server:
        assert (await failure(CredentialRejected, issuer_of(server.url), SECOND)).skew == 600


async def test_two_lost_answers_are_weather() -> None:
    """A refresh is repeated once, no more; then the issuer is unavailable."""
    async with endpoint(reset, reset) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url), SECOND)

    assert "broke off" in str(error)
    assert len(server.calls) == 2


async def test_a_refusal_after_a_lost_answer_says_so() -> None:
    """When the repeated refresh is refused, the message tells that the next refresh token may have got lost."""
    async with endpoint(reset, refused("invalid_grant")) as server:
        error = await failure(CredentialRejected, issuer_of(server.url, **REFRESH))

    assert error.error == "invalid_grant"
    assert "the answer to an earlier attempt was lost" in str(error)


# --- the network ----------------------------------------------------------------------------------------


async def test_a_refused_connection_says_so() -> None:
    """An issuer that cannot be reached is unavailable, and a refresh is not repeated: nothing was sent."""
    async with endpoint() as server:
        pass

    error = await failure(IssuerUnavailable, issuer_of(server.url), FIRST)
    assert f"issuer {server.url.split('/')[2]}, client" in str(error)
    assert "cannot be reached: Connection refused" in str(error)


async def test_several_refused_addresses_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all addresses of a host refuse, the cause of the first is told."""

    async def lookup(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 9)) for host in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)

    error = await failure(IssuerUnavailable, issuer_of("http://plm.example.com:9/token"))
    assert "Connection refused" in str(error)


async def test_an_unknown_host_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name that does not resolve is told from a host that does not answer."""

    async def lookup(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)

    error = await failure(IssuerUnavailable, issuer_of("http://plm.example.com/token"))
    assert "host name cannot be resolved" in str(error)


async def test_the_deadline_is_for_the_whole_answer() -> None:
    """An answer that comes in drips ends at the deadline, and the connection with it."""
    async with endpoint(drip) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url), seconds=1)
        async with asyncio.timeout(20):
            await server.hung_up.wait()

    assert "gave no complete answer within 1 s" in str(error)


async def test_the_deadline_is_for_all_attempts_together() -> None:
    """A refresh and its repetition share one deadline, which callers hold a lease for."""
    async with endpoint(slowly(reset, 0.5), slowly(answer(TOKEN), 2.8)) as server:
        await failure(BrokenOff, issuer_of(server.url), FIRST, seconds=3)

    assert len(server.calls) == 2


async def test_no_other_deadline_cuts_in() -> None:
    """The HTTP client has no time-out of its own, which would end a call before a longer deadline does."""
    async with open_client(client_context(Material())) as client:
        assert client.timeout == httpx.Timeout(None)


async def test_a_cancelled_call_is_cancelled() -> None:
    """Cancelling is not mistaken for the deadline."""
    async with endpoint(drip) as server:
        task = asyncio.ensure_future(issuer_of(server.url).obtain(None, 5))
        while not server.calls:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_calls_may_overlap_and_follow_a_close() -> None:
    """Two calls at once do not disturb each other, and closing only forgets: a later call works."""
    async with endpoint(slowly(answer(TOKEN), 0.1), answer(TOKEN), answer(TOKEN)) as server:
        issuer = issuer_of(server.url)
        assert len(await asyncio.gather(issuer.obtain(None, 5), issuer.obtain(None, 5))) == 2
        await issuer.aclose()
        assert issuer._context is None
        assert await issuer.obtain(None, 5)


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    path.write_bytes("# Ämter\n".encode() + authority.cert_pem.bytes())
    return path


def server_context(certificate: trustme.LeafCert, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass
class ClientCertificate:
    """The files of a client certificate, which a test can write anew."""

    tls: Tls
    write: Callable[[trustme.LeafCert], None]


@pytest.fixture
def client_certificate(authority: trustme.CA, ca_file: Path, tmp_path: Path) -> ClientCertificate:
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"

    def write(leaf: trustme.LeafCert) -> None:
        certificate.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())

    write(authority.issue_cert("one.example"))
    tls = Tls.model_validate({"ca": ca_file, "client_cert": certificate, "client_key": {"file": key}})
    return ClientCertificate(tls, write)


async def test_an_own_authority_is_trusted(authority: trustme.CA, ca_file: Path) -> None:
    """tls.ca is trusted beside the public roots."""
    async with endpoint(answer(TOKEN), context=server_context(authority.issue_cert("127.0.0.1"))) as server:
        assert await issuer_of(server.url, tls=Tls(ca=ca_file)).obtain(None, 5)


@pytest.mark.parametrize("kind", ["untrusted", "wrong name", "expired"])
async def test_a_certificate_that_does_not_verify_gets_no_secret(
    kind: str, authority: trustme.CA, ca_file: Path
) -> None:
    """With an untrusted, foreign or expired certificate nothing is sent, and the message says which it is."""
    past = datetime.now(UTC) - timedelta(days=1)
    certificate, tls, message = {
        "untrusted": (authority.issue_cert("127.0.0.1"), Tls(), "unable to get local issuer certificate"),
        "wrong name": (authority.issue_cert("192.0.2.1"), Tls(ca=ca_file), "not valid for '127.0.0.1'"),
        "expired": (authority.issue_cert("127.0.0.1", not_after=past), Tls(ca=ca_file), "certificate has expired"),
    }[kind]
    async with endpoint(context=server_context(certificate)) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url, tls=tls), FIRST)

    assert "cannot be reached: its certificate was refused" in str(error)
    assert message in str(error)
    assert not server.calls


async def test_a_peer_without_tls_gets_no_secret() -> None:
    """An https endpoint that answers in clear is a TLS error, not a crash."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await raw(b"", 400)(writer)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(IssuerUnavailable, issuer_of(f"https://127.0.0.1:{port}/token"))

    assert re.search(r"cannot be reached: TLS failed \([A-Z_]{5,}\)", str(error))


async def test_a_garbled_session_is_weather(authority: trustme.CA, ca_file: Path) -> None:
    """Bytes in the middle of a TLS session that do not belong there are an error of ours, not a crash."""

    async def garble(writer: asyncio.StreamWriter) -> None:
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as under_tls:
            under_tls.send(b"This is no TLS record.")

    async with endpoint(garble, context=server_context(authority.issue_cert("127.0.0.1"))) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url, tls=Tls(ca=ca_file)))

    assert "broke off before its answer was complete: TLS failed (" in str(error)


async def test_the_client_certificate_is_shown_and_may_change(
    authority: trustme.CA, client_certificate: ClientCertificate
) -> None:
    """tls_client_auth names the client in the form and proves it in the handshake; rotated files take effect."""
    context = server_context(authority.issue_cert("127.0.0.1"), authority)
    async with endpoint(answer(TOKEN), answer(TOKEN), context=context) as server:
        issuer = issuer_of(server.url, tls=client_certificate.tls, client_auth="tls_client_auth")
        await issuer.obtain(None, 5)
        client_certificate.write(authority.issue_cert("two.example"))
        await issuer.obtain(None, 5)

    assert [call.certificate for call in server.calls] == ["one.example", "two.example"]
    assert server.calls[0].form == [("grant_type", "client_credentials"), ("client_id", CLIENT_ID)]
    assert "authorization" not in server.calls[0].headers


async def test_a_missing_client_certificate_is_weather(authority: trustme.CA, ca_file: Path) -> None:
    """TLS 1.3 refuses a client after the handshake; that is an error of ours as well, not one of the TLS library."""
    context = server_context(authority.issue_cert("127.0.0.1"), authority)
    async with endpoint(context=context) as server:
        error = await failure(IssuerUnavailable, issuer_of(server.url, tls=Tls(ca=ca_file)))

    assert "broke off" in str(error)
    assert not server.calls


@pytest.mark.parametrize("kind", ["mismatch", "encrypted", "garbage", "not utf-8", "missing"])
async def test_an_unusable_client_certificate_is_a_configuration_error(
    kind: str, client_certificate: ClientCertificate, rsa_key: rsa.RSAPrivateKey
) -> None:
    """A key that does not fit, is encrypted or is none is named; nobody is asked for a password."""
    reference = client_certificate.tls.client_key
    assert reference is not None
    assert reference.file is not None
    if kind == "missing":
        assert client_certificate.tls.client_cert is not None
        client_certificate.tls.client_cert.unlink()
    else:
        contents = {"mismatch": pem(rsa_key), "encrypted": pem(rsa_key, b"CANARY"), "garbage": "CANARY"}
        reference.file.write_bytes(contents[kind].encode() if kind in contents else b"\xff")
    error = await failure(ConfigurationError, issuer_of(tls=client_certificate.tls, client_auth="tls_client_auth"))

    assert any(name in str(error) for name in ("tls.client_cert", "client.key"))


@pytest.mark.parametrize(
    ("content", "message"), [("CANARY", "holds no certificate"), ("", "holds no certificate"), (None, "cannot be read")]
)
async def test_an_unusable_authority_is_a_configuration_error(
    content: str | None, message: str, tmp_path: Path
) -> None:
    """A tls.ca that is missing, empty or no certificate is named."""
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    error = await failure(ConfigurationError, issuer_of(tls=Tls(ca=tmp_path / "ca.pem")))

    assert "tls.ca" in str(error)
    assert message in str(error)


def test_the_context_verifies_and_keeps_the_public_roots(authority: trustme.CA) -> None:
    """The context demands a verified certificate of the right name and TLS 1.2; an own authority adds to the roots."""
    context = client_context(Material(ca=authority.cert_pem.bytes().decode()))

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == len(client_context(Material()).get_ca_certs()) + 1 > 50


async def test_an_intermediate_alone_may_be_trusted(authority: trustme.CA, tmp_path: Path) -> None:
    """tls.ca may hold the intermediate that signed the issuer's certificate, without its root."""
    intermediate = authority.create_child_ca()
    path = tmp_path / "ca.pem"
    intermediate.cert_pem.write_to_path(str(path))
    async with endpoint(answer(TOKEN), context=server_context(intermediate.issue_cert("127.0.0.1"))) as server:
        assert await issuer_of(server.url, tls=Tls(ca=path)).obtain(None, 5)


async def test_session_keys_are_not_written(
    authority: trustme.CA, ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSLKEYLOGFILE in the environment does not make us write down the keys of the session."""
    context = server_context(authority.issue_cert("127.0.0.1"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    async with endpoint(answer(TOKEN), context=context) as server:
        await issuer_of(server.url, tls=Tls(ca=ca_file)).obtain(None, 5)

    assert not (tmp_path / "keys").exists()


async def test_the_context_is_made_once(authority: trustme.CA, ca_file: Path) -> None:
    """As long as the files stay the same the context does, since making one takes tens of milliseconds."""
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with endpoint(answer(TOKEN), answer(TOKEN), context=context) as server:
        issuer = issuer_of(server.url, tls=Tls(ca=ca_file))
        await issuer.obtain(None, 5)
        first = issuer._context
        await issuer.obtain(None, 5)

    assert first is not None
    assert first == issuer._context


async def test_equal_material_has_one_context(ca_file: Path, tmp_path: Path) -> None:
    """Asked for at once, and named by another path too; what is in the file counts, so a new authority has its own."""
    contexts, copy = Contexts(), tmp_path / "copy.pem"
    copy.write_bytes(ca_file.read_bytes())
    first, second, bare = await asyncio.gather(*(contexts.of(Tls(ca=path)) for path in (ca_file, copy, None)))
    assert first is second
    assert first is not bare
    trustme.CA().cert_pem.write_to_path(str(copy))
    assert await contexts.of(Tls(ca=copy)) is not first
    assert await contexts.of(Tls(ca=ca_file)) is first


async def test_a_context_that_nobody_holds_is_gone(ca_file: Path) -> None:
    """Certificates that were replaced do not add up."""
    contexts = Contexts()
    gone = weakref.ref(await contexts.of(Tls(ca=ca_file)))
    async with asyncio.timeout(20):
        while gone() is not None:  # the thread that made it lets go of it last
            await asyncio.sleep(0.01)


async def test_http_1_1_is_offered_and_nothing_else(authority: trustme.CA) -> None:
    """To an issuer and to an upstream alike (RFC 7301): a context that both use says the same from the start."""
    context = server_context(authority.issue_cert("localhost"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    chosen: list[str | None] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        client = await Contexts().of(Tls())
        authority.configure_trust(client)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
        assert await reader.read() == b""
        writer.close()
    assert chosen == ["http/1.1"]


def test_a_client_key_leaves_nothing_behind(client_certificate: ClientCertificate) -> None:
    """The key that OpenSSL reads from a file is in no file once the context is made."""
    tls = client_certificate.tls
    assert tls.client_cert is not None
    assert tls.client_key is not None
    before = set(open_files())

    client_context(Material(client_cert=tls.client_cert.read_text(), client_key=tls.client_key.read()))

    assert before == set(open_files())


def open_files() -> Iterator[str]:
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(number.readlink())


# --- identity -------------------------------------------------------------------------------------------


OTHERS: list[dict[str, Any]] = [
    {"client_id": "other"},
    {"scope": "read"},
    {"extra": {"audience": "other"}},
    {"resource": ["https://plm.example.com"]},
    {**PASSWORD},
    {**PASSWORD, "username": "other"},
    {**REFRESH},
    {**REFRESH, "client_id": "other"},
    {**REFRESH, "refresh_token": {"value": SECOND.reveal()}},
]


def test_every_part_of_the_identity_counts() -> None:
    """Two credentials that differ in issuer, client, grant, user or what is asked for share no token (RFC 9700 2.3)."""
    identities = [issuer_of(**values).identity() for values in ({}, *OTHERS)]
    identities += [issuer_of("https://other.example.com/token", **values).identity() for values in ({}, REFRESH)]

    assert len(set(identities)) == len(identities)
    no_leak("".join(identities))


def test_the_identity_is_canonical() -> None:
    """The order of scopes and extra parameters, how the client proves itself, and the secrets do not change it."""
    one = issuer_of(scope="a b", extra={"x": "1", "y": "2"})
    other = issuer_of(
        scope="b  a a", extra={"y": "2", "x": "1"}, client_secret={"value": "other"}, client_auth="client_secret_post"
    )

    assert one.identity() == other.identity()


def test_a_first_refresh_token_is_the_identity_of_its_grant() -> None:
    """Who has it has all that was granted with it, whatever path, scope and proof it is presented with."""
    one = issuer_of("https://plm.example.com:443/oauth/token?a=b", **REFRESH)
    other = issuer_of(
        "https://PLM.example.com/v2", **REFRESH, scope="a", extra={"x": "1"}, client_auth="client_secret_post"
    )

    assert one.identity() == other.identity()


def test_whose_token_is_asked_for_is_part_of_the_identity(tmp_path: Path) -> None:
    """A subject that is renewed is the same one, another is another, and so is an opaque text."""
    path = tmp_path / "subject"

    def identity(text: str, grant: str) -> str:
        path.write_text(text)
        own = {"assertion_file": path} if grant == "jwt_bearer" else {"subject_token": {"file": path}}
        return issuer_of(grant=grant, **own).identity()

    for grant in ("token_exchange", "jwt_bearer"):
        one = jwt_of(iss="https://cluster", sub="one", jti="1")
        assert identity(one, grant) == identity(jwt_of(iss="https://cluster", sub="one", jti="2"), grant)
        texts = [
            one,
            jwt_of(iss="https://cluster", sub="two"),
            jwt_of(iss="https://b", sub="one"),
            "CANARY-1",
            "CANARY-2",
        ]
        found = {identity(text, grant) for text in texts}
        assert len(found) == len(texts)
        no_leak("".join(found))
    path.unlink()
    with pytest.raises(ConfigurationError):
        issuer_of(grant="token_exchange", subject_token={"file": path}).identity()


SECRETS = ["client_secret", "private_key", "client_assertion", "password", "refresh_token", "subject_token"]


@pytest.mark.parametrize("name", [*SECRETS, "assertion_file"])
def test_a_changed_secret_changes_the_fingerprint(name: str, tmp_path: Path) -> None:
    """Each secret of a credential counts, as it is now; one that cannot be read counts as another; none shows."""
    path = tmp_path / "secret"
    path.write_text("CANARY-one")
    issuer = issuer_of(**{name: path if name == "assertion_file" else {"file": path}})
    values = [issuer.fingerprint("salt"), issuer.fingerprint("salt")]
    for content in ("CANARY-two", "!"):
        path.write_text(content)
        values.append(issuer.fingerprint("salt"))
    path.unlink()
    values.append(issuer.fingerprint("salt"))

    assert values[0] == values[1]
    assert len(set(values)) == 4
    no_leak("".join(values))


def test_the_client_certificate_is_part_of_the_fingerprint(
    authority: trustme.CA, client_certificate: ClientCertificate
) -> None:
    """A new client certificate or key is a new credential; a certificate that is gone is another one too."""
    tls = client_certificate.tls
    assert tls.client_cert is not None
    assert tls.client_key is not None
    assert tls.client_key.file is not None
    issuer = issuer_of(tls=tls, client_auth="tls_client_auth")
    values = [issuer.fingerprint("salt")]
    tls.client_cert.write_bytes(authority.issue_cert("two.example").cert_chain_pems[0].bytes())
    values.append(issuer.fingerprint("salt"))
    tls.client_key.file.write_text("other")
    values.append(issuer.fingerprint("salt"))
    tls.client_cert.unlink()
    values.append(issuer.fingerprint("salt"))

    assert len(set(values)) == 4


EDITS: list[dict[str, Any]] = [
    {"client_secret": {"value": "other"}},
    {"client_id": "other"},
    {"client_auth": "client_secret_post"},
    {"scope": "read"},
    {"extra": {"audience": "other"}},
    {"resource": ["https://plm.example.com"]},
    {"username": "other"},
    {"subject": "other"},
    {"key_id": "two"},
    {"algorithm": "ES256"},
    {"grant": "password", "username": "u", "password": {"value": "p"}},
    {"client_auth": "private_key_jwt", "private_key": {"value": "k"}},
    {"client_auth": "private_key_jwt", "private_key": {"value": "k"}, "assertion": {"audience": "https://other"}},
]


def test_the_fingerprint_compares_between_those_who_have_the_salt() -> None:
    """Whoever edits what decides whether the issuer says no is heard; where a secret lies and lifetime do not count."""
    one = issuer_of().fingerprint("salt")
    assert one == issuer_of(lifetime="1h").fingerprint("salt")
    assert one != issuer_of().fingerprint("other")
    found = [issuer_of(**edit).fingerprint("salt") for edit in EDITS]
    found.append(issuer_of("https://plm.example.com/other").fingerprint("salt"))
    assert len({one, *found}) == len(found) + 1
