"""Session systems as plants have them: a death with 200, a captcha after wrong logins, a session in a SOAP header."""

import asyncio
import json
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import httpx
import zeep
from aiohttp import web
from lxml import etree

from tests.integration.test_recipes import THEIRS, Vendor, client, served, settings
from tests.rig import sidecar

JSON_RPC = r"""
recipe: 1
id: jsonrpc
vars: {user: {}, password: {secret: true}}
login:
  steps:
  - request: POST {base}/web/session/authenticate
    json: {jsonrpc: "2.0", method: call, params: {db: plant, login: "{user}", password: "{password}"}}
    ok: {json: {/result/uid: {regex: '^\d+$'}}}
    get: {uid: {json: /result/uid}}
    fatal: {json: {/error/data/name: odoo.exceptions.AccessDenied}}
  send: {cookies: jar}
  dead: {json: {/error/code: 100, /error/data/name: odoo.http.SessionExpiredException}}
shim:
- match: POST {base}/web/session/authenticate
  reply: {json: {jsonrpc: "2.0", id: "{request:/id}", result: {uid: "{uid}"}}, cookies: {session_id: "{placeholder}"}}
- match: POST {base}/web/session/destroy
  reply: {json: {jsonrpc: "2.0", result: null}}
"""

REST = """
recipe: 1
id: rest
vars: {user: {}, password: {secret: true}}
login:
  steps:
  - request: POST {base}/rest/auth/1/session
    json: {username: "{user}", password: "{password}"}
    ok: {status: 200, json: {/session/value: {regex: .}}}
    fatal:
    - {status: 403, header: {X-Authentication-Denied-Reason: {regex: CAPTCHA_CHALLENGE}}}
    - {status: 401}
  send: {cookies: jar}
shim:
- match: POST {base}/rest/auth/1/session
  reply: {json: {session: {name: JSESSIONID, value: "{placeholder}"}}, cookies: {JSESSIONID: "{placeholder}"}}
- match: DELETE {base}/rest/auth/1/session
  reply: {status: 204}
"""

SOAP = r"""
recipe: 1
id: soap
vars: {user: {}, password: {secret: true}}
login:
  steps:
  - request: POST {base}/ws/services/SessionWebService
    headers: {Content-Type: text/xml, SOAPAction: '""'}
    text: >-
      <s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><logIn xmlns="urn:session">
      <userName>{user|xml}</userName><password>{password|xml}</password></logIn></s:Body></s:Envelope>
    get: {session: {xml: "Header/{http://ws.polarion.com/session}sessionID"}}
    ok: {xml: {"Header/{http://ws.polarion.com/session}sessionID": {regex: .}}}
    fatal: {status: 500, xml: {.//faultstring: {regex: Authentication failed}}}
  send: {cookies: jar}
  dead: {status: 500, xml: {.//faultstring: {regex: Not authorized}}}
shim:
- match: {method: POST, path: "{base}/ws/services/SessionWebService", body: '<(\w+:)?logIn[ />]'}
  reply:
    type: text/xml
    cookies: {JSESSIONID: "{placeholder}"}
    text: >-
      <s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Header><ns:sessionID
      xmlns:ns="http://ws.polarion.com/session">{placeholder}</ns:sessionID></s:Header><s:Body><logInResponse
      xmlns="urn:session"/></s:Body></s:Envelope>
swap: [body]
"""


def cookie_of(request: web.BaseRequest) -> str:
    return request.cookies.get("session_id") or request.cookies.get("JSESSIONID") or ""


async def json_rpc(vendor: Vendor, request: web.BaseRequest) -> web.Response:
    """Change the id of the session once after the login, as a rotation does, and tell every error with 200."""
    given = json.loads(await request.read())
    params = given.get("params", {})
    vendor.words += [cookie_of(request)]

    def told(**answer: Any) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": given.get("id"), **answer})

    def error(code: int, name: str) -> web.Response:
        return told(error={"code": code, "message": "Odoo Server Error", "data": {"name": name}})

    if request.path == "/web/session/authenticate":
        session = vendor.log_in(params["login"], params["password"])
        if session is None:
            return error(200, "odoo.exceptions.AccessDenied")
        answer = told(result={"uid": 7})
        answer.headers["Set-Cookie"] = f"session_id={session}; Path=/; HttpOnly"
        return answer
    session = cookie_of(request)
    if session not in vendor.alive:
        return error(100, "odoo.http.SessionExpiredException")
    if params.get("args") == ["wrong"]:
        return error(200, "odoo.exceptions.ValidationError")
    vendor.seen["write"] += 1
    vendor.bodies.append(json.dumps(params["args"]).encode())
    answer = told(result=vendor.seen["write"])
    if not session.endswith("-rotated"):
        vendor.alive = {f"{session}-rotated"}
        answer.headers["Set-Cookie"] = f"session_id={session}-rotated; Path=/; HttpOnly"
    return answer


