"""Templates, pointers, matches, sources and cookies of recipes, on what vendors really send."""

import json
from typing import Any

import pytest

from sidecar.auth.recipes import jar as jars
from sidecar.auth.recipes.documents import Document, set_at
from sidecar.auth.recipes.jar import Jar, from_text, shown, taken, to_text, value_in
from sidecar.auth.recipes.matches import Message, any_of, compile_match, glob
from sidecar.auth.recipes.sources import find, number
from sidecar.auth.recipes.templates import Unset, as_jwt, render
from sidecar.policy.coding import decoded
from sidecar.policy.message import Fields
from sidecar.secret import Secret
from sidecar.settings.recipe import Match, Source
from sidecar.settings.template import Field, parse
from tests.canary import canary

VALUES = {
    "base": "https://plm.example.com/v1",
    "user": "Ann & <Bob>",
    "number": 123,
    "flag": True,
    "server": {"Version": "13"},
    "password": Secret(canary("template")),
}


def lookup(name: str) -> Any:
    if name not in VALUES:
        raise Unset
    return VALUES[name]


def nothing(_: str) -> Any:
    raise Unset


def answer(body: bytes = b"", status: int = 200, fields: Fields = (), **request: Any) -> Message:
    asked = Message(fields=(), document=Document(None), **request) if request else None
    return Message(fields=fields, document=Document(body), status=status, request=asked)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("plain", "plain"),
        ("{base}/login", "https://plm.example.com/v1/login"),
        ("{number}", 123),
        ("{flag}", True),
        ("{server}", {"Version": "13"}),
        ("v{number}", "v123"),
        ("{server}!", '{"Version":"13"}!'),
        ("{user|url}", "Ann%20%26%20%3CBob%3E"),
        ("{user|xml}", "Ann &amp; &lt;Bob&gt;"),
        ("{user|lower|url}", "ann%20%26%20%3Cbob%3E"),
        ("{number|md5}", "202cb962ac59075b964b07152d234b70"),
        ("{number|b64}", "MTIz"),
        ({"a": "{number}", "b": "{gone}", "c": ["{gone}", 1, None]}, {"a": 123, "c": [1, None]}),
        ({"{base}": 1, "{gone}": 2}, {"https://plm.example.com/v1": 1}),
        ({"inner": {"a": "{gone}"}}, {"inner": {}}),
        (7, 7),
        (None, None),
    ],
)
def test_a_template_becomes_its_value(template: Any, value: Any) -> None:
    """One that is a template alone keeps the type; what has no value takes its member with it."""
    assert render(template, lookup) == value


def test_a_template_without_a_value_is_no_empty_text() -> None:
    """Whoever needs it learns that there is none."""
    with pytest.raises(Unset):
        render("x{gone}", lookup)


@pytest.mark.parametrize("text", ["{", "}", "{a", "a}", "{a|rot13}", "{a b}", "{}", "{a{b}}", "{a|}"])
def test_what_is_no_template_is_refused(text: str) -> None:
    """A brace without a name, an unknown filter: told when the recipe is read, not at night."""
    with pytest.raises(ValueError, match=r"without its|is no name|unknown filter"):
        parse(text)


def test_a_template_is_read_into_parts() -> None:
    """Literals and fields in their order, filters too."""
    assert parse("a{b|md5}c{request:/d/0}") == ("a", Field("b", ("md5",)), "c", Field("request:/d/0"))


def test_a_placeholder_in_a_jwt_can_be_looked_into() -> None:
    """Three parts, a subject, an end that is far away."""
    from base64 import urlsafe_b64decode

    _, payload, signature = as_jwt("word").split(".")
    claims = json.loads(urlsafe_b64decode(payload + "=="))
    assert (claims["sub"], signature) == ("word", "")
    assert claims["exp"] > 4_000_000_000


ERRORS = b'{"status":400,"errors":[{"code":4083,"message":"x"},{"code":"4001"}]}'
VAULTS = b'{"vaultId":7,"vaultIds":[{"id":6,"url":"a"},{"id":7,"url":"b"}]}'


