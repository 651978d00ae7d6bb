"""From what goes over the wire to a recipe, without a network: exchanges as systems and scripts have them."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from sidecar.errors import SidecarError
from sidecar.exchange.body import RequestBody
from sidecar.learn.anatomy import anatomy_of
from sidecar.learn.death import Death, probe_of, seen_in, told_by
from sidecar.learn.document import written
from sidecar.learn.recipe import Learned, learned
from sidecar.learn.seen import Seen
from sidecar.learn.trace import traced
from sidecar.learn.watch import Watch
from sidecar.policy.message import Fields, Request
from sidecar.policy.routing import Origin, Route
from sidecar.settings import load
from sidecar.settings.yaml_text import parse
from tests.canary import canary

BASE = "https://plm.example.com/api"
PASSWORD, SESSION, NONCE = canary("learn-password"), canary("learn-session-1"), canary("learn-nonce-1")
JSON = ("Content-Type", "application/json")
FORM = ("Content-Type", "application/x-www-form-urlencoded")
XML = ("Content-Type", "text/xml")
BASIC = ("Authorization", "Basic " + base64.b64encode(f"svc:{PASSWORD}".encode()).decode())


def ask(line: str, *fields: tuple[str, str], body: Any = None, says: Any = None, **more: Any) -> Seen:
    """Return an exchange: `GET /path`, its fields and body; *says*: the answer's body; *status*, *told*: its fields."""
    method, _, path = line.partition(" ")
    told = tuple(more.get("told", ()))
    if isinstance(body, dict):
        body, fields = json.dumps(body), (JSON, *fields)
    if isinstance(says, dict | list):
        says, told = json.dumps(says), (JSON, *told)
    url = path if "://" in path else f"https://plm.example.com{path}"
    sent, answered = ((text or "").encode() for text in (body, says))
    return Seen(method, url, tuple(fields), sent, more.get("status", 200), told, answered)


def learn(*seen: Seen, death: Death | None = None, secrets: dict[str, str] | None = None) -> tuple[Learned, str]:
    """Return what is learned of *seen*, and as it is written; every product of a test is a sound configuration."""
    anatomy = anatomy_of(traced(seen, secrets or {}))
    found = learned(anatomy, name="plm", base=BASE, death=death)
    text = written(found, anatomy.words())
    assert parse(text)["upstreams"] == {"plm": found.upstream}
    for word in (PASSWORD, SESSION, NONCE):
        assert word not in text
    return found, text


def sound(folder: Path, text: str) -> None:
    """Raise ConfigurationError unless *text* is a configuration."""
    (folder / "learned.yaml").write_text(text)
    load(folder / "learned.yaml", environ={})


def recipe_of(*seen: Seen, **more: Any) -> dict[str, Any]:
    found, _ = learn(*seen, **more)
    recipe: dict[str, Any] = found.upstream["recipe"]
    return recipe


def bearing(*fields: tuple[str, str]) -> list[Seen]:
    """Return a few requests with *fields*."""
    return [ask(f"GET /api/items?page={number}", *fields, says={"rows": [number]}) for number in range(3)]


LOGIN = ask("POST /api/login", body={"user": "svc", "password": PASSWORD}, says={"ticket": SESSION, "ttl": 1800})


def test_a_session_cookie_after_a_json_login() -> None:
    """The cookie is kept in the jar, and scripts get one that stands for it."""
    login = ask(
        "POST /api/login",
        body={"user": "svc", "password": PASSWORD, "remember": True},
        says={"welcome": "svc"},
        told=[("Set-Cookie", f"SID={SESSION}; Path=/; HttpOnly")],
    )
    recipe = recipe_of(login, *bearing(("Cookie", f"SID={SESSION}")))
    assert recipe["login"]["send"] == {"cookies": "jar"}
    (step,) = recipe["login"]["steps"]
    assert step["request"] == "POST {base}/login"
    assert step["json"] == {"user": "{user}", "password": "{password}", "remember": True}
    assert recipe["vars"] == {"user": {}, "password": {"secret": True}}
    reply = recipe["shim"][0]["reply"]
    assert reply == {"cookies": {"SID": "{placeholder}"}, "json": {"welcome": "{user}"}}


def test_a_bearer_token_in_json() -> None:
    """The scheme stays; the lifetime that the answer names is used."""
    login = ask(
        "POST /oauth/token",
        FORM,
        body=urlencode({"grant_type": "client_credentials", "client_id": "sync", "client_secret": PASSWORD}),
        says={"access_token": SESSION, "token_type": "Bearer", "expires_in": 900},
    )
    recipe = recipe_of(login, *bearing(("Authorization", f"Bearer {SESSION}")))
    (step,) = recipe["login"]["steps"]
    assert step["request"] == "POST {origin}/oauth/token"
    assert step["form"]["client_secret"] == "{client_secret}"
    assert step["get"] == {"access_token": {"json": "/access_token"}, "expires_in": {"json": "/expires_in"}}
    assert recipe["login"]["send"] == {"headers": {"Authorization": "Bearer {access_token}"}}


