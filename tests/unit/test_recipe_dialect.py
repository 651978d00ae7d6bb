"""The dialect of a recipe: how a session is shown, what answers say of it, what is edited, what is answered here."""

import json
from typing import Any

import pytest

from sidecar.auth.dialect import Dialect
from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.dialect import recipe_dialect
from sidecar.auth.recipes.keepalive import use_of
from sidecar.auth.recipes.templates import as_jwt
from sidecar.errors import ConfigurationError
from sidecar.policy.message import Fields, Request
from sidecar.policy.reading import CSRF, FINE, LOGIN, Quota, Reading, Sign
from sidecar.policy.routing import parse_base_url
from sidecar.secret import Secret
from sidecar.settings import Recipe, SecretReference, Strip
from sidecar.settings.shipped import preset
from tests.canary import canary

PASSWORD = canary("dialect")
CREDENTIAL: dict[str, Any] = {"user": "svc", "password": SecretReference(value=PASSWORD)}
VARS = {"user": {}, "password": {"secret": True}, "url": {"optional": True}}
STEP = {"request": "POST {base}/login", "get": {"session": {"json": "/s"}}}
LOGIN_STEPS = {"steps": [STEP], "send": {"headers": {"arena_session_id": "{session}"}}}
VALUES = {"session": Secret('"S1"'), "n": Secret('"N1"')}
BASE = "https://plm.example.com/v1"
NOW = 1_700_000_000.0
HTML = (b"Content-Type", b"text/html")
JSON = (b"Content-Type", b"application/json")
XML = (b"Content-Type", b"text/xml")


def bound(login: dict[str, Any], credential: dict[str, Any] | None = None, **more: Any) -> Bound:
    recipe = Recipe.model_validate({"id": "odd", "vars": VARS, "login": login} | more)
    return Bound("odd", recipe, CREDENTIAL if credential is None else credential, parse_base_url(BASE))


def dialect(login: dict[str, Any] | None = None, **more: Any) -> Dialect:
    return recipe_dialect(bound(login or LOGIN_STEPS, **more), Strip(), ("ph0", "ph1"))


def shipped(name: str, **credential: Any) -> Dialect:
    given = Bound(name, preset(name), credential, parse_base_url(BASE))
    return recipe_dialect(given, Strip(), ("ph0",))


def request(
    method: str = "GET", target: str = "/v1/x", *fields: tuple[bytes, bytes], length: int | None = 0
) -> Request:
    return Request(
        method=method.encode(),
        scheme="https",
        host="plm.example.com",
        port=443,
        target=target.encode(),
        fields=fields,
        length=length,
    )


def dressed(made: Dialect, asked: Request, values: Any = VALUES) -> dict[bytes, bytes]:
    return dict(made.dress(values, asked, asked.target))


def read(made: Dialect, status: int, *fields: tuple[bytes, bytes], body: bytes | None = None, **asked: Any) -> Reading:
    return made.read(request(**asked), status, fields, body, NOW)


def test_a_session_is_shown_as_the_recipe_says() -> None:
    """In a field whose name may be a template too; what the script has set of `add` stays the script's."""
    made = dialect(
        LOGIN_STEPS | {"send": {"headers": {"{user}-id": "{session}", "X-Gone": "{url}"}}}, add={"X-Why": "us"}
    )
    assert dressed(made, request()) == {b"svc-id": b"S1", b"X-Why": b"us"}
    assert dressed(made, request("GET", "/v1/x", (b"x_why", b"me"))) == {b"svc-id": b"S1"}


def test_basic_is_shown_with_what_is_configured_now() -> None:
    """Nothing of it is ever in the values of the credential."""
    made = dialect({"send": {"basic": ["{user}", "{password}"]}})
    assert dressed(made, request(), {})[b"Authorization"].startswith(b"Basic ")
    assert (made.session, made.hold_back) == (False, None)


