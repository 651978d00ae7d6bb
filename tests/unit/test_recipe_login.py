"""Logins by steps, against real servers that answer as vendors do."""

import asyncio
import contextlib
import gzip
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from sidecar.auth.grant import JAR, Anew, Grant
from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.login import RecipeIssuer
from sidecar.auth.recipes.oauth2 import oauth2_settings
from sidecar.clock import SystemClock
from sidecar.errors import BrokenOff, ConfigurationError, CredentialRejected, IssuerUnavailable, Lapsed, Misplaced
from sidecar.policy.routing import parse_base_url
from sidecar.settings import Recipe, SecretReference, Tls
from tests.canary import canary

PASSWORD = canary("login")
VARS = {"user": {}, "password": {"secret": True}, "workspace": {"type": "int", "optional": True}}
CREDENTIAL: dict[str, Any] = {"user": "svc", "password": SecretReference(value=PASSWORD)}

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class Vendor:
    """Answers in order, the last one again and again; what was asked stands in *seen*."""

    answers: list[Any]
    url: str = ""
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, dict):
            answer = {"body": answer} if "status" not in answer else answer
            body = json.dumps(answer.get("body", {})).encode()
            headers = {"Content-Type": "application/json"} | answer.get("headers", {})
            return web.Response(status=answer.get("status", 200), body=body, headers=headers)
        return await answer(request)  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def vendor(*answers: Any) -> AsyncIterator[Vendor]:
    made = Vendor(list(answers))
    runner = web.ServerRunner(web.Server(made), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


def issuer(url: str, login: Any, credential: dict[str, Any] | None = None, **recipe: Any) -> RecipeIssuer:
    steps = login if isinstance(login, dict) else {"steps": login}
    data = {"id": "odd", "vars": VARS, "login": steps} | recipe
    bound = Bound("odd", Recipe.model_validate(data), credential or CREDENTIAL, parse_base_url(url))
    return RecipeIssuer(bound, tls=Tls(), clock=SystemClock())


LOGIN = {
    "request": "POST {base}/login",
    "json": {"user": "{user}", "password": "{password}", "workspaceId": "{workspace}"},
    "ok": {"json": {"/session": {"regex": "."}}},
    "get": {"session": {"json": "/session"}, "limit": {"json": "/limit", "else": 25}},
    "pause": [{"when": {"json": {"/code": 4083}}, "for": "5m"}],
    "fatal": {"json": {"/code": [4001, 4083]}},
}


async def obtained(url: str, login: Any, **more: Any) -> Grant:
    return await issuer(url, login, **more).obtain(None, 10.0)


def plain(grant: Grant) -> dict[str, Any]:
    return {name: json.loads(secret.reveal()) for name, secret in grant.values.items()}


async def test_a_login_gives_what_it_extracts() -> None:
    """The session, and what stands for what was not said; a member without a value is left out of the request."""
    async with vendor({"session": "S1"}) as at:
        grant = await obtained(at.url, [LOGIN])
    assert plain(grant) == {"session": "S1", "limit": 25}
    assert (grant.lifetime, grant.idle, grant.source, grant.how) == (math.inf, None, "recipe", "login")
    method, path, headers, body = at.seen[0]
    assert (method, path, json.loads(body)) == ("POST", "/login", {"user": "svc", "password": PASSWORD})
    assert (headers["Content-Type"], headers["User-Agent"]) == ("application/json", "auth-sidecar")


async def test_a_number_of_the_configuration_stays_one() -> None:
    """A vendor that wants an integer gets one."""
    async with vendor({"session": "S1"}) as at:
        await obtained(at.url, [LOGIN], credential=CREDENTIAL | {"workspace": 77})
    assert json.loads(at.seen[0][3])["workspaceId"] == 77


async def test_a_wrong_password_is_told_with_the_vendors_code() -> None:
    """It locks: nobody asks again; neither password nor body stands in the message."""
    async with vendor({"status": 400, "body": {"code": 4001, "message": PASSWORD}}) as at:
        with pytest.raises(
            CredentialRejected, match=r"POST /login answered 400: the credential is refused \(4001\)"
        ) as told:
            await obtained(at.url, [LOGIN])
    assert told.value.locks
    assert PASSWORD not in str(told.value)


async def test_a_pause_goes_before_what_is_fatal() -> None:
    """An account that is locked for five minutes is not one with a wrong password."""
    async with vendor({"status": 400, "body": {"code": 4083}}) as at:
        with pytest.raises(IssuerUnavailable) as told:
            await obtained(at.url, [LOGIN])
    assert told.value.retry_after == 300


async def test_what_nobody_understands_is_asked_for_seldom() -> None:
    """Twice in a row, and there is a pause of five minutes: who insists gets the account locked."""
    async with vendor({"status": 500, "body": {}}) as at:
        odd = issuer(at.url, [LOGIN])
        waits = []
        for _ in range(3):
            with pytest.raises(IssuerUnavailable) as told:
                await odd.obtain(None, 10.0)
            waits.append(told.value.retry_after)
    assert waits == [None, 300, 300]


@pytest.mark.parametrize("wanted", ["{password}", "{session}", "x-{user}"])
async def test_what_a_step_expects_shows_no_secret(wanted: str) -> None:
    """A template is told as it is written, unless it stands for the address alone."""
    given = {"session": PASSWORD}
    later = {"request": "GET {base}/whoami", "ok": {"json": {"/who": wanted, "/host": "{host}"}}}
    async with vendor(given, {"who": "nobody", "host": "elsewhere"}) as at:
        with pytest.raises(IssuerUnavailable) as caught:
            await obtained(at.url, [LOGIN, later])
    assert f"json /who: expected {wanted}, got nobody" in str(caught.value)
    assert "json /host: expected 127.0.0.1, got elsewhere" in str(caught.value)
    assert PASSWORD not in str(caught.value)


async def test_a_code_that_no_key_names_is_told() -> None:
    """Who looks it up in the vendor's documents knows more than a recipe."""
    async with vendor({"status": 400, "body": {"errors": [{"code": 4711}]}}) as at:
        with pytest.raises(IssuerUnavailable, match=r"answered 400 \(4711\), which is not what a login"):
            await obtained(at.url, [{"request": "POST {base}/login"}])


async def test_a_busy_login_says_when() -> None:
    """Retry-After of a 429 or 503 counts."""
    async with vendor({"status": 429, "headers": {"Retry-After": "7"}}) as at:
        with pytest.raises(IssuerUnavailable) as told:
            await obtained(at.url, [LOGIN])
    assert told.value.retry_after == 7


async def test_a_login_without_an_end_is_given_up() -> None:
    """Nobody knows then whether there is a session."""

    async def silent(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async with vendor(silent) as at:
        with pytest.raises(BrokenOff, match=r"no complete answer within 0\.2 s"):
            await issuer(at.url, [LOGIN]).obtain(None, 0.2)


async def test_where_nobody_listens_is_told() -> None:
    """With the system's words."""
    async with vendor({}) as at:
        url = at.url
    with pytest.raises(IssuerUnavailable, match="cannot be reached: Connection refused"):
        await obtained(url, [LOGIN])


async def test_one_jar_goes_through_all_steps() -> None:
    """A cookie of the first step comes with the second, a variable from a cookie too; one that ended does not."""
    steps = [
        {"request": "GET {base}/vars", "optional": True, "get": {"xsrf": {"cookie": "XSRF-TOKEN"}}},
        LOGIN | {"headers": {"X-XSRF-TOKEN": "{xsrf}", "X-Gone": "{missing}"}, "set": {}},
    ]
    first = {"status": 200, "headers": {"Set-Cookie": "XSRF-TOKEN=x1; Path=/"}}
    async with vendor(first, {"status": 200, "body": {"session": "S"}, "headers": {"Set-Cookie": "J=2; Path=/"}}) as at:
        steps[1]["headers"].pop("X-Gone")
        grant = await obtained(at.url, steps)
    assert at.seen[1][2]["Cookie"] == "XSRF-TOKEN=x1"
    assert at.seen[1][2]["X-XSRF-TOKEN"] == "x1"
    assert {each[0]: each[1] for each in plain(grant)[JAR]} == {"XSRF-TOKEN": "x1", "J": "2"}


async def test_an_optional_step_may_be_missing() -> None:
    """A plain web tier has no such page: its header is left out, and what stands for it counts."""
    steps = [
        {
            "request": "GET {base}/vars",
            "optional": True,
            "get": {"xsrf": {"cookie": "X"}, "kind": {"json": "/k", "else": "plain"}},
        },
        LOGIN | {"headers": {"X-XSRF-TOKEN": "{xsrf}", "X-Kind": "{kind}"}},
    ]
    async with vendor({"status": 404}, {"session": "S"}) as at:
        await obtained(at.url, steps)
    assert "X-XSRF-TOKEN" not in at.seen[1][2]
    assert at.seen[1][2]["X-Kind"] == "plain"


async def test_a_step_that_is_not_needed_is_not_taken() -> None:
    """An older server's page is asked only if the newer one gave nothing."""
    steps = [LOGIN, {"request": "GET {base}/older", "unless": "session", "get": {"session": {"json": "/s"}}}]
    async with vendor({"session": "S"}) as at:
        await obtained(at.url, steps)
    assert len(at.seen) == 1


@pytest.mark.parametrize(("status", "method"), [(302, "GET"), (303, "GET"), (307, "POST")])
async def test_redirects_are_followed_with_the_jar(status: int, method: str) -> None:
    """As browsers do it: a POST becomes a GET, but for 307."""
    moved = {"status": status, "headers": {"Location": "/next?t=1", "Set-Cookie": "C=1; Path=/"}}
    async with vendor(moved, {"session": "S"}) as at:
        await obtained(at.url, [LOGIN | {"follow": 2}])
    assert at.seen[1][:2] == (method, "/next?t=1")
    assert at.seen[1][2]["Cookie"] == "C=1"


async def test_a_password_goes_nowhere_else() -> None:
    """An answer may name any address, and a redirect lead anywhere: only what the recipe trusts is asked."""
    async with vendor({"session": "other"}) as other:
        moved = {"status": 307, "headers": {"Location": f"{other.url}/steal"}}
        async with vendor(moved) as at:
            with pytest.raises(Misplaced, match="neither the base URL's origin nor in trust"):
                await obtained(at.url, [LOGIN | {"follow": 1}])
        async with vendor({"uri": f"{other.url}/token"}) as at:
            steps = [{"request": "GET {base}/d", "get": {"uri": {"json": "/uri"}}}, LOGIN | {"request": "POST {uri}"}]
            with pytest.raises(Misplaced):
                await obtained(at.url, steps)
            assert other.seen == []
            assert plain(await obtained(at.url, steps, trust=[other.url]))["session"] == "other"


@pytest.mark.parametrize(
    ("body", "sent", "kind"),
    [
        ({"form": {"a": "{user}", "b": "{workspace}"}}, b"a=svc", "application/x-www-form-urlencoded"),
        ({"text": "<u>{user|xml}</u>", "headers": {"Content-Type": "text/xml"}}, b"<u>svc</u>", "text/xml"),
        ({"json": {"n": 1}}, b'{"n": 1}', "application/json"),
    ],
)
async def test_bodies(body: dict[str, Any], sent: bytes, kind: str) -> None:
    """A form, a text or JSON; the step's own Content-Type wins."""
    async with vendor({"session": "S"}) as at:
        await obtained(at.url, [{"request": "POST {base}/x", "get": {"session": {"json": "/session"}}} | body])
    assert (at.seen[0][3], at.seen[0][2]["Content-Type"]) == (sent, kind)


async def test_basic_is_shown_in_utf_8() -> None:
    """RFC 7617, with characters that are none of ASCII."""
    async with vendor({"session": "S"}) as at:
        step = {"request": "GET {base}/", "basic": ["{user}", "{password}"], "get": {"session": {"json": "/session"}}}
        await obtained(at.url, [step], credential={"user": "Jürgen", "password": SecretReference(value="p")})
    assert at.seen[0][2]["Authorization"] == "Basic SsO8cmdlbjpw"


@pytest.mark.parametrize(
    ("life", "answer", "lifetime", "idle", "source"),
    [
        ({"idle": "20m", "max": "8h"}, {}, 28800, 1200, "recipe"),
        ({"max": "8h"}, {"expires_in": 60}, 60, None, "expires_in"),
        ({"idle": "{workspace}"}, {}, math.inf, 77, "recipe"),
        ({}, {"expires_in": "x"}, math.inf, None, "recipe"),
        ({}, {"expires_in": -1}, math.inf, None, "recipe"),
    ],
)
async def test_how_long_it_lasts(
    life: dict[str, Any], answer: dict[str, Any], lifetime: float, idle: float | None, source: str
) -> None:
    """The recipe says, an operator by a variable, or the answer, which wins."""
    step = LOGIN | {"get": LOGIN["get"] | {"expires_in": {"json": "/expires_in"}}}  # type: ignore[operator]
    async with vendor({"session": "S"} | answer) as at:
        grant = await obtained(at.url, {"steps": [step], "life": life}, credential=CREDENTIAL | {"workspace": 77})
    assert (grant.lifetime, grant.idle, grant.source) == (lifetime, idle, source)
    assert "expires_in" not in grant.values


async def test_a_session_with_control_characters_is_none() -> None:
    """It would make another header of what it is put into."""
    async with vendor({"session": "a\r\nX-Evil: 1"}) as at:
        with pytest.raises(IssuerUnavailable, match="control characters"):
            await obtained(at.url, [LOGIN])


async def test_an_answer_without_an_end_is_not_read_for_ever() -> None:
    """A megabyte is looked at, and no more."""

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(1 << 12):
                await answer.write(b"x" * (1 << 16))
        return answer

    async with vendor(endless) as at:
        with pytest.raises(IssuerUnavailable):
            await obtained(at.url, [LOGIN])


async def test_a_coded_answer_is_read() -> None:
    """Some servers send gzip to who asked for none."""

    async def packed(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b'{"session":"S"}'), headers={"Content-Encoding": "gzip"})

    async with vendor(packed) as at:
        assert plain(await obtained(at.url, [LOGIN]))["session"] == "S"


CSRF = {
    "steps": [{"request": "GET {base}/nonce", "get": {"nonce": {"header": "X-Nonce"}}}],
    "send": {"headers": {"X-Nonce": "{nonce}"}},
    "dead": {"status": 403},
}


async def test_a_second_part_is_fetched_alone() -> None:
    """In the session that is held, with its cookies; everything else stays as it is."""
    login = {"status": 200, "body": {"session": "S"}, "headers": {"Set-Cookie": "C=1; Path=/"}}
    nonces = [{"status": 200, "headers": {"X-Nonce": f"n{number}"}} for number in (1, 2)]
    async with vendor(login, *nonces) as at:
        odd = issuer(at.url, {"steps": [LOGIN], "send": {"basic": ["{user}", "{password}"]}}, csrf=CSRF)
        first = await odd.obtain(None, 10.0)
        second = await odd.obtain(None, 10.0, values=first.values)
    assert [path for _, path, _, _ in at.seen] == ["/login", "/nonce", "/nonce"]
    assert at.seen[2][2]["Cookie"] == "C=1"
    assert ["Authorization" in headers for _, _, headers, _ in at.seen] == [False, True, True]
    assert plain(second) == plain(first) | {"nonce": "n2"}


async def test_a_second_part_that_fails_leaves_the_login_good() -> None:
    """The session is there; what is missing shows when it is needed."""
    async with vendor({"session": "S"}, {"status": 500}) as at:
        grant = await obtained(at.url, [LOGIN], csrf=CSRF)
    assert set(plain(grant)) == {"session", "limit"}


async def test_a_second_part_in_a_dead_session_says_so() -> None:
    """Then all of it is to be obtained."""
    async with vendor({"session": "S"}, {"status": 200, "headers": {"X-Nonce": "n"}}, {"status": 401}) as at:
        odd = issuer(at.url, [LOGIN], csrf=CSRF)
        first = await odd.obtain(None, 10.0)
        with pytest.raises(Lapsed):
            await odd.obtain(None, 10.0, values=first.values)


async def test_a_logout_shows_the_session() -> None:
    """With its cookies and variables; without a logout in the recipe nothing is sent."""
    async with vendor({"session": "S"}) as at:
        send = {"headers": {"arena_session_id": "{session}"}, "query": {"sid": "{session}"}}
        odd = issuer(at.url, {"steps": [LOGIN], "send": send}, logout="PUT {base}/logout")
        grant = await odd.obtain(None, 10.0)
        await odd.release(grant.values, 10.0)
        await issuer(at.url, [LOGIN]).release(grant.values, 10.0)
    assert [(method, path) for method, path, _, _ in at.seen] == [("POST", "/login"), ("PUT", "/logout?sid=S")]
    assert at.seen[1][2]["arena_session_id"] == "S"


async def test_without_steps_nothing_is_asked() -> None:
    """What is configured is the credential; a secret that cannot be read is told."""
    basic = {"send": {"basic": ["{user}", "{password}"]}}
    grant = await obtained("http://127.0.0.1:1", basic)
    assert (plain(grant), grant.lifetime, grant.how) == ({"=": True}, math.inf, "configured")
    with pytest.raises(ConfigurationError):
        await obtained(
            "http://127.0.0.1:1", basic, credential={"user": "u", "password": SecretReference(env="NO_SUCH")}
        )


def test_what_a_credential_is() -> None:
    """Recipe, origin and what is no secret; neither the path of the base URL nor the password."""
    one = issuer("https://plm.example.com/v1", [LOGIN])
    same = issuer("https://plm.example.com/v2", [LOGIN], CREDENTIAL | {"password": SecretReference(value="x")})
    assert one.identity() == same.identity()
    assert PASSWORD not in one.identity()
    for url, credential in (("https://plm.example.com", {"user": "other"}), ("https://other.example.com", {})):
        assert issuer(url, [LOGIN], CREDENTIAL | credential).identity() != one.identity()
    assert one.fingerprint("s") != same.fingerprint("s")
    assert one.fingerprint("s") == issuer("https://plm.example.com", [LOGIN]).fingerprint("s")


def test_what_another_login_costs() -> None:
    """Where an account has one session it ends that of all others."""
    assert issuer("https://x.example.com", [LOGIN]).anew is Anew.FREE
    assert issuer("https://x.example.com", [LOGIN], sessions={"per_account": "one"}).anew is Anew.EVICTS


def test_an_oauth2_block_is_the_settings_of_one() -> None:
    """Secrets stay the places where they are, numbers of `extra` become texts, what has no value is left out."""
    block = {
        "token_url": "https://sso.example.com/token",
        "client_id": "{user}",
        "client_secret": "{password}",
        "scope": "{gone}",
        "extra": {"workspace_id": "{workspace}"},
    }
    data = {"id": "odd", "vars": VARS | {"gone": {"optional": True}}, "login": {"oauth2": block}}
    bound = Bound(
        "odd", Recipe.model_validate(data), CREDENTIAL | {"workspace": 7}, parse_base_url("https://x.example")
    )
    settings = oauth2_settings(bound)
    assert settings.client_secret is CREDENTIAL["password"]
    assert (settings.client_id, settings.scope, settings.extra) == ("svc", None, {"workspace_id": "7"})
    bad = Recipe.model_validate(data | {"login": {"oauth2": {"token_url": "x", "client_id": "y"}}})
    with pytest.raises(ConfigurationError, match=r"upstreams\.odd: recipe odd, login\.oauth2\.token_url: "):
        oauth2_settings(Bound("odd", bad, CREDENTIAL, parse_base_url("https://x.example")))


async def test_an_address_that_is_none_leads_nowhere() -> None:
    """Whatever an answer names: nothing is sent there, and the login says so."""
    async with vendor({"status": 307, "headers": {"Location": "http://[bad/"}}) as at:
        with pytest.raises((Misplaced, IssuerUnavailable)) as told:
            await obtained(at.url, [LOGIN | {"follow": 1}])
    assert len(at.seen) == 1
    assert "URL" in str(told.value)


async def test_a_long_answer_is_read_to_its_end() -> None:
    """It comes in many parts, and the session may stand in the last."""

    async def long(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(20):
            await answer.write(b" " * 20_000)
        await answer.write(b'{"session":"S"}')
        return answer

    async with vendor(long) as at:
        assert plain(await obtained(at.url, [LOGIN]))["session"] == "S"