def test_a_header_of_the_systems_own_and_its_logout() -> None:
    """The name of the field is the system's; the logout is answered, and used by the sidecar."""
    field = ("X-Ticket", SESSION)
    recipe = recipe_of(LOGIN, *bearing(field), ask("DELETE /api/session", field, status=204))
    assert recipe["login"]["send"] == {"headers": {"X-Ticket": "{ticket}"}}
    assert recipe["logout"]["request"] == "DELETE {base}/session"
    assert "headers" not in recipe["logout"]
    assert recipe["shim"][1] == {"match": "DELETE {base}/session", "reply": {"status": 204}}


def soap(inside: str, session: str = "") -> str:
    header = f"<e:Header><S><sid>{session}</sid></S></e:Header>" if session else ""
    return f'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/">{header}<e:Body>{inside}</e:Body></e:Envelope>'


def test_a_session_in_a_soap_header() -> None:
    """The script's placeholder is replaced in its bodies; the login is told from other calls by its operation."""
    login = ask(
        "POST /api/soap",
        XML,
        body=soap(f"<login><user>svc</user><password>{PASSWORD}</password></login>"),
        says=soap(f"<r><sid>{SESSION}</sid></r>"),
        told=[XML],
    )
    calls = [ask("POST /api/soap", XML, body=soap(f"<get>{n}</get>", SESSION), says=soap("<x/>")) for n in range(3)]
    recipe = recipe_of(login, *calls, ask("POST /api/soap", XML, body=soap("<logout/>", SESSION), says=soap("<y/>")))
    assert recipe["swap"] == ["header", "body"]
    assert recipe["login"]["steps"][0]["get"] == {"sid": {"xml": ".//sid"}}
    assert "<password>{password|xml}</password>" in recipe["login"]["steps"][0]["text"]
    assert [each["match"]["body"] for each in recipe["shim"]] == [
        r"<([\w.-]+:)?login[\s/>]",
        r"<([\w.-]+:)?logout[\s/>]",
    ]
    assert "<sid>{placeholder}</sid>" in recipe["shim"][0]["reply"]["text"]
    assert "<sid>{sid|xml}</sid>" in recipe["logout"]["text"]


def test_a_session_in_the_query() -> None:
    """It is put into the query of every request."""
    calls = [ask(f"GET /api/items?sid={SESSION}&page={number}", says={"n": number}) for number in range(3)]
    assert recipe_of(LOGIN, *calls)["login"]["send"] == {"query": {"sid": "{ticket}"}}


def test_two_values_a_cookie_and_a_header_from_another_cookie() -> None:
    """The request that gave the second one is a step as well, before the login that needs it."""
    first = ask("GET /api/start", says={"v": 1}, told=[("Set-Cookie", f"XSRF-TOKEN={NONCE}; Path=/")])
    cookie, field = ("Cookie", f"XSRF-TOKEN={NONCE}"), ("X-XSRF-TOKEN", NONCE)
    login = ask(
        "POST /api/login",
        cookie,
        field,
        body={"user": "svc", "password": PASSWORD},
        told=[("Set-Cookie", f"SID={SESSION}; Path=/")],
        says={"status": "ok"},
    )
    recipe = recipe_of(first, login, *bearing(("Cookie", f"XSRF-TOKEN={NONCE}; SID={SESSION}"), field))
    steps = recipe["login"]["steps"]
    assert [step["request"] for step in steps] == ["GET {base}/start", "POST {base}/login"]
    assert steps[0]["get"] == {"xsrf_token": {"cookie": "XSRF-TOKEN"}}
    assert steps[1]["headers"] == {"X-XSRF-TOKEN": "{xsrf_token}"}
    assert steps[1]["ok"] == {"status": 200, "json": {"/status": "ok"}}
    assert recipe["login"]["send"] == {"headers": {"X-XSRF-TOKEN": "{xsrf_token}"}, "cookies": "jar"}


def test_a_nonce_that_writes_show() -> None:
    """It is the second part of the session: fetched as the script does, and shown by what writes."""
    field = ("X-Ticket", SESSION)
    fetch = ask("GET /api/", field, ("X-CSRF-Token", "Fetch"), says={"d": []}, told=[("x-csrf-token", NONCE)])
    write = ask("POST /api/items", field, ("X-CSRF-Token", NONCE), body={"n": 1}, status=201)
    recipe = recipe_of(LOGIN, fetch, *bearing(field), write, write)
    assert recipe["csrf"]["steps"] == [
        {
            "request": "GET {base}/",
            "headers": {"X-CSRF-Token": "Fetch"},
            "ok": {"status": 200},
            "get": {"x_csrf_token": {"header": "x-csrf-token"}},
        }
    ]
    assert recipe["csrf"]["send"]["headers"] == {"X-CSRF-Token": "{x_csrf_token}"}
    assert recipe["login"]["send"] == {"headers": {"X-Ticket": "{ticket}"}}
    assert recipe["shim"][1]["match"]["header"] == {"X-CSRF-Token": "Fetch"}


