"""Arena PLM and QMS as its documents show it on the wire: REST v1, one session for each user, a daily quota.

Where they are silent: a login that is refused for a lock has status 400, and the quota header counts down to 0.
"""

from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.system import System, SystemSwitches, json_of

_PREFIX = "/v1"
_LOCK = 300.0
_WRONG = 5
_PAGE = 20
_RESET = 3600.0
_PACIFIC = timezone(timedelta(hours=-7), "PDT")
_ITEMS = 120
_WORKSPACE = 898
_LIMIT = 25000
_TOKEN = 5399.0


class Arena(System):
    """Arena; its API is below `/v1`, its token endpoint for machine users at `/oauth2/token`."""

    preset = "arena"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        switches.per_user = True
        self._guid = 0

    @property
    def api_url(self) -> str:
        """The base URL of the API."""
        return self.base_url + _PREFIX

    @property
    def credential(self) -> dict[str, str]:
        """What `preset: arena` wants."""
        return {"email": self.user}

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: the login, the token endpoint, or the API."""
        path = request.path
        if path == "/oauth2/token" and request.method == "POST":
            return await self._token(request)
        if not path.startswith(_PREFIX + "/"):
            return _error(404, 404, "The requested URI does not exist.")
        path = path.removeprefix(_PREFIX)
        if path == "/login" and request.method == "POST":
            return await self._login(request)
        session = request.headers.get("arena_session_id")
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.use(session or bearer):
            if not self.switches.early:
                await request.read()
            return self._dressed(_error(self.switches.odd_status or 401, 401, "You are not authorized."), request)
        if path == "/logout":
            self.counters["logouts"] += 1
            self.sessions.pop(session or "", None)
            return self._dressed(web.Response(), request)
        if (quota := self.switches.quota) is not None:
            if quota <= 0:
                self.counters["over_quota"] += 1
                return self._dressed(_error(429, 4084, "You have exceeded your maximum of requests."), request)
            self.switches.quota = quota - 1
        return self._dressed(await self._api(request, path), request)

    async def _login(self, request: web.BaseRequest) -> web.Response:
        given = json_of(await request.read())
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return _error(self.switches.login_faults.pop(0), 503, "The service is not available.")
        now = self.clock.monotonic()
        if now < self.locked_until:
            return _error(400, 4083, "Too many invalid attempts; the account is disabled for five minutes.")
        session = self.log_in(str(given.get("email")), str(given.get("password")))
        if session is None:
            if self.wrong[str(given.get("email"))] >= _WRONG:
                self.locked_until = now + _LOCK
            return _error(400, 4001, "The email, password or workspace is wrong.")
        answer = {
            "arenaSessionId": session,
            "workspaceId": given.get("workspaceId") or _WORKSPACE,
            "workspaceName": "Plant",
            "workspaceRequestLimit": _LIMIT,
        }
        return web.json_response(
            answer, headers={"Set-Cookie": f"arena_session_id={session}; Path=/; Secure; HttpOnly"}
        )

    async def _token(self, request: web.BaseRequest) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode()))
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return web.json_response({"error": "server_error"}, status=self.switches.login_faults.pop(0))
        token = self.log_in(form.get("client_id", ""), form.get("client_secret", ""))
        if token is None or not form.get("workspace_id"):
            return web.json_response({"error": "invalid_client"}, status=401)
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": int(_TOKEN)})

    async def _api(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        body = await request.read()
        match request.method, path.strip("/").split("/"):
            case "GET", ["items"]:
                return _page(request)
            case "POST", ["items"]:
                return self._create(json_of(body))
            case "PUT", ["items", guid]:
                self.write(f"PUT {guid} {json_of(body).get('number')}")
                return web.json_response({"guid": guid})
            case "PUT", ["items", _, "lifecycle"]:
                # The code that a login has for a wrong password, and another meaning.
                return _error(400, 4001, "Item lifecycle phase has been changed.")
            case "POST", ["files"]:
                return await self._upload(request, body)
            case "GET", ["files", guid, "content"] if guid in self.files:
                content, kind = self.files[guid]
                return web.Response(body=content, content_type=kind)
        return _error(404, 404, "The requested URI does not exist.")

    def _create(self, item: dict[str, Any]) -> web.Response:
        number = str(item.get("number"))
        if self.rows[f"POST {number}"]:
            self.write(f"POST {number}")
            return _error(409, 4009, "The item number is in use.")
        self.write(f"POST {number}")
        self._guid += 1
        return web.json_response({"guid": f"GUID{self._guid:06d}", "number": number}, status=201)

    async def _upload(self, request: web.BaseRequest, body: bytes) -> web.Response:
        boundary = request.headers.get("Content-Type", "").partition("boundary=")[2].strip('"').encode()
        part = next((each for each in body.split(b"--" + boundary) if b"filename=" in each), b"")
        content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        self._guid += 1
        guid = f"FILE{self._guid:06d}"
        self.files[guid] = content, "application/octet-stream"
        self.write(f"FILE {sha256(content).hexdigest()}")
        return web.Response(status=201, headers={"X-Arena-FileGuid": guid})

    def _dressed(self, answer: web.StreamResponse, request: web.BaseRequest) -> web.StreamResponse:
        """Add what every answer has: what is left of the quota, and when it is reset, in Arena's own form of a date."""
        left = _LIMIT if self.switches.quota is None else self.switches.quota
        reset = datetime.fromtimestamp(self.clock.now() + _RESET, _PACIFIC)
        answer.headers["X-Arena-Requests-Remaining"] = str(left)
        written = f"{reset:%a, %d-%b-%Y %H:%M:%S} GMT{reset:%z} ({reset:%Z})"
        answer.headers["X-Arena-Next-Request-Limit-Reset"] = written
        if isinstance(answer, web.Response) and answer.body and "gzip" in request.headers.get("Accept-Encoding", ""):
            answer.enable_compression(web.ContentCoding.gzip)
        return answer


class ArenaTokens(Arena):
    """Arena as a machine user sees it: tokens of OAuth, of which several may live."""

    preset = "arena-oauth"
    logs_out = False

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        switches.per_user = False
        switches.longest = min(switches.longest, _TOKEN)

    @property
    def credential(self) -> dict[str, str]:
        """What `preset: arena-oauth` wants."""
        return {"client_id": self.user, "workspace_id": str(_WORKSPACE), "token_url": self.places["TOKEN_URL"]}

    @property
    def secrets(self) -> dict[str, str]:
        """The secret of the client."""
        return {"client_secret": self.password}

    @property
    def places(self) -> dict[str, str]:
        """The token endpoint, which is another origin than the API."""
        return {"TOKEN_URL": self.base_url.replace("localhost", "127.0.0.1") + "/oauth2/token"}


def _page(request: web.BaseRequest) -> web.Response:
    offset, limit = (int(request.query.get(name, given)) for name, given in (("offset", "0"), ("limit", str(_PAGE))))
    found = [
        {"guid": f"OLD{number:05d}", "number": f"P-{number:05d}"}
        for number in range(offset, min(_ITEMS, offset + limit))
    ]
    return web.json_response({"count": len(found), "total": _ITEMS, "results": found})


def _error(status: int, code: int, message: str) -> web.Response:
    return web.json_response({"status": status, "errors": [{"code": code, "message": message}]}, status=status)