def test_a_jar_is_shown_where_it_is_one() -> None:
    """A login may set cookies that nobody asked for: without `cookies: jar` none goes out."""
    values = VALUES | {"=jar": Secret(json.dumps([["J", "1", "plm.example.com", True, "/", True]]))}
    assert dressed(dialect(LOGIN_STEPS | {"send": {"cookies": "jar"}}), request(), values) == {b"Cookie": b"J=1"}
    assert b"Cookie" not in dressed(dialect(), request(), values)


def test_a_second_part_goes_with_the_methods_that_want_it() -> None:
    """A nonce for writes alone, in a field or in the query."""
    csrf = {"steps": [STEP], "send": {"headers": {"X-N": "{n}"}, "query": {"n": "{n}"}, "methods": ["POST"]}}
    made = dialect(csrf=csrf)
    assert made.edit is not None
    assert b"X-N" not in dressed(made, request())
    assert dressed(made, request("POST"))[b"X-N"] == b"N1"
    assert made.edit.edit(VALUES, request("POST"), b"/v1/x?a=1", None).target == b"/v1/x?a=1&n=N1"
    assert made.edit.edit(VALUES, request(), b"/v1/x", None).target == b"/v1/x"


def test_what_shows_the_session_is_taken_out_first() -> None:
    """In every place: a dead cookie may win over a live field; with a jar the whole Cookie goes."""
    strips = dialect(LOGIN_STEPS | {"send": {"headers": {"sid": "{session}"}, "query": {"key": "{session}"}}}).strips
    assert b"sid" in strips.headers
    assert (b"sid" in strips.cookies, b"key" in strips.query, b"cookie" in strips.headers) == (True, True, False)
    assert b"cookie" in dialect(LOGIN_STEPS | {"send": {"cookies": "jar"}}).strips.headers
    more = dialect(strip={"headers": ["AUTHUSER"], "cookies": ["c"], "query": ["q"]}).strips
    assert (b"authuser" in more.headers, b"c" in more.cookies, b"q" in more.query) == (True, True, True)


def test_what_shows_the_session_comes_back_to_nobody() -> None:
    """Neither a field of its name nor a cookie; with a jar no cookie at all."""
    ours = dialect().ours
    assert ours is not None
    assert (b"arena-session-id" in ours.headers, b"arena_session_id" in ours.cookies) == (True, True)
    jar = dialect(LOGIN_STEPS | {"send": {"cookies": "jar"}}).ours
    assert jar is not None
    assert b"set-cookie" in jar.headers


@pytest.mark.parametrize(
    ("recipe", "status", "fields", "body", "reading"),
    [
        ({}, 200, (), None, FINE),
        ({}, 401, (), None, Reading(Sign.EXPIRED)),
        ({}, 403, (), None, FINE),
        ({}, 503, ((b"Retry-After", b"7"),), None, Reading(Sign.FINE, 7.0)),
        ({"login": {"dead": {"json": {"/why": "key"}}}}, 200, (JSON,), b'{"why":"key"}', Reading(Sign.EXPIRED)),
        ({"login": {"dead": {"json": {"/why": "key"}}}}, 401, (JSON,), b'{"why":"x"}', FINE),
        ({"login": {"dead": {"json": {"/why": "key"}}}}, 200, (JSON,), None, FINE),
        (
            {"login": {"dead": {"type": "html", "not": {"body": "welcome"}}}},
            200,
            (HTML,),
            b"log in",
            Reading(Sign.EXPIRED),
        ),
        ({"login": {"dead": {"type": "html", "not": {"body": "welcome"}}}}, 200, (HTML,), None, FINE),
        ({"csrf": {"steps": [STEP], "dead": {"status": 403}}}, 403, (), None, Reading(Sign.EXPIRED, part=CSRF)),
        ({"csrf": {"steps": [STEP], "dead": {"status": 401}}}, 401, (), None, Reading(Sign.EXPIRED, part=LOGIN)),
        (
            {"throttle": [{"when": {"status": 403}, "wait": {"header": "X-Wait"}}]},
            403,
            ((b"X-Wait", b"99"),),
            None,
            Reading(Sign.THROTTLED, 30.0),
        ),
        ({"throttle": [{"when": {"status": 403}}]}, 403, ((b"Retry-After", b"3"),), None, Reading(Sign.THROTTLED, 3.0)),
    ],
)
def test_an_answer_is_read(
    recipe: dict[str, Any], status: int, fields: Fields, body: bytes | None, reading: Reading
) -> None:
    """The signals of death first, in their parts; what was not looked at is not known to be otherwise."""
    made = dialect(LOGIN_STEPS | recipe.pop("login", {}), **recipe)
    assert read(made, status, *fields, body=body) == reading