def test_basic_with_every_request() -> None:
    """There is no login, so that there are no steps."""
    recipe = recipe_of(*bearing(BASIC))
    assert recipe["login"] == {"send": {"basic": ["{username}", "{password}"]}, "fatal": {"status": 401}}
    assert "shim" not in recipe


@pytest.mark.parametrize(
    ("field", "send"),
    [
        (("X-Api-Key", SESSION), {"headers": {"X-Api-Key": "{x_api_key}"}}),
        (("Authorization", f"Bearer {SESSION}"), {"headers": {"Authorization": "Bearer {token}"}}),
    ],
)
def test_a_key_that_no_answer_told(field: tuple[str, str], send: dict[str, Any]) -> None:
    """What the script knew by itself is a secret of the configuration."""
    assert recipe_of(*bearing(field))["login"]["send"] == send


def test_a_form_with_a_hidden_field_and_a_redirect() -> None:
    """The page is a step for its hidden field; the login is fine where it leads to the page that it led to."""
    page = ask(
        "GET /api/login",
        says=f'<html><form><input type="hidden" name="authenticity" value="{NONCE}"></form></html>',
        told=[("Content-Type", "text/html"), ("Set-Cookie", f"sid={canary('learn-before')}; Path=/")],
    )
    cookie = ("Cookie", f"sid={canary('learn-before')}")
    login = ask(
        "POST /api/login",
        cookie,
        FORM,
        body=urlencode({"username": "svc", "password": PASSWORD, "authenticity": NONCE}),
        status=302,
        told=[("Location", "/api/home"), ("Set-Cookie", f"sid={SESSION}; Path=/")],
    )
    recipe = recipe_of(page, login, *bearing(("Cookie", f"sid={SESSION}")))
    first, second = recipe["login"]["steps"]
    assert first["get"]["authenticity"]["body"].count("(") > 0
    assert second["form"] == {"username": "{username}", "password": "{password}", "authenticity": "{authenticity}"}
    assert second["ok"] == {"status": 302, "location": "*/api/home"}
    assert {"status": 200} in second["fatal"]
    assert [each["match"] for each in recipe["shim"]] == ["POST {base}/login"]
    assert recipe["shim"][0]["reply"]["headers"] == {"Location": "/api/home"}


def test_a_token_and_then_a_session_for_it() -> None:
    """What the session was begun with is a step before it, though later requests do not show it."""
    token = canary("learn-token-of-the-first-step")
    begin = ask("POST /api/session", ("Authorization", f"Bearer {token}"), body={}, says={"sid": SESSION})
    first = ask("POST /api/token", body={"user": "svc", "password": PASSWORD}, says={"token": token})
    recipe = recipe_of(first, begin, *bearing(("X-Sid", SESSION)))
    steps = recipe["login"]["steps"]
    assert [step["request"] for step in steps] == ["POST {base}/token", "POST {base}/session"]
    assert steps[1]["headers"] == {"Authorization": "Bearer {token}"}
    assert recipe["login"]["send"] == {"headers": {"X-Sid": "{sid}"}}


def test_a_named_secret_is_found_in_any_place_and_form() -> None:
    """`--secret` finds what has an odd name, and what is sent as a hash."""
    hashed = hashlib.md5(PASSWORD.encode(), usedforsecurity=False).hexdigest()
    login = ask("POST /api/in", body={"who": "svc", "proof": hashed}, says={"ticket": SESSION})
    found, text = learn(login, *bearing(("X-Ticket", SESSION)), secrets={PASSWORD: "SYNC_WORD"})
    assert found.upstream["recipe"]["login"]["steps"][0]["json"] == {"who": "svc", "proof": "{sync_word|md5}"}
    assert found.upstream["credential"] == {"sync_word": {"env": "SYNC_WORD"}}
    assert hashed not in text


def test_ids_that_a_script_goes_on_with_are_no_session() -> None:
    """What an answer tells, and a later request names once, is data; in the reply it stays as it was."""
    made = ask("POST /api/items", ("X-Ticket", SESSION), body={"n": 1}, says={"guid": "PART-00001"}, status=201)
    login = ask(
        "POST /api/login", body={"password": PASSWORD}, says={"ticket": SESSION, "home": "FOLDER-0000000000001"}
    )
    use = ask("POST /api/links", ("X-Ticket", SESSION), body={"part": "PART-00001", "in": "FOLDER-0000000000001"})
    recipe = recipe_of(login, *bearing(("X-Ticket", SESSION)), made, use)
    assert recipe["login"]["send"] == {"headers": {"X-Ticket": "{ticket}"}}
    assert "swap" not in recipe
    assert recipe["shim"][0]["reply"]["json"] == {"ticket": "{placeholder}", "home": "FOLDER-0000000000001"}


