"""What the presets make of spellings that no emulator has: deaths, quotas, and logins that are none."""

from typing import Any

import pytest

from sidecar.auth.dialect import Dialect
from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.dialect import recipe_dialect
from sidecar.policy.message import Request
from sidecar.policy.reading import Sign
from sidecar.policy.routing import parse_base_url
from sidecar.settings import SecretReference, Strip
from sidecar.settings.shipped import resolved
from tests.canary import canary

BASES = {"3dexperience": "https://plm.example.com/3dspace", "windchill": "https://plm.example.com/Windchill"}
JSON, XML, HTML = "application/json", "text/xml", "text/html"


def speaking(name: str, **more: str) -> tuple[Dialect, str]:
    recipe, base = resolved({"extends": name}), BASES.get(name, "https://plm.example.com")
    credential: dict[str, Any] = {}
    for key, variable in recipe.vars.items():
        if variable.secret:
            credential[key] = SecretReference(value=canary("edge"))
        elif variable.example is not None:
            credential[key] = variable.example
    bound = Bound("plm", recipe, credential | more, parse_base_url(base))
    return recipe_dialect(bound, Strip(), (canary("placeholder"),)), base


def request(method: str, target: str, kind: str = JSON) -> Request:
    fields = ((b"Host", b"plm.example.com"), (b"Content-Type", kind.encode()), (b"Accept", kind.encode()))
    return Request(
        method=method.encode(),
        scheme="https",
        host="plm.example.com",
        port=443,
        target=target.encode(),
        fields=fields,
        length=0,
    )


@pytest.mark.parametrize(
    ("name", "target", "status", "kind", "body", "sign"),
    [
        ("salesforce", "/services/async/59.0/job", 400, JSON, '{"exceptionCode":"InvalidSessionId"}', Sign.EXPIRED),
        (
            "salesforce",
            "/services/data",
            403,
            JSON,
            '[{"errorCode":"REQUEST_LIMIT_EXCEEDED","message":"TotalRequests Limit exceeded."}]',
            Sign.EXHAUSTED,
        ),
        (
            "salesforce",
            "/services/data",
            403,
            JSON,
            '[{"errorCode":"REQUEST_LIMIT_EXCEEDED","message":"ConcurrentRequests Limit exceeded."}]',
            Sign.FINE,
        ),
        ("oracle-fusion", "/items", 401, "text/plain", "Invalid token scope", Sign.FINE),
        ("oracle-fusion", "/items", 401, "text/plain", "expired", Sign.EXPIRED),
        ("3dexperience", "/3dspace/x", 403, HTML, "You must be in an authenticated session", Sign.EXPIRED),
        ("3dexperience", "/3dspace/x", 403, JSON, '{"error":"no access"}', Sign.FINE),
        ("windchill", "/Windchill/servlet/odata/PTC/", 200, HTML, "<html>log in</html>", Sign.EXPIRED),
        ("windchill", "/Windchill/other", 200, HTML, "<html>a page</html>", Sign.FINE),
    ],
)
def test_what_an_answer_says(name: str, target: str, status: int, kind: str, body: str, sign: Sign) -> None:
    """By status, media type and body."""
    dialect, _ = speaking(name)
    fields = ((b"Content-Type", kind.encode()),)
    assert dialect.read(request("GET", target), status, fields, body.encode(), 0.0).sign is sign


ENVELOPE = '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{}</s:Body></s:Envelope>'
SOAP = "/services/Soap/u/59.0"