def test_a_credential_without_a_login_is_wrong_for_good() -> None:
    """A 401 to Basic is no expiry: asked again it would lock the account."""
    made = dialect({"send": {"basic": ["{user}", "{password}"]}, "fatal": {"status": 401}})
    assert read(made, 401) == Reading(Sign.REJECTED)
    assert read(made, 403) == FINE


QUOTA = {
    "remaining": {"header": "X-Left"},
    "limit": {"header": "X-Limit"},
    "used": {"header": "X-Used"},
    "reset": {"header": "X-Reset"},
    "exhausted": {"status": 429},
}


@pytest.mark.parametrize(
    ("status", "fields", "wait", "quota"),
    [
        (200, ((b"X-Left", b"17"),), None, Quota(remaining=17, exhausts=True)),
        (200, ((b"X-Limit", b"20"), (b"X-Used", b"3")), None, Quota(remaining=17, limit=20, exhausts=True)),
        (200, (), None, None),
        (200, ((b"X-Left", b"nan"),), None, None),
        (429, ((b"X-Left", b"0"), (b"X-Reset", b"60")), 60.0, Quota(remaining=0, reset=NOW + 60, exhausts=True)),
        (429, ((b"Retry-After", b"9"),), 9.0, None),
        (429, (), 300.0, None),
        (429, ((b"X-Left", b"0"), (b"X-Reset", b"inf")), 300.0, Quota(remaining=0, exhausts=True)),
        (
            429,
            ((b"X-Left", b"0"), (b"X-Reset", b"1e12")),
            172800.0,
            Quota(remaining=0, reset=NOW + 172800, exhausts=True),
        ),
    ],
)
def test_an_allowance_is_read(status: int, fields: Fields, wait: float | None, quota: Quota | None) -> None:
    """From any answer; a reset without a format of time is in seconds, and none is further away than two days."""
    sign = Sign.EXHAUSTED if status == 429 else Sign.FINE
    assert read(dialect(quota=QUOTA), status, *fields) == Reading(sign, wait, quota=quota)


@pytest.mark.parametrize(
    ("method", "status", "fields", "held"),
    [
        ("GET", 200, (JSON,), 65536),
        ("GET", 200, (XML,), 65536),
        ("GET", 200, (HTML,), 65536),
        ("GET", 200, ((b"Content-Type", b"application/pdf"),), 0),
        ("GET", 500, ((b"Content-Type", b"application/pdf"),), 65536),
        ("GET", 200, (JSON, (b"Content-Length", b"65537")), 0),
        ("GET", 200, (JSON, (b"Content-Length", b"65536")), 65536),
        ("GET", 200, ((b"Content-Type", b"text/event-stream"),), 0),
        ("HEAD", 200, (JSON,), 0),
        ("GET", 304, (JSON,), 0),
    ],
)
def test_few_answers_are_held_back(method: str, status: int, fields: Fields, held: int) -> None:
    """Those that may be the vendor's word: typed so, or errors; never long ones, streams, or what has no body."""
    made = dialect(LOGIN_STEPS | {"dead": {"json": {"/a": 1}}})
    assert made.hold_back is not None
    assert made.hold_back(request(method), status, fields) == held