def test_a_cookie_of_a_load_balancer_hides_no_session_in_bodies() -> None:
    """Both are carried; the one in bodies is known by its name."""
    sticky = ("Cookie", f"LB={canary('learn-node-7')}")
    login = ask(
        "POST /api/login",
        body={"password": PASSWORD},
        says={"sessionId": SESSION},
        told=[("Set-Cookie", f"LB={canary('learn-node-7')}")],
    )
    calls = [ask("POST /api/find", sticky, body={"sessionId": SESSION, "n": n}) for n in range(3)]
    recipe = recipe_of(login, *calls)
    assert recipe["swap"] == ["header", "body"]
    assert recipe["login"]["send"] == {"cookies": "jar"}


def test_cursors_and_entity_tags_are_no_session() -> None:
    """Most requests show what an answer told, and each time it is something else."""
    ticket = ("X-Ticket", SESSION)
    pages = [ask(f"GET /api/items?cursor=CURSOR-{n}", ticket, says={"next": f"CURSOR-{n + 1}"}) for n in range(6)]
    reads = [ask(f"GET /api/items/{n}", ticket, says={"n": n, "version": f"VERSION-{n}"}) for n in range(3)]
    writes = [ask(f"PUT /api/items/{n}", ticket, ("X-Version", f"VERSION-{n}"), body={"n": n}) for n in range(3)]
    recipe = recipe_of(LOGIN, *pages, *reads, *writes)
    assert recipe["login"]["send"] == {"headers": {"X-Ticket": "{ticket}"}}
    assert "csrf" not in recipe


def test_the_id_of_the_account_in_bodies_is_no_session() -> None:
    """It is shown each time, and is the same after each login; the session is shown elsewhere."""
    login = ask("POST /api/login", body={"password": PASSWORD}, says={"ticket": SESSION, "account": "ACCOUNT-77"})
    calls = [ask("POST /api/find", ("X-Ticket", SESSION), body={"account": "ACCOUNT-77", "n": n}) for n in range(3)]
    recipe = recipe_of(login, *calls)
    assert "swap" not in recipe
    assert recipe["shim"][0]["reply"]["json"] == {"ticket": "{placeholder}", "account": "ACCOUNT-77"}


def test_what_looks_like_a_secret_in_the_answer_is_not_kept() -> None:
    """A second token that nobody shows is replaced as well."""
    login = ask(
        "POST /api/login",
        body={"user": "svc", "password": PASSWORD},
        says={"ticket": SESSION, "refresh": "f00d1e5cafe0123456789", "you": PASSWORD},
    )
    recipe = recipe_of(login, *bearing(("X-Ticket", SESSION)))
    assert set(recipe["shim"][0]["reply"]["json"].values()) == {"{placeholder}"}


@pytest.mark.parametrize(
    ("answer", "dead"),
    [
        (ask("GET /x", status=401), {"status": 401}),
        (ask("GET /x", status=302, told=[("Location", "/login?next=x")]), {"status": 302, "location": "*/login*"}),
        (ask("GET /x", says={"error": {"code": "NO_SESSION", "text": "?"}}), {"json": {"/error/code": "NO_SESSION"}}),
        (
            ask("GET /x", says={"errors": [{"code": 7}]}, status=400),
            {"status": 400, "json": {"/errors/*/code": "7"}},
        ),
        (
            ask("GET /x", says=soap("<e:Fault><faultcode>sf:NONE</faultcode></e:Fault>"), status=500),
            {"status": 500, "xml": {"./Body/Fault/faultcode": "sf:NONE"}},
        ),
        (ask("GET /x", says={"rows": [1]}), None),
    ],
)
def test_a_death_is_what_good_answers_do_not_say(answer: Seen, dead: dict[str, Any] | None, tmp_path: Path) -> None:
    """A status, a place or a code; nothing, where the answer is as good ones are."""
    run = [LOGIN, *bearing(("X-Ticket", SESSION))]
    anatomy = anatomy_of(traced(run, {}))
    probe = probe_of(anatomy)
    assert probe is not None
    good, broken = probe
    shown = dict(broken.fields)["X-Ticket"]
    assert shown != SESSION
    assert len(shown) == len(SESSION)
    found = told_by(anatomy, good, answer)
    assert (found.matches[0] if found else None) == dead
    sound(tmp_path, learn(*run, death=found)[1])


