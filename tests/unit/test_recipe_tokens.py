"""Recipes whose credential is a token of OAuth: what its answer must say, and how long it lives."""

import math
from typing import Any

import pytest

from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.oauth2 import judge_of, oauth2_settings
from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, CredentialRejected, IssuerUnavailable
from sidecar.policy.routing import parse_base_url
from sidecar.settings import Recipe, SecretReference, Tls
from tests.canary import canary
from tests.unit.test_recipe_login import issuer, vendor

SECRET = canary("client")
TOKEN = canary("token")
BLOCK = {"token_url": "{login_url}/token", "client_id": "{client_id}", "client_secret": "{client_secret}"}
VARS: dict[str, Any] = {
    "client_id": {},
    "client_secret": {"secret": True},
    "login_url": {"default": "{base}"},
    "idle": {"default": "2h"},
}


def granting(url: str, **login: Any) -> OAuth2Issuer:
    block = BLOCK | login.pop("oauth2", {})
    data = {"id": "cloud", "vars": VARS, "login": {"oauth2": block} | login}
    credential: dict[str, Any] = {"client_id": "sync", "client_secret": SecretReference(value=SECRET)}
    credential |= {"login_url": url}
    bound = Bound("crm", Recipe.model_validate(data), credential, parse_base_url("https://plant.example.com/api"))
    return OAuth2Issuer(oauth2_settings(bound), tls=Tls(), clock=SystemClock(), judge=judge_of(bound))


async def test_a_token_for_another_instance_is_refused() -> None:
    """It says which one was expected, and which one came; nothing of the token is told."""
    answer = {"access_token": TOKEN, "token_type": "Bearer", "instance_url": "https://other.example.com"}
    async with vendor(answer) as at:
        with pytest.raises(CredentialRejected) as refusal:
            await granting(at.url, ok={"json": {"/instance_url": "{origin}"}}).obtain(None, 10.0)
    expected = "json /instance_url: expected https://plant.example.com, got https://other.example.com"
    assert str(refusal.value).startswith("login of crm: the token endpoint granted a token, and login.ok does not hold")
    assert expected in str(refusal.value)
    assert TOKEN not in str(refusal.value)


async def test_a_token_for_this_instance_is_taken() -> None:
    """And lives by what the recipe says, where the answer tells no lifetime."""
    answer = {"access_token": TOKEN, "token_type": "Bearer", "instance_url": "https://plant.example.com"}
    async with vendor(answer) as at:
        grant = await granting(at.url, ok={"json": {"/instance_url": "{origin}"}}, life={"idle": "{idle}"}).obtain(
            None, 10.0
        )
    assert (grant.idle, grant.lifetime, grant.source) == (7200.0, math.inf, "recipe")


@pytest.mark.parametrize(
    ("life", "block", "expires_in", "expected"),
    [
        ({"idle": "2h", "max": "8h"}, {}, None, (7200.0, 28800.0, "recipe")),
        ({"idle": "2h", "max": "8h"}, {}, 600, (7200.0, 600.0, "expires_in")),
        ({"max": "8h"}, {"lifetime": "1h"}, None, (None, 3600.0, "configured")),
        ({}, {}, None, (None, 300.0, "configured")),
    ],
)
async def test_who_says_how_long_a_token_lives(
    life: dict[str, str], block: dict[str, str], expires_in: int | None, expected: tuple[Any, ...]
) -> None:
    """The token endpoint first, then what the block assumes, then the life of the recipe."""
    answer = {"access_token": TOKEN, "token_type": "Bearer"} | ({"expires_in": expires_in} if expires_in else {})
    async with vendor(answer) as at:
        grant = await granting(at.url, life=life, oauth2=block).obtain(None, 10.0)
    assert (grant.idle, grant.lifetime, grant.source) == expected


async def test_a_life_that_is_none_is_told() -> None:
    """Given by a variable it is known only when it is used."""
    async with vendor({"access_token": TOKEN, "token_type": "Bearer"}) as at:
        with pytest.raises(ConfigurationError, match=r"upstreams\.crm: login\.life is \{client_id\}.*such as 20m"):
            await granting(at.url, life={"idle": "{client_id}"}).obtain(None, 10.0)


@pytest.mark.parametrize(
    ("ok", "answer", "expected"),
    [
        ({"status": 201}, {"status": 200}, "status: expected 201, got 200"),
        ({"json": {"/state": "OK"}}, {"body": {"state": "NO"}}, "json /state: expected OK, got NO"),
        ({"json": {"/state": ["A", "B"]}}, {"body": {}}, "json /state: expected A or B, got nothing"),
        ({"json": {"/user": "{user}"}}, {"body": {"user": "else"}}, "json /user: expected {user}, got else"),
        ({"json": {"/sid": {"regex": "^S"}}}, {"body": {"sid": "x"}}, "matches ^S, got another value"),
        ({"header": {"x-kind": "a"}}, {"headers": {"X-Kind": "b"}}, "header x-kind: expected a, got b"),
        ({"not": {"status": [200, 401]}}, {"status": 200}, "not: expected none with status 200, 401"),
        ({"type": "xml"}, {"status": 200}, "type: expected xml"),
        ([{"status": 201, "type": "xml"}, {"status": 204}], {"status": 200}, "status: expected 204, got 200"),
        ({"json": {"/at": "x"}}, {"body": {"at": "<" + TOKEN + ">"}}, "expected x, got another value"),
    ],
)
async def test_what_an_answer_lacks_is_told(ok: Any, answer: dict[str, Any], expected: str) -> None:
    """Of the match that is nearest: what was expected, what came."""
    async with vendor({"status": 200} | answer) as at:
        step = {"request": "POST {base}/login", "form": {"password": "{password}"}, "ok": ok}
        with pytest.raises(IssuerUnavailable) as failure:
            await issuer(at.url, [step]).obtain(None, 10.0)
    assert expected in str(failure.value)
    assert TOKEN not in str(failure.value)


async def test_a_fatal_answer_without_a_code_says_what_was_expected() -> None:
    """A login that succeeds elsewhere: the vendor has no code for that."""
    step = {
        "request": "POST {base}/login",
        "form": {"password": "{password}"},
        "ok": {"json": {"/vault": "{host}"}},
        "fatal": {"json": {"/state": "SUCCESS"}},
    }
    async with vendor({"state": "SUCCESS", "vault": "other.example.com"}) as at:
        with pytest.raises(CredentialRejected, match=r"json /vault: expected 127\.0\.0\.1, got other\.example\.com"):
            await issuer(at.url, [step]).obtain(None, 10.0)
