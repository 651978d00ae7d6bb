"""Aras Innovator as its documents, its own client and public ones show it: discovery, a token for OData, AML and files.

Where they are silent: the body of a 401, the members of the vault's answers, that a LogOff ends the token.
"""

import json
import re
from base64 import urlsafe_b64encode
from hashlib import md5, sha256
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.system import System, SystemSwitches, json_of

_BASE = "/InnovatorServer"
_TIMEOUT = "SOAP-ENV:Server.Authentication.SessionTimeout"
_LIFE = 3600
_PAGE = 25


class Aras(System):
    """Aras Innovator, below `/InnovatorServer`.

    `json_timeout`: OData tells of a dead token with 200 and the code of a SOAP fault. `discovers`: it has the two
    documents that lead to the token endpoint. `old`: AML takes a name and a hash in fields of their own.
    """

    preset = "aras"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        self.json_timeout = False
        self.discovers = True
        self.old = True
        self.database = "InnovatorSolutions"
        self._ids = 0

    @property
    def api_url(self) -> str:
        """The base URL."""
        return self.base_url + _BASE

    @property
    def credential(self) -> dict[str, str]:
        """What `preset: aras` wants."""
        return {"username": self.user, "database": self.database}

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: discovery, the token endpoint, OData, AML or the vault."""
        path = request.path.removeprefix(_BASE)
        body = await request.read() if not self.switches.early else b""
        match request.method, path:
            case "GET", "/Server/OAuthServerDiscovery.aspx" if self.discovers:
                self.counters["discoveries"] += 1
                return web.json_response({"locations": [{"uri": f"{self.api_url}/OAuthServer/"}]})
            case "GET", "/OAuthServer/.well-known/openid-configuration" if self.discovers:
                info = {"authorization_header": "Authorization", "unauthorized_status_code": 401}
                endpoint = f"{self.api_url}/OAuthServer/connect/token"
                return web.json_response({"token_endpoint": endpoint, "protocol_info": info})
            case "POST", "/OAuthServer/connect/token":
                return await self._token(await request.read())
        session = self._session(request)
        if path == "/Server/InnovatorServer.aspx" and request.method == "POST":
            return self._aml(request, (body or await request.read()).decode(), session)
        if session is None:
            if self.json_timeout:
                return web.json_response({"error": {"code": _TIMEOUT, "message": "Session has expired"}})
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            status = self.switches.odd_status or 401
            return web.json_response(
                {"error": {"code": "401", "message": "Unauthorized"}}, status=status, headers=challenge
            )
        body = body or await request.read()
        if path.startswith("/vault/odata/"):
            return self._vault(request, path.removeprefix("/vault/odata/"), body)
        return self._odata(request, unquote(path.removeprefix("/Server/odata/")), body)

    def _session(self, request: web.BaseRequest) -> str | None:
        """Return the name of the live session that *request* shows, None without one."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        name = token.rpartition(".")[2]
        if token and not name:
            self.shown.add(token)  # signed by nobody
        return name if self.use(name or None) else None

    async def _token(self, body: bytes) -> web.Response:
        given = dict(parse_qsl(body.decode()))
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return web.Response(status=self.switches.login_faults.pop(0), text="busy")
        right = self._hash(self.password)
        if given.get("password") != right:
            self.shown.add(str(given.get("password")))
        fine = given.get("grant_type") == "password" and given.get("client_id") == "IOMApp"
        fine = fine and given.get("database") == self.database and given.get("password") == right
        session = self.log_in(str(given.get("username")), self.password) if fine else None
        if session is None:
            self.counters["refused_logins"] += not fine
            refusal = {"error": "invalid_grant", "error_description": "Authentication failed"}
            return web.json_response(refusal, status=400)
        life = min(_LIFE, self.switches.longest)
        return web.json_response({"access_token": _jwt(self.user, session), "token_type": "Bearer", "expires_in": life})

    def _hash(self, password: str) -> str:
        return md5(password.encode(), usedforsecurity=False).hexdigest()

    def _odata(self, request: web.BaseRequest, path: str, body: bytes) -> web.Response:
        match request.method, path:
            case "GET", "Part":
                start = int(request.query.get("$skip", "0"))
                rows = [{"item_number": f"OLD{number:05d}"} for number in range(start, start + _PAGE)]
                return web.json_response({"value": rows})
            case "POST", "Part":
                number = str(json_of(body).get("item_number"))
                if number.startswith("locked"):
                    fault = {"code": "SOAP-ENV:Server.Authentication.ItemIsLocked", "message": "The item is locked."}
                    return web.json_response({"error": fault}, status=400)
                return web.json_response({"id": self._made(number), "item_number": number}, status=201)
            case "GET", _ if path.startswith("File(") and path.partition("/")[0] in self.files:
                content, kind = self.files[path.partition("/")[0]]
                return web.Response(body=content, content_type=kind)
        return web.json_response({"error": {"code": "404", "message": "Not found"}}, status=404)

    def _aml(self, request: web.BaseRequest, text: str, session: str | None) -> web.Response:
        hashed = request.headers.get("AUTHPASSWORD")
        if hashed and hashed != self._hash(self.password):
            self.shown.add(hashed)
        self.counters["databases"] += request.headers.get("DATABASE") == self.database
        alone = self.old and (request.headers.get("AUTHUSER"), hashed) == (self.user, self._hash(self.password))
        if session is None and not alone:
            return _fault(_TIMEOUT, "Your session has expired.", self.switches.odd_status or 200)
        if request.headers.get("SOAPAction", "").strip('"').lower() == "logoff":
            self.counters["logouts"] += 1
            self.sessions.pop(session or "", None)
            return _soap("<Result/>")
        self.counters["aml_alone"] += session is None
        number = re.search(r"<item_number>([^<]*)</item_number>", text)
        if 'action="add"' in text and number:
            return _soap(f'<Result><Item type="Part" id="{self._made(number[1])}"/></Result>')
        if 'action="get"' in text and number:
            return _fault("0", f"No items of type Part found with {number[1]}.", 200)
        rows = "".join(f'<Item type="Part"><item_number>OLD{each:05d}</item_number></Item>' for each in range(_PAGE))
        return _soap(f"<Result>{rows}</Result>")

    def _made(self, number: str) -> str:
        self.write(f"POST {number}")
        self._ids += 1
        return f"{self._ids:032X}"

    def _vault(self, request: web.BaseRequest, action: str, body: bytes) -> web.Response:
        match request.method, action:
            case "POST", "vault.BeginTransaction":
                return web.json_response({"transactionId": "T1"})
            case "POST", "vault.UploadFile" if request.headers.get("transactionid"):
                self.files[f"File('{request.query.get('fileId')}')"] = body, "application/octet-stream"
                return web.json_response({})
            case "POST", "vault.CommitTransaction" if request.headers.get("transactionid"):
                self.write(f"FILE {sha256(body).hexdigest()}")
                return web.json_response({})
        return web.json_response({"error": {"code": "400", "message": "No transaction"}}, status=400)


def _jwt(user: str, session: str) -> str:
    """Return a JWT whose signature is the name of the session."""
    parts = ({"alg": "RS256", "typ": "JWT"}, {"username": user, "database": "InnovatorSolutions"})
    return ".".join([*(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), session])


def _soap(inside: str, status: int = 200) -> web.Response:
    space = 'xmlns:SOAP-ENV="http://schemas.xmlsoap.org/soap/envelope/"'
    text = f"<SOAP-ENV:Envelope {space}><SOAP-ENV:Body>{inside}</SOAP-ENV:Body></SOAP-ENV:Envelope>"
    return web.Response(text=text, content_type="text/xml", status=status)


def _fault(code: str, message: str, status: int) -> web.Response:
    inside = f"<faultcode>{code}</faultcode><faultstring>{escape(message)}</faultstring>"
    return _soap(f"<SOAP-ENV:Fault>{inside}</SOAP-ENV:Fault>", status)