def test_nothing_is_asked_that_might_change_something() -> None:
    """Without a GET or a request that is named for reading, no death is provoked."""
    writes = [ask("POST /api/items", ("X-Ticket", SESSION), body={"n": number}) for number in range(3)]
    assert probe_of(anatomy_of(traced([LOGIN, *writes], {}))) is None
    reads = [ask("POST /api/Parts/getParts", ("X-Ticket", SESSION), body={"n": number}) for number in range(3)]
    assert probe_of(anatomy_of(traced([LOGIN, *reads], {}))) is not None


def test_a_death_in_the_run_is_seen() -> None:
    """A script that met one and logged in again has shown it."""
    run = [LOGIN, *bearing(("X-Ticket", SESSION)), ask("GET /api/items", ("X-Ticket", SESSION), status=401)]
    found = seen_in(anatomy_of(traced(run, {})))
    assert found is not None
    assert found.matches == [{"status": 401}]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ([ask("GET /api/items", says={"rows": []})], "no login was seen"),
        ([ask("POST /api/login", body={"password": PASSWORD}, status=403)], "a password was seen"),
    ],
)
def test_without_a_login_there_is_no_recipe(seen: list[Seen], why: str) -> None:
    """And what is missing is said."""
    with pytest.raises(ValueError, match=why):
        learn(*seen)


def test_a_secret_that_would_be_written_is_refused() -> None:
    """The last look finds it wherever it came from, and the error does not show it."""
    login = ask("POST /api/login", body={"user": "svc", "password": PASSWORD}, says={"ticket": SESSION})
    anatomy = anatomy_of(traced([login, *bearing(("X-Ticket", SESSION))], {}))
    found = learned(anatomy, name="plm", base=BASE)
    found.upstream["recipe"]["title"] = f"of {SESSION}"
    with pytest.raises(SidecarError, match="would stand in what is written, at ") as error:
        written(found, anatomy.words())
    assert SESSION not in str(error.value)


def test_what_templates_cannot_say_becomes_a_value_of_the_credential() -> None:
    """A brace has no escape in a recipe."""
    login = ask("POST /api/login", body={"filter": "{all}", "password": PASSWORD}, says={"ticket": SESSION})
    found, _ = learn(login, *bearing(("X-Ticket", SESSION)))
    assert found.upstream["credential"]["filter"] == "{all}"


def test_every_guess_is_marked() -> None:
    """The file says beside each key where it is from, and at its top what was not seen."""
    _, text = learn(LOGIN, *bearing(("X-Ticket", SESSION)))
    assert "# guessed: a wrong password was not seen" in text
    assert "# guessed: no death was seen" in text
    assert "# not seen: a logout" in text
    assert "# seen: the session is shown in header X-Ticket" in text


def test_a_gateway_before_the_system_gets_its_own_credential_too() -> None:
    """Basic with every request, and a session inside: both are shown."""
    login = ask(
        "POST /api/login", BASIC, body={"user": "sync", "pin_password": canary("learn-pin")}, says={"sid": SESSION}
    )
    recipe = recipe_of(login, *bearing(BASIC, ("X-Sid", SESSION)))
    assert recipe["login"]["send"] == {"basic": ["{username}", "{password}"], "headers": {"X-Sid": "{sid}"}}
    assert recipe["login"]["steps"][0]["basic"] == ["{username}", "{password}"]


def test_a_login_at_another_host(tmp_path: Path) -> None:
    """The recipe names the host as one that steps may reach, and answers the script's login there."""
    login = ask(
        "POST https://login.example.com/token",
        FORM,
        body=urlencode({"client_id": "sync", "client_secret": PASSWORD}),
        says={"access_token": SESSION},
    )
    found, text = learn(login, *bearing(("Authorization", f"Bearer {SESSION}")))
    recipe = found.upstream["recipe"]
    assert recipe["trust"] == ["https://login.example.com"]
    assert recipe["shim"][0]["match"] == "POST https://login.example.com/token"
    sound(tmp_path, text)


def test_where_a_login_says_it_comes_from_is_kept() -> None:
    """Some systems refuse a form without it; it names the system as the recipe does."""
    whence = (("Origin", "https://plm.example.com"), ("Referer", f"{BASE}/login"))
    login = ask("POST /api/login", *whence, body={"user": "svc", "password": PASSWORD}, says={"ticket": SESSION})
    recipe = recipe_of(login, *bearing(("X-Ticket", SESSION)))
    assert recipe["login"]["steps"][0]["headers"] == {"Origin": "{origin}", "Referer": "{base}/login"}


def test_what_looks_like_a_key_beside_the_password_is_a_secret_too() -> None:
    """The file must not hold it, whatever it is called; numbers under such a name neither."""
    key = "a1b2c3d4e5f6a7b8c9d0e1f2"
    login = ask("POST /api/login", ("X-App", key), body={"user": "svc", "password": 87654321}, says={"ticket": SESSION})
    found, text = learn(login, *bearing(("X-Ticket", SESSION)))
    assert key not in text
    assert "87654321" not in text
    assert found.upstream["credential"] == {
        "user": "svc",
        "x_app": {"env": "PLM_X_APP"},
        "password": {"env": "PLM_PASSWORD"},
    }


