"""The OAuth 2.0 issuer against OAuth servers that we did not write: oidc-provider, oauth2-server and Glewlwyd."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.clock import SystemClock
from sidecar.errors import CredentialRejected, Misplaced
from sidecar.secret import Secret
from sidecar.settings import OAuth2, Tls
from tests.canary import canary
from tests.integration.oidc import glewlwyd
from tests.integration.oidc.provider import REDIRECT_URI, log_in, running, running_oauth2_server

ID = "a:b%+ &=/?#"
SECRET = "CANARY-a:b%+ &=/?#"  # RFC 6749 appendix A allows printable ASCII only, and this server insists
KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
JWK = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))

MACHINE = {"grant_types": ["client_credentials"], "redirect_uris": [], "response_types": [], "scope": "read"}
CLIENTS: list[dict[str, Any]] = [
    {**MACHINE, "client_id": ID, "client_secret": SECRET, "token_endpoint_auth_method": "client_secret_basic"},
    {**MACHINE, "client_id": f"{ID} 2", "client_secret": SECRET, "token_endpoint_auth_method": "client_secret_post"},
    {
        **MACHINE,
        "client_id": "signer",
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": "ES256",
        "jwks": {"keys": [{**JWK, "kid": "k1"}]},
    },
    {
        "client_id": "user",
        "client_secret": "CANARY-user",
        "grant_types": ["authorization_code", "refresh_token"],
        "redirect_uris": [REDIRECT_URI],
        "response_types": ["code"],
    },
]
BASIC: dict[str, Any] = {"client_id": ID, "client_secret": {"value": SECRET}}
POST: dict[str, Any] = {**BASIC, "client_id": f"{ID} 2", "client_auth": "client_secret_post"}
SIGNER: dict[str, Any] = {
    "client_id": "signer",
    "client_auth": "private_key_jwt",
    "private_key": {"value": PEM},
    "key_id": "k1",
    "algorithm": "ES256",
}
USER: dict[str, Any] = {"client_id": "user", "client_secret": {"value": "CANARY-user"}, "grant": "refresh_token"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(CLIENTS, tmp_path_factory.mktemp("oidc") / "log") as url:
        yield url


def issuer_of(token_url: str, **values: Any) -> OAuth2Issuer:
    settings = OAuth2.model_validate({"token_url": token_url, **values})
    return OAuth2Issuer(settings, tls=Tls(), clock=SystemClock())


async def is_active(server: str, token: Secret) -> bool:
    """Ask the server itself whether a token is good (RFC 7662)."""
    form = {"token": token.reveal(), "client_id": POST["client_id"], "client_secret": SECRET}
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(f"{server}/token/introspection", data=form)
        return bool(response.raise_for_status().json()["active"])


@pytest.mark.parametrize("client", [BASIC, POST, SIGNER], ids=["basic", "post", "private_key_jwt"])
async def test_a_client_gets_a_token(server: str, client: dict[str, Any]) -> None:
    """Each way to authenticate gets tokens, twice: with ids and secrets full of reserved characters, too."""
    issuer = issuer_of(f"{server}/token", scope="read", **client)

    grants = [await issuer.obtain(None, 10), await issuer.obtain(None, 10)]

    for grant in grants:
        assert (grant.lifetime, grant.source, grant.scope) == (120.0, "expires_in", "read")
        assert await is_active(server, grant.values["access_token"])


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({**BASIC, "client_secret": {"value": "CANARY-wrong"}}, "invalid_client"),
        ({**BASIC, "client_id": "unknown"}, "invalid_client"),
        ({**SIGNER, "client_id": ID}, "invalid_client"),
        ({**BASIC, "scope": "write"}, "invalid_scope"),
        ({**USER, "grant": "client_credentials"}, "invalid_request"),
        ({**BASIC, "grant": "password", "username": "a", "password": {"value": "CANARY"}}, "unsupported_grant_type"),
    ],
)
async def test_the_errors_of_a_real_server_are_understood(server: str, values: dict[str, Any], error: str) -> None:
    """What a real server refuses is a refusal with its code, and its message holds no secret."""
    with pytest.raises(CredentialRejected) as caught:
        await issuer_of(f"{server}/token", **values).obtain(None, 10)

    assert caught.value.error == error
    assert "CANARY" not in str(caught.value)


async def test_refresh_tokens_rotate(server: str) -> None:
    """Each refresh gives the next refresh token, and the chain goes on from there."""
    first = (await log_in(server, "user", "CANARY-user"))["refresh_token"]
    issuer = issuer_of(f"{server}/token", **USER, refresh_token={"value": first})

    one = await issuer.obtain(None, 10)
    two = await issuer.obtain(one.kept, 10)

    assert one.kept is not None
    assert two.kept is not None
    assert len({first, one.kept.reveal(), two.kept.reveal()}) == 3
    assert two.how == "refresh_token"
    assert await is_active(server, two.values["access_token"])


async def test_a_used_refresh_token_is_a_refusal(server: str) -> None:
    """A server that rotates revokes everything when a refresh token is used twice: the credential is rejected."""
    first = (await log_in(server, "user", "CANARY-user"))["refresh_token"]
    issuer = issuer_of(f"{server}/token", **USER, refresh_token={"value": first})
    one = await issuer.obtain(None, 10)
    two = await issuer.obtain(one.kept, 10)

    for token in (one.kept, two.kept):
        with pytest.raises(CredentialRejected) as caught:
            await issuer.obtain(token, 10)
        assert caught.value.error == "invalid_grant"


@contextlib.asynccontextmanager
async def losing_answers(server: str, losses: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Give the URL of a relay to *server* that passes every request on and loses the first answers."""
    passed: list[bytes] = []
    port = int(server.rpartition(":")[2])

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        passed.append(body)
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        upstream_writer.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
        answer = await upstream_reader.read()
        upstream_writer.close()
        if len(passed) > losses:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/token", passed