def test_a_page_of_arena_is_not_held_back() -> None:
    """Only what tells of a death in its body is: there an error of one call."""
    made = shipped("arena", email="a", password=SecretReference(value="x"))
    assert made.hold_back is not None
    assert made.hold_back(request(), 200, (JSON,)) == 0
    assert made.hold_back(request(), 400, (JSON,)) == 65536
    some = dialect(LOGIN_STEPS | {"dead": [{"status": "4xx", "json": {"/a": 1}}, {"status": 500, "body": "x"}]})
    assert some.hold_back is not None
    assert [bool(some.hold_back(request(), status, (JSON,))) for status in (200, 403, 500, 503)] == [
        False,
        True,
        True,
        False,
    ]


def test_nothing_is_held_back_where_no_body_says_anything() -> None:
    """A recipe that only looks at heads costs no wait; one that counts nothing either is not even asked."""
    made = dialect(quota=QUOTA)
    assert made.hold_back is not None
    assert made.hold_back(request(), 200, (JSON,)) == 0
    assert dialect().hold_back is None


def test_a_cookie_that_rolls_changes_what_follows_it() -> None:
    """The variable that a cookie gave is the new one as well; an answer that sets none changes nothing."""
    steps = {
        "steps": [STEP | {"get": {"xsrf": {"cookie": "X"}}}],
        "send": {"cookies": "jar", "headers": {"X-X": "{xsrf}"}},
    }
    made = dialect(steps)
    assert made.roll is not None
    rolled = made.roll({"xsrf": Secret('"1"')}, {}, request(), ((b"Set-Cookie", b"X=2; Path=/"),))
    assert rolled is not None
    assert dressed(made, request(), rolled) == {b"X-X": b"2", b"Cookie": b"X=2"}
    assert made.roll(rolled, {}, request(), ((b"Set-Cookie", b"X=2; Path=/"),)) is None
    assert dialect().roll is None


def test_cookies_of_a_session_that_was_left_are_left_too() -> None:
    """The nonce that is held is good in another: one that was fetched since the request was sent."""
    csrf = {
        "steps": [{"request": "GET {base}/nonce", "get": {"nonce": {"header": "X-N"}}}],
        "send": {"headers": {"X-N": "{nonce}"}},
    }
    made = dialect({"steps": [STEP], "send": {"cookies": "jar"}}, csrf=csrf)
    assert made.roll is not None
    older, newer = {"nonce": Secret('"1"')}, {"nonce": Secret('"2"')}
    fields = ((b"Set-Cookie", b"S=2; Path=/"),)
    assert made.roll(newer, older, request(), fields) is None
    assert made.roll(newer, newer, request(), fields) is not None


SHIM = [{"match": "POST {base}/login", "reply": {"json": {"s": "{placeholder}"}}}]


@pytest.mark.parametrize(
    ("kind", "body", "sent"),
    [
        (b"application/json", b'{"sid":"ph0"}', b'{"sid":"a\\"<&b"}'),
        (b"text/xml", b"<sid>ph1</sid>", b"<sid>a&quot;&lt;&amp;b</sid>"),
        (b"application/x-www-form-urlencoded", b"sid=ph0&x=1", b"sid=a%22%3C%26b&x=1"),
        (b"text/plain", b"sid ph0", b'sid a"<&b'),
        (b"application/json", b'{"sid":"other"}', None),
    ],
)
def test_a_placeholder_in_a_body_is_replaced(kind: bytes, body: bytes, sent: bytes | None) -> None:
    """By the real value as it is written in such a body; where none stands the body goes as it came."""
    made = dialect(swap=["body"], shim=SHIM)
    asked = request("POST", "/v1/x", (b"Content-Type", kind), length=len(body))
    assert made.edit is not None
    assert made.edit.looks(asked, asked.target)
    assert made.edit.edit({"session": Secret('"a\\"<&b"')}, asked, asked.target, body).body == sent