@pytest.mark.parametrize(
    ("field", "template"),
    [
        (("Authorization", f"Token {PASSWORD}"), "Token {token}"),
        (("X-Signed", 'id="sync", key=A1b2C3d4E5f6A7b8C9d0E1f2'), "{x_signed}"),
    ],
)
def test_a_field_that_a_login_is_authorized_by_is_a_secret(field: tuple[str, str], template: str) -> None:
    """It is another one than what the login gives, and stands nowhere in the file."""
    login = ask("POST /api/login", field, body={"password": canary("learn-other")}, says={"ticket": SESSION})
    found, text = learn(login, *bearing(("X-Ticket", SESSION)))
    assert found.upstream["recipe"]["login"]["steps"][0]["headers"] == {field[0]: template}
    assert "A1b2C3" not in text


def test_a_session_that_a_fixed_token_begins() -> None:
    """There is no password at all."""
    login = ask("POST /api/session", ("Authorization", f"Bearer {PASSWORD}"), body={}, says={"sid": SESSION})
    recipe = recipe_of(login, *bearing(("X-Sid", SESSION)))
    assert recipe["login"]["steps"][0]["headers"] == {"Authorization": "Bearer {token}"}
    assert recipe["login"]["send"] == {"headers": {"X-Sid": "{sid}"}}


def test_a_client_that_looks_into_its_token_gets_one_to_look_into() -> None:
    """Where the system gave a JWT, the placeholder is one."""
    token = f"eyJhbGciOiJub25lIn0.{base64.urlsafe_b64encode(SESSION.encode()).decode().rstrip('=')}.c2ln"
    login = ask("POST /api/login", body={"user": "svc", "password": PASSWORD}, says={"jwt": token})
    recipe = recipe_of(login, *bearing(("Authorization", f"Bearer {token}")))
    assert recipe["shim"][0]["reply"]["json"] == {"jwt": "{placeholder|jwt}"}


def test_a_session_in_paths_is_told_of() -> None:
    """No recipe can put it there."""
    calls = [ask(f"GET /api/{SESSION}/items", ("X-Ticket", SESSION), says={"n": number}) for number in range(3)]
    found, _ = learn(LOGIN, *calls)
    assert any("session in a path" in line for line in found.unseen)


def test_the_login_is_told_from_other_requests_to_its_address() -> None:
    """By the secret that only it has."""
    login = ask("POST /api/do", FORM, body=urlencode({"do": "login", "password": PASSWORD}), says={"ticket": SESSION})
    calls = [ask("POST /api/do", FORM, ("X-Ticket", SESSION), body=f"do=list&n={number}") for number in range(3)]
    recipe = recipe_of(login, *calls)
    assert recipe["shim"][0]["match"]["form"] == {"password": {"regex": "."}}


@pytest.mark.parametrize(
    "text", ["plain", "true", "", "5", "a: b", "#x", "é", "\x85", "'", '"', "\n", "{a}", "-", ".5"]
)
def test_every_text_is_written_as_it_is(text: str) -> None:
    """YAML reads back what was meant, as a value and as a key."""
    found = Learned("plm", {"base_url": text, "credential": {text or "x": [text, {"a": text}]}}, {}, {}, (), ())
    assert parse(written(found, ()))["upstreams"]["plm"] == found.upstream


