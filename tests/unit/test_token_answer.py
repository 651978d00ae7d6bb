"""What the answers of real issuers mean: their documented refusals, and odd answers that were seen in the field."""

import base64
import json
from typing import Any

import pytest

from sidecar.auth.client_auth import prove
from sidecar.auth.token_answer import read_grant
from sidecar.auth.token_endpoint import Answer
from sidecar.errors import BrokenOff, CredentialRejected, IssuerError, IssuerUnavailable, Misplaced, Unusable
from sidecar.secret import Secret
from sidecar.settings import OAuth2
from tests.canary import canary

NOW = 1_800_000_000.0
FORM = (b"Content-Type", b"application/x-www-form-urlencoded; charset=utf-8")


def read(
    status: int,
    body: object,
    fields: tuple[tuple[bytes, bytes], ...] = (),
    grant: str = "client_credentials",
    **how: Any,
) -> str:
    """Return in words what an answer means: the grant, or the class and message of the error."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer(status=status, fields=fields, body=raw)
    try:
        found = read_grant(answer, who="I:", grant=grant, requested_at=NOW, configured=300, hidden=[], **how)
    except IssuerError as error:
        kept = ", kept" if isinstance(error, Unusable) and error.kept else ""
        return f"{type(error).__name__}{kept}: {error}"
    return (
        f"{found.lifetime:g} s by {found.source}"
        + (", kept" if found.kept else "")
        + (f", scope {found.scope}" if found.scope else "")
    )


def entra(number: int, text: str, error: str = "invalid_grant") -> dict[str, object]:
    return {"error": error, "error_description": f"AADSTS{number}: {text} Trace ID: 0", "error_codes": [number]}


CC, PASSWORD, REFRESH = "client_credentials", "password", "refresh_token"
NO, WEATHER, WRONG_PLACE, LOST = CredentialRejected, IssuerUnavailable, Misplaced, BrokenOff

# Vendor, grant, status, body, what it means, and a word of what the operator is told to check.
VENDORS: list[tuple[str, str, int, object, type[IssuerError], str]] = [
    ("Auth0: secret", CC, 401, {"error": "access_denied", "error_description": "Unauthorized"}, NO, "client_secret"),
    (
        "Auth0: audience",
        CC,
        403,
        {"error": "access_denied", "error_description": "no grant"},
        NO,
        "have the issuer allow",
    ),
    ("Auth0: user", PASSWORD, 403, {"error": "invalid_grant", "error_description": "Wrong email"}, NO, "username"),
    ("Auth0: attack protection", PASSWORD, 429, {"error": "too_many_attempts"}, WEATHER, "429"),
    ("Auth0: factor", PASSWORD, 403, {"error": "mfa_required", "mfa_token": canary("mfa")}, NO, "another factor"),
    ("Okta: secret", CC, 401, {"error": "invalid_client", "error_description": "invalid"}, NO, "client_secret"),
    ("Okta: unknown client", CC, 400, {"errorCode": "E0000022", "errorSummary": "no such app"}, NO, "no such app"),
    ("Okta: rate", CC, 429, {"errorCode": "E0000047", "errorSummary": "rate limit"}, WEATHER, "rate limit"),
    ("Okta: consent", PASSWORD, 400, {"error": "consent_required"}, NO, "in a browser"),
    (
        "Keycloak: secret",
        CC,
        401,
        {"error": "unauthorized_client", "error_description": "x"},
        NO,
        "have the issuer allow",
    ),
    ("Keycloak: user", PASSWORD, 401, {"error": "invalid_grant", "error_description": "credentials"}, NO, "username"),
    (
        "Keycloak: session",
        REFRESH,
        400,
        {"error": "invalid_grant", "error_description": "Not active"},
        NO,
        "log in anew",
    ),
    ("Keycloak: realm", CC, 404, {"error": "Realm does not exist"}, WRONG_PLACE, "token_url"),
    ("Entra: secret", CC, 401, entra(7000215, "Invalid client secret.", "invalid_client"), NO, "client_secret"),
    ("Entra: expired", CC, 401, entra(7000222, "The keys are expired.", "invalid_client"), NO, "has expired"),
    ("Entra: application", CC, 400, entra(700016, "Not found.", "unauthorized_client"), NO, "tenant in token_url"),
    ("Entra: tenant", CC, 400, entra(90002, "Tenant not found.", "invalid_request"), NO, "tenant in token_url"),
    ("Entra: password", PASSWORD, 400, entra(50126, "Invalid username or password."), NO, "username and password"),
    ("Entra: factor", PASSWORD, 400, entra(50076, "Use MFA.", "interaction_required"), NO, "wants a person"),
    ("Entra: locked", PASSWORD, 400, entra(50053, "Locked."), NO, "account activated"),
    ("Entra: resource", CC, 400, entra(500011, "No such principal.", "invalid_resource"), NO, "resource"),
    ("Entra: assertion", CC, 401, entra(700024, "Not within its time.", "invalid_client"), NO, "clock"),
    ("AD FS: resource", CC, 400, {"error": "invalid_resource", "error_description": "MSIS9602"}, NO, "resource"),
    (
        "Salesforce: user",
        PASSWORD,
        400,
        {"error": "invalid_grant", "error_description": "authentication"},
        NO,
        "username",
    ),
    ("Salesforce: inactive", PASSWORD, 400, {"error": "inactive_user"}, NO, "account activated"),
    ("Salesforce: client", PASSWORD, 400, {"error": "invalid_client_id"}, NO, "client_id"),
    ("Salesforce: rate", PASSWORD, 400, {"error": "rate_limit_exceeded"}, WEATHER, "400"),
    ("Google: refresh", REFRESH, 400, {"error": "invalid_grant", "error_description": "revoked."}, NO, "log in anew"),
    ("Google: secret", CC, 401, {"error": "invalid_client", "error_description": "Unauthorized"}, NO, "client_id"),
    ("Google: API", CC, 400, {"error": {"code": 400, "message": "Bad", "status": "INVALID_ARGUMENT"}}, NO, "Bad"),
    ("GitHub: secret", CC, 200, {"error": "incorrect_client_credentials"}, NO, "client_secret"),
    ("GitHub: refresh", REFRESH, 200, {"error": "bad_refresh_token"}, NO, "log in anew"),
    ("Spring: user", PASSWORD, 400, {"error": "invalid_grant", "error_description": "Bad credentials"}, NO, "username"),
    ("Spring: unauthorized", PASSWORD, 401, {"error": "unauthorized", "error_description": "Bad"}, NO, "username"),
    ("Spring Boot: path", CC, 404, {"status": 404, "error": "Not Found", "path": "/tokn"}, WRONG_PLACE, "token_url"),
    ("Spring Boot: crash", CC, 500, {"status": 500, "error": "Internal Server Error"}, LOST, "500"),
    ("Ping: target", CC, 400, {"error": "invalid_target"}, NO, "resource"),
    ("Apigee: client", CC, 401, {"fault": {"faultstring": "Invalid client", "detail": {}}}, NO, "Invalid client"),
    ("Apigee: older", CC, 401, {"ErrorCode": "invalid_client", "Error": "ClientId is Invalid"}, NO, "client_secret"),
    ("Autodesk: client", CC, 401, {"developerMessage": "not valid", "errorCode": "AUTH-003"}, NO, "not valid"),
    (
        "Autodesk: product",
        CC,
        403,
        {"developerMessage": "no access", "errorCode": "AUTH-001"},
        NO,
        "have the issuer allow",
    ),
    ("Amazon Cognito: client", CC, 400, {"error": "invalid_client"}, NO, "client_secret"),
    ("IdentityServer: grant", CC, 400, {"error": "unsupported_grant_type"}, NO, "a grant that the issuer offers"),
    ("IdentityServer: scope", CC, 400, {"error": "invalid_scope"}, NO, "a scope that the issuer grants"),
    (
        "SAP XSUAA: client",
        CC,
        401,
        {"error": "unauthorized", "error_description": "Bad credentials"},
        NO,
        "client_secret",
    ),
    ("Oracle IDCS: client", CC, 401, {"error": "invalid_client", "error_description": "failed"}, NO, "client_id"),
    ("a firewall", CC, 403, b"<html>Request blocked</html>", NO, "in front of the issuer"),
    ("nginx", CC, 502, b"<html>Bad Gateway</html>", LOST, "502"),
    ("nginx: nothing there", CC, 404, b"<html>Not Found</html>", WRONG_PLACE, "token_url"),
    ("a proxy of JSON", CC, 502, {"error": "bad_gateway"}, LOST, "502"),
    ("a maintenance page", CC, 503, b"<html>Back soon</html>", WEATHER, "503"),
    ("Glewlwyd: secret", CC, 403, b"", NO, "client_secret"),
    ("Glewlwyd: password", PASSWORD, 403, b"", NO, "username and password"),
    ("Glewlwyd: refresh", REFRESH, 400, b"", NO, "log in anew"),
    ("Glewlwyd: scope", CC, 400, {"error": "scope_invalid"}, NO, "a scope that the issuer grants"),
    ("Glewlwyd: path", CC, 404, {"error": "resource not found", "message": "none"}, WRONG_PLACE, "token_url"),
    ("LemonLDAP::NG: refresh", REFRESH, 400, {"error": "invalid_request"}, NO, "log in anew"),
    ("LemonLDAP::NG: set up wrongly", CC, 500, b"<html><title>Server error</title></html>", LOST, "500"),
    ("Basic", CC, 401, b"", NO, "client_secret"),
    ("a mesh's route", CC, 421, b"", WRONG_PLACE, "token_url"),
    ("a server's busy word", CC, 400, {"error": "slow_down"}, WEATHER, "slow_down"),
]


@pytest.mark.parametrize(
    ("vendor", "grant", "status", "body", "meaning", "cure"), VENDORS, ids=[row[0] for row in VENDORS]
)
def test_what_vendors_say_is_understood(
    vendor: str, grant: str, status: int, body: object, meaning: type[IssuerError], cure: str
) -> None:
    """A no, weather, or the wrong place, as each documents its own refusals; and what is to be checked."""
    found = read(status, body, grant=grant)
    assert found.startswith(f"{meaning.__name__}: I: ")
    assert cure in found
    assert "CANARY" not in found


@pytest.mark.parametrize(
    ("client_auth", "word"),
    [
        ("client_secret_basic", "or set client_auth: client_secret_post"),
        ("client_secret_basic_raw", "or set client_auth: client_secret_basic"),
        ("client_secret_post", "or set client_auth: client_secret_basic"),
        ("private_key_jwt", "private_key, key_id and assertion"),
        ("assertion", "client_assertion: its issuer, subject, audience and end"),
        ("tls_client_auth", "tls.client_cert"),
        ("none", "may want a client_auth with a secret"),
    ],
)
def test_what_to_check_follows_from_how_the_client_proves_itself(client_auth: str, word: str) -> None:
    """The same 401 has another remedy with a secret, a key or a certificate."""
    assert word in read(401, b"", client_auth=client_auth)
    assert word in read(400, {"error": "invalid_client"}, client_auth=client_auth)


@pytest.mark.parametrize(
    ("grant", "word"),
    [
        ("password", "check username and password, and that the account is not locked"),
        ("refresh_token", "log in anew for a fresh refresh_token"),
        ("jwt_bearer", "check subject, private_key and assertion.audience"),
        ("token_exchange", "check subject_token and subject_token_type"),
        ("client_credentials", "check client_id and client_secret"),
    ],
)
def test_what_to_check_follows_from_the_grant(grant: str, word: str) -> None:
    """The same invalid_grant is about another thing with each grant; a bare 401 may be about the client too."""
    assert word in read(400, {"error": "invalid_grant"}, grant=grant)
    bare = read(401, b"", grant=grant)
    assert word in bare
    assert "client_secret" in bare


@pytest.mark.parametrize(("secret", "told"), [("a+b", True), ("a b", True), ("Abc-123_.~"[:9], False)])
def test_a_secret_that_form_encoding_changes_has_a_remedy(secret: str, told: bool) -> None:
    """Issuers that do not decode the two halves of Basic take it for wrong."""
    settings = {"token_url": "https://x.example/t", "client_id": "id", "client_secret": {"value": secret}}
    proof = prove(OAuth2.model_validate(settings), NOW)
    assert proof.encoded is told
    assert ("client_secret_basic_raw" in read(401, b"", encoded=proof.encoded)) is told
    assert "client_secret_basic_raw" not in read(400, {"error": "invalid_scope"}, encoded=True)


def part(claims: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()


def jwt_of(claims: dict[str, object]) -> str:
    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}.c2ln"


OK: dict[str, object] = {"access_token": "abc", "token_type": "Bearer"}
NOT_UTF8 = f"{part({'alg': 'none'})}.{base64.urlsafe_b64encode(bytes([255, 254, 123])).decode().rstrip('=')}.x"
REFUSED, GONE, BROKEN, USELESS = "CredentialRejected", "Misplaced", "BrokenOff", "Unusable"
BY_US, BY_THEM, BY_JWT = "300 s by configured", "s by expires_in", "s by jwt"

ANSWERS: list[tuple[str, int, object, str]] = [
    ("expires_in as text", 200, OK | {"expires_in": "3600"}, f"3600 {BY_THEM}"),
    ("expires_in 0", 200, OK | {"expires_in": 0}, USELESS),
    ("expires_in -1", 200, OK | {"expires_in": -1, "refresh_token": "r"}, f"{USELESS}, kept"),
    ("expires_in 1e18", 200, OK | {"expires_in": 10**18}, BY_US),
    ("milliseconds", 200, OK | {"expires_in": 3_600_000}, f"3.6e+06 {BY_THEM}"),
    (
        "milliseconds of a JWT",
        200,
        {"access_token": jwt_of({"exp": NOW + 3600}), "expires_in": 3_600_000},
        f"3600 {BY_JWT}",
    ),
    ("expires_in 1h", 200, OK | {"expires_in": "1h"}, BY_US),
    ("expires_in 3599.7", 200, OK | {"expires_in": 3599.7}, f"3599.7 {BY_THEM}"),
    ("expires_in null", 200, OK | {"expires_in": None}, BY_US),
    ("expires_in NaN", 200, b'{"access_token":"abc","expires_in":NaN}', BY_US),
    ("expires_in true", 200, OK | {"expires_in": True}, BY_US),
    ("expires_in 0.5", 200, OK | {"expires_in": 0.5}, f"0.5 {BY_THEM}"),
    ("exp alone", 200, {"access_token": jwt_of({"exp": NOW + 600})}, f"600 {BY_JWT}"),
    ("exp later", 200, {"access_token": jwt_of({"exp": NOW + 600}), "expires_in": 60}, f"60 {BY_THEM}"),
    ("exp in the past", 200, {"access_token": jwt_of({"exp": NOW - 600})}, USELESS),
    ("exp in the past, expires_in not", 200, {"access_token": jwt_of({"exp": 1}), "expires_in": 60}, USELESS),
    ("exp as text", 200, {"access_token": jwt_of({"exp": str(NOW + 600)})}, BY_US),
    ("exp beyond any time", 200, {"access_token": jwt_of({"exp": 10**300})}, BY_US),
    ("a JWT that is none", 200, {"access_token": NOT_UTF8}, BY_US),
    ("byte order mark", 200, b"\xef\xbb\xbf" + json.dumps(OK).encode(), BY_US),
    ("UTF-16", 200, json.dumps(OK).encode("utf-16"), BY_US),
    ("a form", 200, b"access_token=gho_x&token_type=bearer&scope=", BROKEN),
    ("a page", 200, b"<html>login</html>", BROKEN),
    ("nothing", 200, b"", BROKEN),
    ("no content", 204, b"", BROKEN),
    ("a list", 200, b"[]", BROKEN),
    ("cut short", 200, b'{"access_token": "ab', BROKEN),
    ("nothing granted", 200, {"status": "ok"}, USELESS),
    (
        "an error in prose",
        200,
        {"error": "Invalid credentials"},
        f"{REFUSED}: I: refused the grant client_credentials with 200;",
    ),
    ("an error that is none", 200, OK | {"error": "", "error_description": ""}, BY_US),
    ("a number for an error", 200, OK | {"error": 0}, BY_US),
    (
        "a nested error",
        400,
        {"error": {"code": "invalid_client", "message": "bad"}},
        f"{REFUSED}: I: refused the grant client_credentials with 400: invalid_client (bad);",
    ),
    (
        "a nested number",
        400,
        {"error": {"code": 400, "message": "bad"}},
        f"{REFUSED}: I: refused the grant client_credentials with 400 (bad);",
    ),
    ("a code beside 404", 404, {"error": "invalid_client"}, REFUSED),
    ("a nested code beside 404", 404, {"error": {"message": "no route"}}, GONE),
    ("the phrase of the status as a code", 404, {"error": "not_found"}, GONE),
    ("method not allowed", 405, {"error": "Method Not Allowed"}, GONE),
    ("gone", 410, b"", GONE),
    ("moved", 301, b"", f"{GONE}: I: answered with 301; a redirect is not followed"),
    ("too large", 413, b"", "IssuerUnavailable"),
    ("invalid_client with 500", 500, {"error": "invalid_client"}, "IssuerUnavailable"),
    ("invalid_client with 429", 429, {"error": "invalid_client"}, "IssuerUnavailable"),
    ("an unknown code with 500", 500, {"error": "internal_error"}, BROKEN),
    ("token_type missing", 200, {"access_token": "abc"}, BY_US),
    ("token_type BearerToken", 200, OK | {"token_type": "BearerToken"}, BY_US),
    ("token_type DPoP", 200, OK | {"token_type": "DPoP"}, USELESS),
    ("token with !", 200, OK | {"access_token": "00D5!AQ.x"}, BY_US),
    ("token with |", 200, OK | {"access_token": "Atza|IwEBI"}, BY_US),
    ("token with CRLF", 200, OK | {"access_token": "a\r\nX: y", "refresh_token": "r"}, f"{USELESS}, kept"),
    ("token with é", 200, OK | {"access_token": "é"}, USELESS),
    ("token of 9 KiB", 200, OK | {"access_token": "a" * 9216}, BY_US),
    ("token of 17 KiB", 200, OK | {"access_token": "a" * (17 << 10)}, USELESS),
    ("refresh_token with é", 200, OK | {"refresh_token": "né"}, BY_US),
    ("refresh_token of 60 KiB", 200, OK | {"refresh_token": "r" * 60_000}, f"{BY_US}, kept"),
    ("scope a list", 200, OK | {"scope": ["a", "b"]}, f"{BY_US}, scope a b"),
    ("camel case", 200, {"accessToken": "abc", "tokenType": "Bearer"}, USELESS),
]


@pytest.mark.parametrize(("status", "body", "meaning"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_odd_answers_are_read_by_their_meaning(status: int, body: object, meaning: str) -> None:
    """What can be used is, what was granted and cannot is told, and what may have been acted on is in doubt."""
    assert read(status, body).startswith(meaning)


@pytest.mark.parametrize("status", [400, 401])
def test_a_page_beside_a_refusal_is_told(status: int) -> None:
    """It may be a portal's that knows no such path; an issuer's own words, or none, are no page."""
    assert "a page came with it, so check token_url as well" in read(status, b"<html>Log in</html>")
    assert "a page" not in read(status, b"") + read(status, {"error": "invalid_client"})


def test_a_refusal_shows_no_token_of_the_answer() -> None:
    """Some answers hold tokens beside an error, and its description may repeat one."""
    document = {
        "error": "invalid_grant",
        "access_token": canary("given"),
        "error_description": f"see {canary('given')}",
    }
    assert "CANARY" not in read(400, document)
    assert "CANARY" not in read(503, document)


@pytest.mark.parametrize("code", ["invalid_client", "access_denied", "server_error"])
def test_a_short_secret_hides_no_known_code(code: str) -> None:
    """A secret may be a word of everyday; a code that everybody knows gives nothing away."""
    answer = Answer(status=400, fields=(), body=json.dumps({"error": code}).encode())
    with pytest.raises(IssuerError, match=code):
        read_grant(answer, who="I:", grant="password", requested_at=NOW, configured=1, hidden=[Secret("e")])