@pytest.mark.parametrize(
    ("body", "pointer", "found"),
    [
        (ERRORS, "/errors/*/code", [4083, "4001"]),
        (ERRORS, "/errors/1/code", ["4001"]),
        (ERRORS, "/errors/9/code", []),
        (ERRORS, "/status/x", []),
        (b'{".QName":"http://x/Session.LoginResponse"}', "/.QName", ["http://x/Session.LoginResponse"]),
        (VAULTS, "/vaultIds/[id=/vaultId]/url", ["b"]),
        (b'{"a/b":{"~":1}}', "/a~1b/~0", [1]),
        (b"[1,2]", "/*", [1, 2]),
        (b'"x"', "", ["x"]),
        (b"", "/a", []),
        (b"{", "/a", []),
        (b"[" * 100_000, "/0", []),
        (b"\xff\xfe", "/a", []),
    ],
)
def test_json_is_looked_into_by_pointers(body: bytes, pointer: str, found: list[Any]) -> None:
    """RFC 6901, any element, and the element that another value names; what is no JSON holds nothing."""
    assert Document(body).json(pointer) == found


SOAP = b"""<?xml version="1.0"?><e:Envelope xmlns:e="urn:e"><e:Body><e:Fault>
<faultcode>sf:INVALID_SESSION_ID</faultcode></e:Fault></e:Body></e:Envelope>"""


@pytest.mark.parametrize(
    ("body", "path", "found"),
    [
        (SOAP, ".//faultcode", ["sf:INVALID_SESSION_ID"]),
        (SOAP, "Body/Fault/faultcode", ["sf:INVALID_SESSION_ID"]),
        (SOAP, "{urn:e}Body/{urn:e}Fault/faultcode", ["sf:INVALID_SESSION_ID"]),
        (SOAP, "{urn:other}Body", []),
        (b"<r><errors><error><type>X</type></error></errors></r>", "errors/error/type", ["X"]),
        (b'<!DOCTYPE r [<!ENTITY a "b">]><r><sid>&a;</sid></r>', "sid", []),
        (b"<!DOCTYPE r><r><sid>1</sid></r>", "sid", []),
        (b"<r><sid>1</sid>", "sid", []),
        (b"", "sid", []),
    ],
)
def test_xml_is_looked_into_by_paths(body: bytes, path: str, found: list[str]) -> None:
    """Names in any namespace unless one is given; a document with a DOCTYPE is never read."""
    assert Document(body).xml(path) == found


def test_a_body_that_is_too_long_holds_nothing() -> None:
    """Whatever a vendor sends, the look is bounded."""
    assert Document(b" " * (1 << 20) + b"{}").json("") == []


def test_a_value_is_put_into_json() -> None:
    """Objects on the way are made, others are left alone."""
    document: dict[str, Any] = {"row": 1, "text": "x"}
    set_at(document, "/auth/key", "k")
    set_at(document, "/text/key", "k")
    assert document == {"row": 1, "text": "x", "auth": {"key": "k"}}


JSON = ((b"Content-Type", b"application/json; charset=utf-8"),)