@dataclass
class Client:
    """A client that notes what it is sent."""

    patience: float = 1.0
    sent: list[bytes] = field(default_factory=list)

    async def start(
        self, status: int, reason: bytes, fields: Fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        self.sent.append(data)

    async def send(self, data: bytes) -> None:
        self.sent.append(data)

    async def end(self) -> None:
        self.sent.append(b"END")

    async def abort(self) -> None:
        self.sent.append(b"ABORT")


def no_spool() -> Any:
    raise OSError


async def watched(watch: Watch, sent: bytes, kind: bytes, *parts: bytes, answer: bytes = b"text/plain") -> Client:
    """Let *watch* look at a request with the body *sent*, whose answer comes in *parts*."""
    fields = ((b"Content-Type", kind),)
    request = Request(
        method=b"post", scheme="https", host="h", port=443, target=b"/a?b=c", fields=fields, length=len(sent)
    )
    body = RequestBody(len(sent), open_spool=no_spool, wanted=lambda: None)
    if sent:
        body.feed(sent)
        body.feed_end()
    client = Client()
    wrapped = await watch(Route("plm", Origin("https", "h", 443), b"/a?b=c"), request, body, client)
    wrapped.patience = 7.0
    assert client.patience == wrapped.patience == 7.0
    await wrapped.start(200, b"OK", ((b"Content-Type", answer),), chunked=True, data=parts[0] if parts else b"")
    for number, part in enumerate(parts[1:], 2):
        await wrapped.send(part)
        assert len(client.sent) == number  # each part goes on at once
    await wrapped.end()
    assert await body.gather(1 << 20) == sent  # it can still be sent
    return client


async def test_what_goes_by_is_noted_and_goes_on() -> None:
    """A text is kept whole, in any number of parts; the client gets each at once."""
    watch = Watch()
    client = await watched(watch, b'{"a": 1}', b"application/json", b"one", b"two")
    assert client.sent == [b"one", b"two", b"END"]
    (seen,) = watch.seen()
    assert (seen.method, seen.url, seen.body, seen.answer_body) == ("POST", "https://h/a?b=c", b'{"a": 1}', b"onetwo")


@pytest.mark.parametrize(
    ("size", "kind", "answer", "kept"),
    [
        (256 << 10, b"text/plain", b"text/plain", (True, True)),
        ((256 << 10) + 1, b"text/plain", b"text/plain", (False, False)),
        (10, b"application/octet-stream", b"image/png", (False, False)),
        (10, b"text/plain", b"text/event-stream", (True, False)),
    ],
)
async def test_what_is_long_or_no_text_passes_unseen(
    size: int, kind: bytes, answer: bytes, kept: tuple[bool, bool]
) -> None:
    """Only its head is kept."""
    watch = Watch()
    half = b"x" * (size // 2)
    await watched(watch, b"x" * size, kind, half, b"x" * (size - len(half)), answer=answer)
    (seen,) = watch.seen()
    assert (seen.body is not None, seen.answer_body is not None) == kept


async def test_the_first_and_the_last_requests_are_kept() -> None:
    """Two thousand at most; a logout is among the last."""
    watch = Watch()
    for number in range(2100):
        await watched(watch, b"%d" % number, b"text/plain")
    kept = [int(seen.body or b"-1") for seen in watch.seen()]
    assert kept == [*range(1500), *range(1600, 2100)]
    assert watch.passed == 100


async def test_all_bodies_together_are_bounded() -> None:
    """When 64 MiB are held, further bodies pass unseen."""
    watch = Watch()
    big = b"x" * (256 << 10)
    for _ in range(300):
        await watched(watch, big, b"text/plain")
    held = sum(len(seen.body or b"") for seen in watch.seen())
    assert held == 64 << 20


def rpc(method: str, *params: str) -> str:
    given = "".join(f"<param><value><string>{each}</string></value></param>" for each in params)
    return f"<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params>{given}</params></methodCall>"


def fault(code: int, text: str) -> str:
    members = "".join(
        f"<member><name>{name}</name><value><{kind}>{value}</{kind}></value></member>"
        for name, kind, value in (("faultCode", "int", code), ("faultString", "string", text))
    )
    return f"<methodResponse><fault><value><struct>{members}</struct></value></fault></methodResponse>"


def test_a_login_by_xml_rpc_is_told_from_other_calls() -> None:
    """They have one address; the death is told by the members of a fault, whatever was called."""
    login = ask(
        "POST /api/xml-rpc/",
        XML,
        body=rpc("Auth.login", "svc", PASSWORD),
        says=f"<methodResponse><params><param><value><string>{SESSION}</string></value></param></params></methodResponse>",
        told=[XML, ("Set-Cookie", f"sessionid={SESSION}; Path=/")],
    )
    cookie = ("Cookie", f"sessionid={SESSION}")
    answer = "<methodResponse><params><param><value><int>7</int></value></param></params></methodResponse>"
    calls = [
        ask("POST /api/xml-rpc/", XML, cookie, body=rpc("Product.filter", str(number)), says=answer, told=[XML])
        for number in range(3)
    ]
    secrets = {PASSWORD: "pw"}
    anatomy = anatomy_of(traced([login, *calls], secrets))
    probe = probe_of(anatomy)
    assert probe is not None
    good, broken = probe
    assert SESSION not in str(broken.fields)
    dead = ask(
        "POST /api/xml-rpc/",
        XML,
        body=rpc("Product.filter", "1"),
        says=fault(-32603, 'Authentication failed when calling "Product.filter"'),
        told=[XML],
    )
    death = told_by(anatomy, good, dead, logged_out=False)
    recipe = recipe_of(login, *calls, death=death, secrets=secrets)
    assert [each["match"] for each in recipe["shim"]] == [
        {"method": "POST", "path": "{base}/xml-rpc/", "xml": {"methodName": "Auth.login"}}
    ]
    (told,) = recipe["login"]["dead"]
    assert told["xml"]["./fault/value/struct/member[name='faultCode']/value/int"] == "-32603"
    (pattern,) = told["xml"]["./fault/value/struct/member[name='faultString']/value/string"].values()
    assert re.search(pattern, 'Authentication failed when calling "Part.create"')
    assert not re.search(pattern, "Classification with this name already exists")


def test_a_login_by_json_rpc_is_told_from_other_calls() -> None:
    """And its answer has the number of the request that it is for."""
    login = ask(
        "POST /api/jsonrpc",
        body={"jsonrpc": "2.0", "id": 41, "method": "login", "params": {"user": "svc", "password": PASSWORD}},
        says={"jsonrpc": "2.0", "id": 41, "result": {"session": SESSION}},
    )
    calls = [
        ask(
            "POST /api/jsonrpc",
            ("X-Session", SESSION),
            body={"jsonrpc": "2.0", "id": 42 + number, "method": "read", "params": [number]},
            says={"jsonrpc": "2.0", "id": 42 + number, "result": [number]},
        )
        for number in range(3)
    ]
    (shim,) = recipe_of(login, *calls)["shim"]
    assert shim["match"] == {"method": "POST", "path": "{base}/jsonrpc", "json": {"/method": "login"}}
    assert shim["reply"]["json"] == {"jsonrpc": "2.0", "id": "{request:/id}", "result": {"session": "{placeholder}"}}


@pytest.mark.parametrize("spelled", ["pa&quot;ss-wörd9", 'pa"ss-w&#246;rd9', '<![CDATA[pa"ss-wörd9]]>'])
def test_a_password_in_xml_is_a_variable_however_it_is_spelled(spelled: str) -> None:
    """By html.escape, by numbers, in a section of characters."""
    says = f"<r><ticket>{SESSION}</ticket></r>"
    login = ask("POST /api/login", XML, body=f"<l><password>{spelled}</password></l>", says=says, told=[XML])
    _, text = learn(login, *bearing(("X-Ticket", SESSION)))
    assert "{password|xml}" in text
    assert "ss-w" not in text


def test_a_password_in_an_attribute_is_a_variable_too() -> None:
    """Its quotes stay."""
    body = f'<l user="svc" password="{PASSWORD}"/>'
    login = ask("POST /api/login", XML, body=body, says=f"<r><ticket>{SESSION}</ticket></r>", told=[XML])
    (step,) = recipe_of(login, *bearing(("X-Ticket", SESSION)))["login"]["steps"]
    assert 'password="{password|xml}"' in step["text"]


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (f"POST /api/login/{PASSWORD}", {"key": "x"}),
        ("POST /api/login", {"query": f'mutation {{ login(word: "{PASSWORD}") }}'}),
        ("POST /api/login", {"device": f"at:{PASSWORD}:9"}),
    ],
)
def test_a_named_secret_in_an_odd_place_is_never_written(line: str, body: dict[str, str]) -> None:
    """In a path, in a text, beside others: a template stands for it, or it is refused, and told without it."""
    login = ask(line, ("X-Api-Key", "key-of-the-script"), body=body, says={"ticket": SESSION})
    anatomy = anatomy_of(traced([login, *bearing(("X-Ticket", SESSION))], {PASSWORD: "WORD"}))
    with pytest.raises((SidecarError, ValueError)) as error:
        written(learned(anatomy, name="plm", base=BASE), anatomy.words())
    assert PASSWORD not in str(error.value)