async def rest(vendor: Vendor, request: web.BaseRequest) -> web.Response:
    """Want a captcha after three wrong logins, whatever the password."""
    if request.path == "/rest/auth/1/session":
        given = json.loads(await request.read())
        session = vendor.log_in(given["username"], given["password"])
        if vendor.forbids:
            reason = "CAPTCHA_CHALLENGE; login-url=https://jira.example.com/login.jsp"
            return web.json_response({}, status=403, headers={"X-Authentication-Denied-Reason": reason})
        if session is None:
            return web.json_response({"errorMessages": ["Login failed"]}, status=401)
        answer = web.json_response({"session": {"name": "JSESSIONID", "value": session}})
        answer.headers["Set-Cookie"] = f"JSESSIONID={session}; Path=/; HttpOnly"
        return answer
    body = await request.read()
    vendor.words += [cookie_of(request), *request.headers.values()]
    if cookie_of(request) not in vendor.alive:
        return web.json_response({"errorMessages": ["You are not authenticated"]}, status=401)
    vendor.seen[request.method] += 1
    vendor.bodies.append(body)
    return web.json_response({"id": vendor.seen[request.method]}, status=201)


WSDL = """<?xml version="1.0"?>
<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/"
 xmlns:t="urn:session" xmlns:x="http://www.w3.org/2001/XMLSchema" targetNamespace="urn:session">
<types><x:schema targetNamespace="urn:session" elementFormDefault="qualified">
<x:element name="logIn"><x:complexType><x:sequence><x:element name="userName" type="x:string"/>
<x:element name="password" type="x:string"/></x:sequence></x:complexType></x:element>
<x:element name="logInResponse"><x:complexType/></x:element>
<x:element name="create"><x:complexType><x:sequence><x:element name="title" type="x:string"/>
</x:sequence></x:complexType></x:element>
<x:element name="createResponse"><x:complexType><x:sequence><x:element name="uri" type="x:string"/>
</x:sequence></x:complexType></x:element></x:schema></types>
<message name="i1"><part name="p" element="t:logIn"/></message>
<message name="o1"><part name="p" element="t:logInResponse"/></message>
<message name="i2"><part name="p" element="t:create"/></message>
<message name="o2"><part name="p" element="t:createResponse"/></message>
<portType name="P"><operation name="logIn"><input message="t:i1"/><output message="t:o1"/></operation>
<operation name="create"><input message="t:i2"/><output message="t:o2"/></operation></portType>
<binding name="B" type="t:P"><soap:binding transport="http://schemas.xmlsoap.org/soap/http"/>
<operation name="logIn"><soap:operation soapAction=""/>
<input><soap:body use="literal"/></input><output><soap:body use="literal"/></output></operation>
<operation name="create"><soap:operation soapAction=""/>
<input><soap:body use="literal"/></input><output><soap:body use="literal"/></output></operation>
</binding><service name="S"><port name="Q" binding="t:B">
<soap:address location="URL/ws/services/SessionWebService"/></port></service></definitions>"""
ENVELOPE = '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">{}<s:Body>{}</s:Body></s:Envelope>'
HEADER = "{http://ws.polarion.com/session}sessionID"


async def soap(vendor: Vendor, request: web.BaseRequest) -> web.Response:
    """Want the session in the header of the envelope and its own cookie, both."""

    def told(body: str, header: str = "", status: int = 200) -> web.Response:
        return web.Response(text=ENVELOPE.format(header, body), content_type="text/xml", status=status)

    def fault(words: str) -> web.Response:
        code = "<faultcode>s:Server</faultcode>"
        return told(f"<s:Fault>{code}<faultstring>{words}</faultstring></s:Fault>", status=500)

    body = await request.read()
    root = etree.fromstring(body)
    login = root.find(".//{urn:session}logIn")
    if login is not None:
        session = vendor.log_in(login.findtext("{*}userName"), login.findtext("{*}password"))
        if session is None:
            return fault("Authentication failed")
        shown = f'<s:Header><n:sessionID xmlns:n="http://ws.polarion.com/session">{session}</n:sessionID></s:Header>'
        answer = told('<logInResponse xmlns="urn:session"/>', shown)
        answer.headers["Set-Cookie"] = f"JSESSIONID=c-{session}; Path=/; HttpOnly"
        return answer
    session = root.findtext(f".//{HEADER}") or ""
    vendor.words += [session, cookie_of(request)]
    if session not in vendor.alive or cookie_of(request) != f"c-{session}":
        return fault("Not authorized.")
    vendor.seen["create"] += 1
    title = root.findtext(".//{urn:session}title") or ""
    vendor.bodies.append(title.encode())
    return told(f'<createResponse xmlns="urn:session"><uri>wi-{title}</uri></createResponse>')