@pytest.mark.parametrize(
    ("match", "message", "holds"),
    [
        ({"status": 401}, answer(status=401), True),
        ({"status": [401, 403]}, answer(status=402), False),
        ({"status": "2xx"}, answer(status=204), True),
        ({"status": "2xx"}, answer(status=302), False),
        ({"json": {"/errors/*/code": [4001, 4079]}}, answer(ERRORS), True),
        ({"json": {"/errors/*/code": 4002}}, answer(ERRORS), False),
        ({"json": {"/a": {"regex": r"InvalidUserException$"}}}, answer(b'{"a":"x.InvalidUserException"}'), True),
        ({"json": {"/a": {"regex": r"InvalidUserException$"}}}, answer(b'{"a":"x.InvalidUserExceptions"}'), False),
        ({"json": {"/a": True}}, answer(b'{"a":true}'), True),
        ({"json": {"/a": None}}, answer(b'{"a":null}'), True),
        ({"json": {"/a": "{base}/api"}}, answer(b'{"a":"https://plm.example.com/v1/api"}'), True),
        ({"json": {"/a": "{gone}"}}, answer(b'{"a":"{gone}"}'), False),
        ({"xml": {".//faultcode": {"regex": ":INVALID_SESSION_ID$"}}}, answer(SOAP), True),
        ({"type": "html"}, answer(fields=((b"content-type", b"text/HTML;charset=x"),)), True),
        ({"type": "html"}, answer(fields=JSON), False),
        (
            {"header": {"x_csrf-token": {"regex": "(?i)^required$"}}},
            answer(fields=((b"X-CSRF-Token", b"Required"),)),
            True,
        ),
        ({"location": "{base}/login*"}, answer(fields=((b"Location", b"https://plm.example.com/v1/login?x=1"),)), True),
        ({"location": "{base}/login*"}, answer(fields=((b"Location", b"https://evil.example.com/v1/login"),)), False),
        ({"status": 401, "not": {"path": "*/fms/*"}}, answer(status=401, url="https://h/awc/fms/x"), False),
        ({"status": 401, "not": {"path": "*/fms/*"}}, answer(status=401, url="https://h/tc/x"), True),
        (
            {"path": "/tc/*", "body": r"^\s*<(\?xml|ns1:ServiceData)"},
            answer(b" <?xml ?>", url="https://h/tc/a/b"),
            True,
        ),
        (
            {"path": "/tc/*", "body": r"^\s*<(\?xml|ns1:ServiceData)"},
            answer(b"<?xml ?>", url="https://h/x/tc/a"),
            False,
        ),
        ({"request": {"method": "POST"}}, answer(method="POST"), True),
        ({"request": {"method": "POST"}}, answer(), False),
        ({"method": ["POST", "PUT"]}, answer(method="GET"), False),
        ({"body": "."}, answer(), False),
    ],
)
def test_an_answer_is_matched(match: dict[str, Any], message: Message, holds: bool) -> None:
    """All keys hold, any value that is found is enough, and numbers are their texts."""
    assert compile_match(Match.model_validate(match), lookup).holds(message, lookup) is holds


def request(method: str = "POST", url: str = "https://plm.example.com/v1/login", **more: Any) -> Message:
    body = more.pop("body", b"")
    return Message(**({"fields": (), "method": method, "url": url, "document": Document(body)} | more))


@pytest.mark.parametrize(
    ("match", "message", "holds"),
    [
        ({"method": "POST", "path": "{base}/login"}, request(), True),
        ({"method": "POST", "path": "{base}/login"}, request(method="GET"), False),
        ({"method": "POST", "path": "{base}/login"}, request(url="https://plm.example.com/v2/login"), False),
        (
            {"method": "POST", "path": "{base}/login"},
            request(url="https://plm.example.com.evil.example/v1/login"),
            False,
        ),
        ({"path": "/v1/*"}, request(), True),
        (
            {"path": "{base}/*RestServices/{get,load*}/x"},
            request(url="https://plm.example.com/v1/tcRestServices/loadA/x"),
            True,
        ),
        (
            {"path": "{base}/*RestServices/{get,load*}/x"},
            request(url="https://plm.example.com/v1/tcRestServices/setA/x"),
            False,
        ),
        ({"path": "{gone}/login"}, request(), False),
        ({"query": {"action": "get_auth_params"}}, request(query="a=1&action=get_auth_params"), True),
        ({"query": {"action": "get_auth_params"}}, request(query="action=other"), False),
        ({"form": {"grant_type": "client_credentials"}}, request(body=b"grant_type=client_credentials&a=b"), True),
        ({"form": {"client_id": "1"}}, request(body=b"client_id=2"), False),
        ({"header": {"SOAPAction": {"regex": '(?i)^"?logoff'}}}, request(fields=((b"soapaction", b'"LogOff"'),)), True),
        ({"body": r"<(\w+:)?login[\s>]"}, request(body=b"<soap><urn:login xmlns='x'>"), True),
    ],
)
def test_a_request_is_matched(match: dict[str, Any], message: Message, holds: bool) -> None:
    """By method, path or URL, query, fields and what its body says."""
    assert compile_match(Match.model_validate(match), lookup).holds(message, lookup) is holds