def test_a_path_of_the_servers_is_one_line_of_a_comment() -> None:
    """A line end in it would be another line of the configuration."""
    hostile = "/api/a%0Alisten:%20%7Badmin:%20'0.0.0.0:9999'%7D%20%23"
    field = ("X-Ticket", SESSION)
    death = Death([{"status": 401}], f"provoked: GET {ask('GET ' + hostile).path} was answered 401")
    _, text = learn(LOGIN, ask("GET " + hostile, field), *bearing(field), death=death)
    assert list(parse(text)) == ["upstreams"]


def test_what_else_a_login_told_is_no_part_of_its_reply() -> None:
    """Texts and pages are left out, attributes and members with telling names are not repeated."""
    cookie = ("Set-Cookie", f"SID={SESSION}; Path=/")
    given: dict[str, Any] = {"body": {"user": "svc", "password": PASSWORD}}
    for says, kind in (
        (f"refresh {NONCE}", ("Content-Type", "text/plain")),
        (f"<html><script>var csrf = '{NONCE}'</script></html>", ("Content-Type", "text/html")),
        (f'<r token="{NONCE}"/>', XML),
        ({"refresh": NONCE, "sid": "s3cr3t"}, JSON),
    ):
        told = [cookie] if kind is JSON else [cookie, kind]
        login = ask("POST /api/login", says=says, told=told, **given)
        _, text = learn(login, *bearing(("Cookie", f"SID={SESSION}")))
        assert NONCE not in text
        assert "s3cr3t" not in text