def test_a_placeholder_is_replaced_where_the_recipe_lets_it_stand() -> None:
    """In fields, cookies and the query, also as a JWT; nowhere else."""
    made = dialect(swap=["header", "cookie", "query"], shim=SHIM)
    fields = ((b"X-Any", b"Session ph0"), (b"Cookie", b"a=ph1"), (b"X-Jwt", as_jwt("ph0").encode()))
    assert made.edit is not None
    edited = made.edit.edit(VALUES, request("GET", "/v1/x", *fields), b"/v1/ph0?s=ph0", None)
    assert edited.fields == ((b"X-Any", b"Session S1"), (b"Cookie", b"a=S1"), (b"X-Jwt", b"S1"))
    assert edited.target == b"/v1/ph0?s=S1"
    plain = dialect(shim=SHIM).edit
    assert plain is not None
    assert plain.edit(VALUES, request("GET", "/v1/x", *fields), b"/v1/x?s=ph0", None).target == b"/v1/x?s=ph0"
    assert dialect().edit is None


@pytest.mark.parametrize("url", [f"{BASE}/login", f"{BASE}/data", "https://other.example.com/v1/login"])
def test_a_login_is_known_by_its_url(url: str) -> None:
    """And what the recipe excepts is none."""
    made = dialect(
        shim=[{"match": {"method": "POST", "path": "{base}/*", "not": {"path": "{base}/data"}}, "reply": {}}]
    )
    assert made.shim is not None
    assert bool(made.shim(request("POST"), url)) is (url == f"{BASE}/login")
    assert made.shim(request("GET"), url) == ()


def test_a_login_may_be_known_by_its_body_alone() -> None:
    """Then the body decides, whatever it is coded in."""
    import gzip

    made = dialect(
        shim=[{"match": {"path": "{base}/soap", "body": "<login"}, "reply": {"type": "text/xml", "text": "<ok/>"}}]
    )
    assert made.shim is not None
    (local,) = made.shim(request("POST", "/v1/soap", (b"Content-Encoding", b"gzip")), f"{BASE}/soap")
    assert local.matches is not None
    assert local.matches(gzip.compress(b"<login/>"))
    assert not local.matches(gzip.compress(b"<query/>"))
    assert local.obtains is False
    reply = local.reply({}, "x", b"")
    assert (reply.status, dict(reply.fields)[b"Content-Type"], reply.body) == (200, b"text/xml", b"<ok/>")


def test_a_login_is_answered_with_what_the_script_may_know() -> None:
    """The placeholder, what was extracted, the script's own words, where it sees the base; never a secret."""
    reply = {
        "status": 201,
        "headers": {"Location": "{self}/home", "X-Secret": "{password}"},
        "cookies": {"J": "{placeholder}"},
        "json": {
            "s": "{placeholder}",
            "real": "{session}",
            "said": "{request:/w}",
            "none": "{request:/x}",
            "p": "{password}",
        },
    }
    made = dialect(shim=[{"match": "POST {base}/login", "reply": reply}])
    assert made.shim is not None
    (local,) = made.shim(request("POST"), f"{BASE}/login")
    assert local.obtains
    told = local.reply(VALUES, "http://127.0.0.1:8090", b'{"w":7}')
    assert json.loads(told.body) == {"s": "ph0", "real": "S1", "said": 7}
    fields = dict(told.fields)
    assert (told.status, fields[b"Location"], fields[b"Set-Cookie"]) == (
        201,
        b"http://127.0.0.1:8090/home",
        b"J=ph0; Path=/",
    )
    assert PASSWORD.encode() not in told.body + b"".join(fields.values())


def test_logins_elsewhere_lend_their_origin() -> None:
    """That of the base URL is no other one."""
    made = dialect(shim=[*SHIM, {"match": "POST https://sso.example.com:8443/token", "reply": {}}])
    assert [(origin.host, origin.port) for origin in made.lends] == [("sso.example.com", 8443)]
    oauth = shipped("arena-oauth", client_id="c", client_secret=SecretReference(value="x"), workspace_id=1)
    assert [origin.host for origin in oauth.lends] == ["oauth.bom.com"]


def test_some_targets_carry_no_credential() -> None:
    """Tickets are credentials of their own."""
    made = shipped("teamcenter", user="u", password=SecretReference(value="x"))
    assert made.excludes is not None
    assert made.excludes(b"/fms/fmsdownload/a.bin?ticket=1")
    assert not made.excludes(b"/fms/fmsupload")