def test_none_of_no_matches_holds() -> None:
    """What no recipe names is not so; and what needs no body says that it looks at none."""
    assert not any_of((), lookup).holds(answer(), lookup)
    assert not any_of([Match.model_validate({"status": 401})], lookup).looks
    assert any_of([Match.model_validate({"status": 401, "not": {"json": {"/a": 1}}})], lookup).looks


def test_a_pattern_that_takes_others_for_ever_takes_us_no_time() -> None:
    """Patterns meet what anybody sends: their time is linear."""
    match = Match.model_validate({"body": "(a+)+$"})
    assert not compile_match(match, lookup).holds(answer(b"a" * 100_000 + b"!"), lookup)


def test_a_glob_means_what_stands_in_it() -> None:
    """Dots and brackets of a name are no patterns, and one end is not the other's."""
    assert glob("{base}/a.b", lookup).search("https://plm.example.com/v1/a.b")
    assert not glob("{base}/a.b", lookup).search("https://plm.example.com/v1/aXb")
    assert not glob("/a", lookup).search("/a/b")
    assert not glob("/a", lookup).search("/a\n")


RESET = b"Fri, 02-May-2014 14:22:13 GMT-0700 (PDT)"
ARENA = {"header": "X-Reset", "regex": r"^(.+? GMT[+-]\d{4})", "time": "%a, %d-%b-%Y %H:%M:%S GMT%z"}


@pytest.mark.parametrize(
    ("sources", "message", "value"),
    [
        ([{"json": "/a"}, {"json": "/b"}], answer(b'{"b":"x"}'), "x"),
        ([{"json": "/a", "else": 25000}], answer(b"{}"), 25000),
        ([{"json": "/a", "else": "{base}/x"}], answer(b"{}"), "https://plm.example.com/v1/x"),
        ([{"json": "/a", "else": "{gone}"}, {"header": "b"}], answer(b"{}", fields=((b"B", b"1"),)), "1"),
        ([{"else": "fixed"}], answer(), "fixed"),
        ([{"xml": "sid"}], answer(b"<r><sid> 7 </sid></r>"), "7"),
        ([{"body": 'name="lt" value="([^"]+)"'}], answer(b'<input name="lt" value="LT-1">'), "LT-1"),
        (
            [{"header": "Sforce-Limit-Info", "regex": r"api-usage=(\d+)/"}],
            answer(fields=((b"sforce-limit-info", b"api-usage=17/15000"),)),
            "17",
        ),
        ([{"json": "/expires_in", "unit": "ms"}], answer(b'{"expires_in":14400000}'), 14400.0),
        ([{"json": "/a"}], answer(b'{"a":{"b":[1]}}'), {"b": [1]}),
        ([{"json": "/a"}], answer(b'{"a":false}'), False),
        ([ARENA], answer(fields=((b"X-Reset", RESET),)), 1399065733.0),
    ],
)
def test_a_value_is_found(sources: list[dict[str, Any]], message: Message, value: Any) -> None:
    """In order, with what stands for it where it is not; cut out, and in seconds; Arena's date is no date of HTTP."""
    assert find([Source.model_validate(source) for source in sources], message, lambda _: None, lookup) == value


@pytest.mark.parametrize(
    "fields", [(), ((b"X-Reset", b"tomorrow"),), ((b"X-Reset", b"Fri, 99-May-2014 14:22:13 GMT-0700"),)]
)
def test_a_date_that_is_none_is_not_found(fields: Fields) -> None:
    """Then nobody knows when the quota is reset."""
    assert number([Source.model_validate(ARENA)], answer(fields=fields)) is None


def test_a_cookie_is_a_source_too() -> None:
    """The newest value of its name."""
    sources = [Source.model_validate({"cookie": "XSRF-TOKEN"})]
    assert find(sources, answer(), {"XSRF-TOKEN": "x"}.get, nothing) == "x"
    with pytest.raises(Unset):
        find(sources, answer(), lambda _: None, nothing)