@pytest.mark.parametrize(
    ("name", "method", "url", "kind", "body", "answered"),
    [
        ("salesforce", "POST", SOAP, XML, ENVELOPE.format("<u:login><u:username>a</u:username></u:login>"), True),
        ("salesforce", "POST", SOAP, XML, ENVELOPE.format("<n-1:login></n-1:login>"), True),
        ("salesforce", "POST", SOAP, XML, ENVELOPE.format("<create><Name><![CDATA[<login >]]></Name></create>"), False),
        (
            "salesforce",
            "POST",
            SOAP,
            XML,
            ENVELOPE.format("<create><Name><![CDATA[<logout/>]]></Name></create>"),
            False,
        ),
        ("salesforce", "POST", "/services/oauth2/token", "", "grant_type=password&username=a", True),
        ("salesforce", "POST", "/services/oauth2/token/", "", "grant_type=client_credentials", True),
        ("salesforce", "POST", "/services/oauth2/token", "", "grant_type=authorization_code&code=1", False),
        ("veeva-vault", "POST", "/api/v24.1/auth", "", "username=a", True),
        ("veeva-vault", "POST", "/api/v24.1/vobjects/x__c/auth", "", "a=b", False),
        ("veeva-vault", "DELETE", "/api/v24.1/services/items/u1/session", "", "", False),
        ("aras", "POST", "/OAUTHSERVER/connect/token", "", "grant_type=password", True),
        ("windchill", "GET", "/Windchill/servlet/odata/v6/PTC/GetCSRFToken", "", "", True),
    ],
)
def test_what_is_a_login(name: str, method: str, url: str, kind: str, body: str, answered: bool) -> None:
    """And is answered here; a write that has the word in it is none."""
    dialect, _ = speaking(name)
    assert dialect.shim is not None
    asked = request(method, url, kind or "application/x-www-form-urlencoded")
    found = dialect.shim(asked, f"https://plm.example.com{url}")
    assert any(each.matches is None or each.matches(body.encode()) for each in found) is answered


def test_a_passport_on_the_host_of_the_base_url_is_answered_too() -> None:
    """Its logins lie beside the base URL, where no route leads."""
    dialect, _ = speaking("3dexperience", passport="https://plm.example.com/3dpassport")
    assert [(each.host, each.port) for each in dialect.lends] == [("plm.example.com", 443)]


@pytest.mark.parametrize(("accept", "kind"), [("application/json, application/xml", JSON), ("application/xml", "xml")])
def test_who_accepts_json_first_gets_json(accept: str, kind: str) -> None:
    """From Veeva's login as it is answered here."""
    dialect, base = speaking("veeva-vault")
    assert dialect.shim is not None
    asked = request("DELETE", "/api/v24.1/session", accept)
    reply = dialect.shim(asked, f"{base}/api/v24.1/session")[0].reply({}, base, b"")
    assert any(kind in value.decode() for name, value in reply.fields if name == b"Content-Type")


def test_what_a_client_sent_makes_no_other_field() -> None:
    """Nor another attribute of a cookie: such a value is left out of the answer to its login."""
    recipe = resolved(
        {
            "recipe": 1,
            "id": "echo",
            "login": {},
            "shim": [
                {
                    "match": "POST {base}/login",
                    "reply": {"headers": {"X-Who": "{request:/user}"}, "cookies": {"who": "{request:/user}"}},
                }
            ],
        }
    )
    bound = Bound("plm", recipe, {}, parse_base_url("https://plm.example.com"))
    dialect = recipe_dialect(bound, Strip(), (canary("placeholder"),))
    assert dialect.shim is not None
    (local,) = dialect.shim(request("POST", "/login"), "https://plm.example.com/login")
    for sent in (r"a\r\nX-Evil: 1", r"a\nX-Evil: 1", r"a\u0000", r"\ud800"):
        assert local.reply({}, "https://plm.example.com", f'{{"user":"{sent}"}}'.encode()).fields == ()
    cut = local.reply({}, "https://plm.example.com", b'{"user":"x; Domain=evil.example"}').fields
    assert [name for name, _ in cut] == [b"X-Who"]
    fine = local.reply({}, "https://plm.example.com", b'{"user":"jane"}').fields
    assert fine == ((b"X-Who", b"jane"), (b"Set-Cookie", b"who=jane; Path=/"))