async def test_json_rpc_dies_with_200_and_its_id_rotates(tmp_path: Path) -> None:
    """Three deaths cost three logins; a business error with the same shape is the script's, and costs none."""
    async with (
        served(json_rpc) as vendor,
        sidecar(settings(vendor, JSON_RPC, tmp_path)) as rig,
        client(rig, "proxy", vendor) as at,
    ):

        async def call(path: str, number: int, **params: Any) -> Any:
            given = {"jsonrpc": "2.0", "method": "call", "id": number, "params": params}
            return (await at.post(path, json=given)).json()

        told = await call("/web/session/authenticate", 1, db="plant", login=THEIRS["user"], password=THEIRS["password"])
        assert told == {"jsonrpc": "2.0", "id": 1, "result": {"uid": 7}}
        for number in range(12):
            if number % 4 == 2:
                vendor.kill()
            told = await call("/web/dataset/call_kw", number, model="res.partner", method="create", args=[number])
            assert told == {"jsonrpc": "2.0", "id": number, "result": number + 1}
        told = await call("/web/dataset/call_kw", 99, args=["wrong"])
        assert told["error"]["data"]["name"] == "odoo.exceptions.ValidationError"
        assert (await call("/web/session/destroy", 100))["result"] is None
        assert vendor.seen == {"login": 4, "write": 12}
        assert vendor.bodies == [b"[%d]" % number for number in range(12)]
        assert THEIRS["password"] not in vendor.words


PERL = r"""
use strict; use warnings; use LWP::UserAgent; use HTTP::Request::Common;
my ($base, $password, $first, $last) = @ARGV;
my $client = LWP::UserAgent->new(cookie_jar => {}, env_proxy => 1);
my @json = ("Content-Type" => "application/json");
my $given = qq({"username":"script","password":"$password"});
my $login = $client->request(POST "$base/rest/auth/1/session", @json, Content => $given);
my @said = ($login->code);
push @said, $client->request(POST "$base/rest/api/2/issue", @json, Content => qq({"n":$_}))->code for $first .. $last;
push @said, $client->request(HTTP::Request->new(DELETE => "$base/rest/auth/1/session"))->code;
print "@said\n";
"""


async def perl(vendor: Vendor, proxy: str, first: int, last: int) -> list[int]:
    script = await asyncio.create_subprocess_exec(
        *("perl", "-e", PERL, vendor.url, THEIRS["password"], str(first), str(last)),
        env={"PATH": "/usr/bin:/bin", "http_proxy": proxy},
        stdout=PIPE,
    )
    out, _ = await script.communicate()
    return [int(word) for word in out.split()]


async def test_rest_cookies_die_under_lwp(tmp_path: Path) -> None:
    """Each of three runs meets a dead session; every write is done once, and no logout ends the session of others."""
    async with served(rest) as vendor, sidecar(settings(vendor, REST, tmp_path)) as rig:
        for run in range(3):
            vendor.kill()
            said = await perl(vendor, f"http://127.0.0.1:{rig.port('proxy')}", 5 * run, 5 * run + 4)
            assert said == [200, 201, 201, 201, 201, 201, 204]
        assert vendor.seen["login"] <= 4
        assert vendor.bodies == [b'{"n":%d}' % number for number in range(15)]
        assert THEIRS["password"] not in vendor.words


async def test_a_captcha_is_met_with_one_login(tmp_path: Path) -> None:
    """More of them would lock the account for longer; the script and the status page say what is the matter."""
    async with served(rest) as vendor:
        vendor.forbids = True
        async with sidecar(settings(vendor, REST, tmp_path)) as rig, client(rig, "proxy", vendor) as at:
            for _ in range(3):
                answer = await at.post("/rest/auth/1/session", json={"username": "x", "password": "y"})
                assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
                answer = await at.get("/rest/api/2/issue")
                assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
            assert vendor.seen == {"login": 1}
            async with httpx.AsyncClient(trust_env=False) as operator:
                page = (await operator.get(f"http://127.0.0.1:{rig.port('admin')}/status")).json()
            assert [finding["id"] for finding in page["findings"]] == ["credential_rejected"]
            assert "403" in json.dumps(page)


def zeep_night(url: str, proxy: str, folder: Path, kill: Any) -> list[str]:
    wsdl = folder / "service.wsdl"
    wsdl.write_text(WSDL.replace("URL", url))
    at = zeep.Client(str(wsdl))
    at.transport.session.trust_env = False
    at.transport.session.proxies = {"http": proxy}
    with at.settings(raw_response=True):
        root = etree.fromstring(at.service.logIn("script", THEIRS["password"]).content)
    shown = etree.Element(HEADER)
    shown.text = root.findtext(f".//{HEADER}")
    made = []
    for number in range(12):
        if number % 4 == 2:
            kill()
        made.append(at.service.create(f"t{number}", _soapheaders=[shown]))
    return made


async def test_a_session_in_a_soap_header_and_a_cookie_dies(tmp_path: Path) -> None:
    """zeep shows what it was given, and the vendor gets header and cookie of one session, over three deaths."""
    async with served(soap) as vendor, sidecar(settings(vendor, SOAP, tmp_path)) as rig:
        proxy = f"http://127.0.0.1:{rig.port('proxy')}"
        made = await asyncio.to_thread(zeep_night, vendor.url, proxy, tmp_path, vendor.kill)
        assert made == [f"wi-t{number}" for number in range(12)]
        assert vendor.seen == {"login": 4, "create": 12}
        assert THEIRS["password"] not in vendor.words