async def test_a_lost_answer_at_a_server_that_does_not_forgive(server: str) -> None:
    """When the answer with the next refresh token is lost, one retry is made; refused, its cause is told."""
    first = (await log_in(server, "user", "CANARY-user"))["refresh_token"]
    async with losing_answers(server, 1) as (url, passed):
        with pytest.raises(CredentialRejected) as caught:
            await issuer_of(url, **USER, refresh_token={"value": first}).obtain(None, 10)

    assert caught.value.error == "invalid_grant"
    assert "the answer to an earlier attempt was lost" in str(caught.value)
    assert len(passed) == 2
    assert passed[0] == passed[1]


USER_NAME, PASSWORD = "svc", canary("password")
MACHINE_SECRET = "CANARY-se:cret+ /%"


@pytest.fixture(scope="module")
def oauth2_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    grants = ["client_credentials", "password", "refresh_token"]
    client = {"id": "sync", "secret": MACHINE_SECRET, "grants": grants}
    user = {"name": USER_NAME, "password": PASSWORD}
    with running_oauth2_server(client, user, tmp_path_factory.mktemp("oauth2-server") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def glewlwyd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with glewlwyd.running(tmp_path_factory.mktemp("glewlwyd")) as url:
        yield url


@pytest.fixture(params=["oauth2_server", "glewlwyd_server"])
def token_url(request: pytest.FixtureRequest) -> str:
    """Each server that takes passwords, and id and secret as they are, not form-encoded."""
    return str(request.getfixturevalue(request.param))


RAW: dict[str, Any] = {
    "client_id": "sync",
    "client_secret": {"value": MACHINE_SECRET},
    "client_auth": "client_secret_basic_raw",
    "scope": "read",
}
PERSON: dict[str, Any] = {**RAW, "grant": "password", "username": USER_NAME, "password": {"value": PASSWORD}}


@pytest.mark.parametrize("values", [RAW, PERSON], ids=["client_credentials", "password"])
async def test_servers_that_do_not_decode_take_basic_raw(token_url: str, values: dict[str, Any]) -> None:
    """A secret with reserved characters is right as it is; encoded, the refusal names the remedy."""
    grant = await issuer_of(token_url, **values).obtain(None, 10)
    assert 80 < grant.lifetime <= 90
    assert (grant.scope, grant.asked, grant.how) == ("read", "read", values.get("grant", "client_credentials"))

    with pytest.raises(CredentialRejected, match="client_secret_basic_raw") as caught:
        await issuer_of(token_url, **{**values, "client_auth": "client_secret_basic"}).obtain(None, 10)
    assert "CANARY" not in str(caught.value)


async def test_a_password_gives_a_refresh_token_that_is_used(token_url: str) -> None:
    """It is used alone, without the password, whether the server rotates it or leaves it as it is."""
    first = await issuer_of(token_url, **PERSON).obtain(None, 10)
    assert first.kept is not None
    wrong = {**PERSON, "password": {"value": canary("wrong")}}
    second = await issuer_of(token_url, **wrong).obtain(first.kept, 10)
    third = await issuer_of(token_url, **wrong).obtain(second.kept or first.kept, 10)

    assert (second.how, third.how) == ("refresh_token", "refresh_token")


@pytest.mark.parametrize(
    ("values", "kept", "word", "locks"),
    [
        ({"client_secret": {"value": canary("wrong")}}, None, "check client_id and client_secret", False),
        ({"client_id": "nobody"}, None, "check client_id and client_secret", False),
        ({"scope": "nonsense"}, None, "a scope that the issuer grants", False),
        ({**PERSON, "password": {"value": canary("wrong")}}, None, "check username and password", True),
        ({}, Secret(canary("spent")), "log in anew", False),
        ({"grant": "token_exchange", "subject_token": {"value": canary("subject")}}, None, "grant", False),
    ],
)
async def test_what_real_servers_refuse_is_a_no(
    token_url: str, values: dict[str, Any], kept: Secret | None, word: str, locks: bool
) -> None:
    """With or without a body, with 400, 401 or 403, in words of their own; the remedy is that of the cause."""
    with pytest.raises(CredentialRejected) as caught:
        await issuer_of(token_url, **{**RAW, **values}).obtain(kept, 10)

    assert word in str(caught.value)
    assert caught.value.locks is locks
    assert "CANARY" not in str(caught.value)


async def test_a_wrong_path_is_no_refusal(server: str, glewlwyd_server: str) -> None:
    """Real servers say 404, one with an `error` of its own: the credential was not looked at."""
    for url in (f"{server}/tokens", f"{glewlwyd_server}s"):
        with pytest.raises(Misplaced):
            await issuer_of(url, **RAW).obtain(None, 10)
