"""Salesforce's platform as its documents and clients show it: REST, SOAP and Bulk 1.0, with one session for all.

Where no document says: an access token is good as a session of SOAP and Bulk, and too many calls are told with 403.
"""

import re
from base64 import b64decode
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.system import System, SystemSwitches, json_of

_PAGE = 25
_LIMIT = 15000
_IDLE = 7200.0
_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns="urn:partner.soap.sforce.com"'
    ' xmlns:sf="urn:fault.partner.soap.sforce.com" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    "<soapenv:Body>%s</soapenv:Body></soapenv:Envelope>"
)
_DEAD = "INVALID_SESSION_ID"


class Salesforce(System):
    """An org; `instance`: the URL that a token answer names, "": its own."""

    preset = "salesforce"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        switches.idle = min(switches.idle, _IDLE)
        self.instance = ""
        self._id = 0

    @property
    def credential(self) -> dict[str, str]:
        """What `preset: salesforce` wants; the login host is another name of the same."""
        return {"client_id": self.user, "login_url": self.places["LOGIN_URL"]}

    @property
    def secrets(self) -> dict[str, str]:
        """The secret of the connected app."""
        return {"client_secret": self.password}

    @property
    def places(self) -> dict[str, str]:
        """Where scripts log in."""
        return {"LOGIN_URL": self.base_url.replace("localhost", "127.0.0.1")}

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: token, REST, SOAP or Bulk."""
        match request.path.strip("/").split("/"):
            case ["services", "oauth2", "token"]:
                return await self._token(request)
            case ["services", "oauth2", "revoke"]:
                self.counters["logouts"] += 1
                return web.Response()
            case ["services", "data", _, *path]:
                return await self._rest(request, path)
            case ["services", "Soap", *_]:
                return await self._soap((await request.read()).decode())
            case ["services", "async", _, *_]:
                return await self._bulk(request)
        return web.Response(status=404, text="Not Found")

    async def _token(self, request: web.BaseRequest) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode()))
        scheme, _, coded = request.headers.get("Authorization", "").partition(" ")
        client, _, secret = b64decode(coded).decode().partition(":") if scheme == "Basic" else ("", "", "")
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return web.Response(status=self.switches.login_faults.pop(0), text="busy")
        token = self.log_in(client or form.get("client_id", ""), secret or form.get("client_secret", ""))
        if token is None:
            told = {"error": "invalid_client", "error_description": "invalid client credentials"}
            return web.json_response(told, status=400)
        instance = self.instance or self.base_url
        more = {"instance_url": instance, "id": f"{self.base_url}/id/00D/005", "issued_at": "1700000000000"}
        return web.json_response({"access_token": token, "token_type": "Bearer"} | more)

    async def _rest(self, request: web.BaseRequest, path: list[str]) -> web.Response:
        body = await request.read() if not self.switches.early else b""
        xml = "application/xml" in request.headers.get("Accept", "")
        if not self.use(request.headers.get("Authorization", "").removeprefix("Bearer ")):
            return _error(401, _DEAD, "Session expired or invalid", xml=xml)
        if self._is_used_up():
            return _error(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.", xml=xml)
        match request.method, path:
            case "GET", ["query"]:
                rows = [{"Id": f"001{number:012d}", "Name": f"Old {number}"} for number in range(_PAGE)]
                answer = web.json_response({"totalSize": _PAGE, "done": True, "records": rows})
            case "POST", ["sobjects", kind]:
                given = json_of(body or await request.read())
                answer = self._create(str(given.get("Name", "")), kind, xml=xml)
            case _:
                answer = _error(404, "NOT_FOUND", "The requested resource does not exist", xml=xml)
        answer.headers["Sforce-Limit-Info"] = f"api-usage={self.counters['calls']}/{_LIMIT}"
        return answer

    def _create(self, name: str, kind: str, *, xml: bool) -> web.Response:
        if name.startswith("forbidden"):
            self.counters["forbidden"] += 1
            return _error(403, "INSUFFICIENT_ACCESS_OR_READONLY", "insufficient access rights on object", xml=xml)
        self.write(f"{kind} {name}")
        self._id += 1
        return web.json_response({"id": f"001{self._id:012d}", "success": True, "errors": []}, status=201)

    def _is_used_up(self) -> bool:
        if (quota := self.switches.quota) is None:
            return False
        self.switches.quota = max(0, quota - 1)
        self.counters["over_quota"] += quota <= 0
        return quota <= 0

    async def _soap(self, text: str) -> web.Response:
        if re.search(r"<(\w+:)?login[\s>]", text):
            session = self.log_in(_element(text, "username"), _element(text, "password"))
            if session is None:
                return _fault("INVALID_LOGIN", "Invalid username, password, security token; or user locked out.")
            url = f"{self.instance or self.base_url}/services/Soap/u/59.0/00D000000000000"
            user = "<organizationId>00D000000000000AAA</organizationId><sessionSecondsValid>7200</sessionSecondsValid>"
            return _soap(
                f"<loginResponse><result><metadataServerUrl>{url}</metadataServerUrl><passwordExpired>false"
                f"</passwordExpired><sandbox>false</sandbox><serverUrl>{url}</serverUrl><sessionId>{session}</sessionId>"
                f"<userId>005000000000000AAA</userId><userInfo>{user}</userInfo></result></loginResponse>"
            )
        if not self.use(session := _element(text, "sessionId")):
            return _fault(_DEAD, "Invalid Session ID found in SessionHeader: Illegal Session")
        if re.search(r"<(\w+:)?logout[\s/>]", text):
            self.counters["logouts"] += 1
            self.sessions.pop(session, None)
            return _soap("<logoutResponse/>")
        if name := _element(text, "Name"):
            self.write(f"SOAP {name}")
            self._id += 1
            made = f"<id>001{self._id:012d}</id><success>true</success>"
            return _soap(f"<createResponse><result>{made}</result></createResponse>")
        rows = "".join(f"<records><Name>Old {number}</Name></records>" for number in range(_PAGE))
        return _soap(f"<queryResponse><result><done>true</done>{rows}<size>{_PAGE}</size></result></queryResponse>")

    async def _bulk(self, request: web.BaseRequest) -> web.Response:
        text = (await request.read()).decode()
        space = 'xmlns="http://www.force.com/2009/06/asyncapi/dataload"'
        if not self.use(request.headers.get("X-SFDC-Session")):
            told = f"<error {space}><exceptionCode>InvalidSessionId</exceptionCode><exceptionMessage/></error>"
            return web.Response(status=400, text=told, content_type="application/xml")
        self._id += 1
        self.write(f"BULK {_element(text, 'externalId') or self._id}")
        told = f"<jobInfo {space}><id>750{self._id:012d}</id><state>Open</state></jobInfo>"
        return web.Response(status=201, text=told, content_type="application/xml")


def _element(text: str, name: str) -> str:
    found = re.search(rf"<(?:\w+:)?{name}(?:\s[^>]*)?>([^<]*)<", text)
    return found[1].replace("&amp;", "&") if found else ""


def _error(status: int, code: str, message: str, *, xml: bool) -> web.Response:
    if xml:
        told = f"<Errors><Error><errorCode>{code}</errorCode><message>{escape(message)}</message></Error></Errors>"
        return web.Response(status=status, text=told, content_type="application/xml")
    return web.json_response([{"message": message, "errorCode": code}], status=status)


def _soap(body: str, status: int = 200) -> web.Response:
    return web.Response(status=status, text=_ENVELOPE % body, content_type="text/xml")


def _fault(code: str, message: str) -> web.Response:
    said = f"<faultcode>sf:{code}</faultcode><faultstring>{code}: {escape(message)}</faultstring>"
    return _soap(f"<soapenv:Fault>{said}</soapenv:Fault>", 500)
