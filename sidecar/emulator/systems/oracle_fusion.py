"""Oracle Fusion Cloud PLM as its documents show it on the wire: a JWT of the token relay, or HTTP Basic on each call.

Where they are silent: the challenge and the words of a dead token's 401.
"""

import json
from base64 import b64decode, urlsafe_b64encode
from hashlib import sha256

from aiohttp import web

from sidecar.emulator.systems.system import System, json_of

_BASE = "/fscmRestApi"
_RESOURCES = f"{_BASE}/resources/11.13.18.05/"
_LIFE = 14400.0
_PAGE = 25


class OracleFusion(System):
    """Oracle Fusion; its API is below `/fscmRestApi`."""

    preset = "oracle-fusion"
    logs_out = False

    @property
    def api_url(self) -> str:
        """The base URL of the API."""
        return self.base_url + _BASE

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: the token relay, or a resource."""
        if not self.switches.early:
            await request.read()
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        if request.path == f"{_BASE}/tokenrelay" and request.method == "GET":
            return await self._relay(scheme, shown)
        name = shown.rpartition(".")[2] if scheme == "Bearer" else ""
        if scheme == "Bearer" and not name:
            self.shown.add(shown)  # signed by nobody
        if not self.use(name or None):
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return _problem(self.switches.odd_status or 401, "Unauthorized", "Token expired", challenge)
        if not request.path.startswith(_RESOURCES):
            return _problem(404, "Not Found", "There is no such resource.")
        return self._resource(request, request.path.removeprefix(_RESOURCES), await request.read())

    async def _relay(self, scheme: str, shown: str) -> web.Response:
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return web.Response(status=self.switches.login_faults.pop(0), text="busy")
        try:
            user, _, password = b64decode(shown).decode().partition(":") if scheme == "Basic" else ("", "", "")
        except ValueError:
            user, password = "", ""
        session = self.log_in(user, password)
        if session is None:
            challenge = {"WWW-Authenticate": 'Basic realm="owsm"'}
            return web.Response(status=401, text="<h1>401</h1>", content_type="text/html", headers=challenge)
        life = int(1000 * min(_LIFE, self.switches.longest))
        token = {"principal": user, "expires_in": life, "token_type": "JWT", "access_token": _jwt(user, session)}
        return web.json_response(token)

    def _resource(self, request: web.BaseRequest, path: str, body: bytes) -> web.Response:
        match request.method, path.split("/"):
            case "GET", ["itemsV2"]:
                start = int(request.query.get("offset", "0"))
                rows = [{"ItemNumber": f"OLD{number:05d}"} for number in range(start, start + _PAGE)]
                return web.json_response({"items": rows, "count": _PAGE, "hasMore": True})
            case "POST", ["itemsV2"]:
                number = str(json_of(body).get("ItemNumber"))
                self.write(f"POST {number}")
                return web.json_response({"ItemNumber": number}, status=201)
            case "GET", ["attachments", name] if name in self.files:
                content, kind = self.files[name]
                return web.Response(body=content, content_type=kind)
            case "POST", ["attachments"]:
                given = json_of(body)
                content = b64decode(str(given.get("FileContents")))
                self.files[str(given.get("FileName"))] = content, "application/octet-stream"
                self.write(f"FILE {sha256(content).hexdigest()}")
                return web.json_response({"FileName": given.get("FileName")}, status=201)
            case _, ["productChangeOrders"]:
                # The status of a dead token, and another meaning.
                self.counters["out_of_scope"] += 1
                return _problem(401, "Unauthorized", "Invalid token scope")
        return _problem(404, "Not Found", "There is no such resource.")


def _jwt(user: str, session: str) -> str:
    """Return a JWT whose signature is the name of the session."""
    parts = ({"alg": "RS256", "typ": "JWT"}, {"prn": user, "iss": "www.oracle.com"})
    return ".".join([*(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), session])


def _problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    body = json.dumps({"title": title, "status": str(status), "detail": detail}).encode()
    fields = {"Content-Type": "application/vnd.oracle.adf.error+json"} | (headers or {})
    return web.Response(status=status, body=body, headers=fields)