def test_reads_that_are_posts_may_be_repeated() -> None:
    """By their names; writes may not, and a recipe can forbid what its method would allow."""
    made = shipped("teamcenter", user="u", password=SecretReference(value="x"))
    assert made.repeats is not None
    service = "/v1/tc/JsonRestServices/Core-2006-03-DataManagement/"
    assert made.repeats(request("POST", service + "getProperties"), None) is True
    assert made.repeats(request("POST", service + "createItems"), None) is None
    never = dialect(retry={"never": {"path": "{base}/once"}})
    assert never.repeats is not None
    assert never.repeats(request("PUT", "/v1/once"), None) is False


@pytest.mark.parametrize(
    ("aml", "repeats"),
    [
        ('<Item type="Part" action="get"/>', True),
        ("<AML><Item action='get'/><Item action = 'get' id='1'/></AML>", True),
        ('<AML><Item action="get"/><Item action="add"/></AML>', None),
        ('<Item action="getAndLock"/>', None),
        ('<Item action="PE_gets"/>', None),
        ("<Item/>", None),
    ],
)
def test_aml_that_only_gets_may_be_repeated(aml: str, repeats: bool | None) -> None:
    """Not where another action stands beside it, nor what was not looked at."""
    made = shipped("aras", username="svc")
    assert made.repeats is not None
    asked = request("POST", "/v1/Server/InnovatorServer.aspx")
    assert made.repeats(asked, aml.encode()) is repeats
    assert made.repeats(asked, None) is None


def test_a_keep_alive_is_a_request() -> None:
    """With its body; of 0 seconds it is none."""
    made = use_of(
        bound(LOGIN_STEPS, keepalive={"request": "POST {base}/ping?x=1", "json": {"p": "{password}"}, "every": "5m"})
    )
    assert made is not None
    assert (made.method, made.target, made.every) == (b"POST", b"/v1/ping?x=1", 300.0)
    assert json.loads(made.body) == {"p": PASSWORD}
    assert use_of(bound(LOGIN_STEPS, keepalive={"request": "GET {base}/ping"})) is None
    assert use_of(bound(LOGIN_STEPS)) is None


def test_a_value_with_a_line_end_is_refused() -> None:
    """It would make two fields of one."""
    with pytest.raises(ConfigurationError, match=r"upstreams\.odd\.credential\.user"):
        bound(LOGIN_STEPS, {"user": "a\r\nX-Admin: 1"})


def test_two_keys_are_two_credentials() -> None:
    """Though nothing that is no secret tells them apart."""
    keys = {"key": {"secret": True}, "header": {"default": "X-Api-Key"}}
    layer = {"send": {"headers": {"{header}": "{key}"}}}
    given = [{"key": SecretReference(value=key), "header": "X-Api-Key"} for key in ("one", "two")]
    one, two = (bound(layer, each, vars=keys).identity() for each in given)
    assert one != two


def test_teamcenter_tells_an_expiry_from_everything_else() -> None:
    """Whatever its status; a business error of the same shape is none, nor is a 401 of the file service."""
    made = shipped("teamcenter", user="u", password=SecretReference(value="x"))
    dead = b'{".QName":"http://teamcenter.com/Schemas/Soa/2006-03/Exceptions.InvalidUserException"}'
    other = b'{".QName":"http://teamcenter.com/Schemas/Soa/2006-03/Exceptions.ServiceException"}'
    service = {"method": "POST", "target": "/v1/tc/JsonRestServices/Core/x"}
    assert read(made, 200, JSON, body=dead, **service).sign is Sign.EXPIRED
    assert read(made, 500, JSON, body=dead, **service).sign is Sign.EXPIRED
    assert read(made, 200, JSON, body=other, **service).sign is Sign.FINE
    assert read(made, 200, XML, body=b"<?xml version='1.0'?><x/>", **service).sign is Sign.EXPIRED
    assert read(made, 401, target="/v1/fms/fmsupload").sign is Sign.FINE
    assert read(made, 401, **service).sign is Sign.EXPIRED