def after(*lines: str, jar: Jar = (), host: str = "plm.example.com", path: str = "/tc/login") -> Jar:
    return taken(jar, host, path, tuple((b"Set-Cookie", line.encode()) for line in lines))


@pytest.mark.parametrize(
    ("line", "host", "path", "secure", "sent"),
    [
        ("JSESSIONID=1; Path=/", "plm.example.com", "/x", True, "JSESSIONID=1"),
        ("JSESSIONID=1; Path=/tc", "plm.example.com", "/tc/a?b", True, "JSESSIONID=1"),
        ("JSESSIONID=1; Path=/tc", "plm.example.com", "/tcx", True, ""),
        ("JSESSIONID=1", "plm.example.com", "/tc/other", True, "JSESSIONID=1"),
        ("JSESSIONID=1", "plm.example.com", "/", True, ""),
        ("a=1; Path=/; Secure", "plm.example.com", "/", False, ""),
        ("a=1; Path=/; Domain=.example.com", "other.example.com", "/", True, "a=1"),
        ("a=1; Path=/; Domain=example.com", "example.com", "/", True, "a=1"),
        ("a=1; Path=/; Domain=evil.com", "evil.com", "/", True, ""),
        ("a=1; Path=/; Domain=com", "plm.example.com", "/", True, ""),
        ("a=1; Path=/", "other.example.com", "/", True, ""),
        ("a=x=y; Path=/; HttpOnly; SameSite=Lax", "plm.example.com", "/", True, "a=x=y"),
        ("nonsense", "plm.example.com", "/", True, ""),
        ("a=\x01; Path=/", "plm.example.com", "/", True, ""),
        (f"a={'x' * 5000}; Path=/", "plm.example.com", "/", True, ""),
    ],
)
def test_a_cookie_goes_where_a_browser_sends_it(line: str, host: str, path: str, secure: bool, sent: str) -> None:
    """Host, domain, path and Secure decide; what breaks the rules is not kept."""
    assert shown(after(line), host, path, secure=secure) == sent


@pytest.mark.parametrize(
    "end", ["Max-Age=0", "Max-Age=-1", "Expires=Thu, 01 Jan 1970 00:00:00 GMT", "expires=Thu, 01-Jan-1970 00:00:10 GMT"]
)
def test_a_server_ends_a_cookie(end: str) -> None:
    """By an age, or a date that is long past."""
    assert after("a=; Path=/; " + end, jar=after("a=1; Path=/")) == ()


@pytest.mark.parametrize("age", ["Max-Age=3600", "Expires=Thu, 01 Jan 2099 00:00:00 GMT", "Expires=soon"])
def test_another_age_ends_none(age: str) -> None:
    """When it is over the server says so."""
    assert value_in(after("a=2; Path=/; " + age, jar=after("a=1; Path=/")), "a") == "2"


def test_a_jar_is_bounded_and_is_the_same_after_a_restart() -> None:
    """A server that sets cookies for ever fills no record."""
    jar = after(*(f"c{number}=1; Path=/" for number in range(200)))
    assert len(jar) == jars._MOST
    assert from_text(to_text(jar)) == jar
    full = after(*(f"c{number}={'x' * 4000}; Path=/" for number in range(20)))
    assert len(to_text(full)) <= jars._WHOLE


def test_a_longer_path_goes_first() -> None:
    """As RFC 6265 section 5.4 has it."""
    assert shown(after("a=1; Path=/", "a=2; Path=/tc"), "plm.example.com", "/tc/x", secure=True) == "a=2; a=1"


def test_a_label_that_lies_is_survived() -> None:
    """A body that says gzip and is plain is taken as it is; one in a coding that we lack is not."""
    assert decoded(b'{"a":1}', ((b"Content-Encoding", b"gzip"),), 100) == b'{"a":1}'
    assert decoded(b"x", ((b"Content-Encoding", b"br"),), 100) is None
