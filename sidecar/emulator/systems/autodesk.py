"""Autodesk Platform Services and Fusion Manage, two legs, as Autodesk's documents show them.

Where they are silent: a dead token is told with 401 and an error code, and a token lives 3599 seconds.
"""

from base64 import b64decode
from urllib.parse import parse_qsl

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.system import System, SystemSwitches, json_of

_PAGE = 25
_LIFE = 3599.0
_TOKEN = "/authentication/v2/token"  # noqa: S105  a path


class Autodesk(System):
    """Autodesk; `busy`: how many calls are answered with 429 before others are, `wait`: what they say, in seconds."""

    preset = "autodesk"
    logs_out = False

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        switches.longest = min(switches.longest, _LIFE)
        self.busy = 0
        self.wait = 1
        self.users: set[str] = set()
        self._id = 0

    @property
    def credential(self) -> dict[str, str]:
        """What `preset: autodesk` wants; tokens come from another host than the tenant's."""
        return {"client_id": self.user, "token_url": self.places["TOKEN_URL"], "user_id": "svc@plant.example"}

    @property
    def secrets(self) -> dict[str, str]:
        """The secret of the app."""
        return {"client_secret": self.password}

    @property
    def places(self) -> dict[str, str]:
        """The token endpoint."""
        return {"TOKEN_URL": self.base_url.replace("localhost", "127.0.0.1") + _TOKEN}

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: a token, or the API of the tenant."""
        if request.path == _TOKEN and request.method == "POST":
            return await self._token(request)
        if not self.use(request.headers.get("Authorization", "").removeprefix("Bearer ")):
            if not self.switches.early:
                await request.read()
            return _error(401, "AUTH-006", "Access token provided is invalid or expired.")
        if self.busy > 0:
            self.busy -= 1
            answer = _error(429, "", "Quota limit exceeded.")
            answer.headers["Retry-After"] = str(self.wait)
            return answer
        if not (user := request.headers.get("X-user-id")):
            return _error(403, "AUTH-012", "X-user-id is missing.")
        self.users.add(user)
        return await self._api(request)

    async def _token(self, request: web.BaseRequest) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode()))
        scheme, _, coded = request.headers.get("Authorization", "").partition(" ")
        client, _, secret = b64decode(coded).decode().partition(":") if scheme == "Basic" else ("", "", "")
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return _error(self.switches.login_faults.pop(0), "", "The service is busy.")
        if form.get("grant_type") != "client_credentials" or not form.get("scope"):
            return _error(400, "AUTH-008", "The required parameter scope is missing.")
        token = self.log_in(client, secret)
        if token is None:
            return _error(401, "AUTH-003", "The client_id and client_secret combination is not valid.")
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": int(_LIFE)})

    async def _api(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        match request.method, request.path.removeprefix("/api/v3/").strip("/").split("/"):
            case "GET", ["workspaces", "57", "items"]:
                start = int(request.query.get("offset", "0"))
                rows = [{"urn": f"urn:{number}", "title": f"Old {number}"} for number in range(start, start + _PAGE)]
                return web.json_response({"offset": start, "limit": _PAGE, "items": rows})
            case "POST", ["workspaces", "57", "items"]:
                title = str(json_of(body).get("title"))
                if title.startswith("forbidden"):
                    self.counters["forbidden"] += 1
                    return _error(403, "FORBIDDEN", "The user may not create items in this workspace.")
                self._id += 1
                self.write(f"POST {title}")
                return web.json_response({"urn": f"urn:new:{self._id}", "title": title}, status=201)
        return _error(404, "NOT_FOUND", "The resource does not exist.")


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"developerMessage": message, "errorCode": code}, status=status)
