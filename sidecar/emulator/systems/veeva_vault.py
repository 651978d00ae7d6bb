"""Veeva Vault's REST API as its documents and its vendor's library show it: every answer has status 200.

What was wrong stands in `responseStatus` and the types of `errors`, in JSON, or in XML where that is accepted. Where no
document says: the type of a wrong password is USERNAME_OR_PASSWORD_INCORRECT, and errors in XML have the names of JSON.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.system import System, SystemSwitches

_PAGE = 25
_VAULT = 9001
_USER = 61579
_BURST = 2000
_IDLE = 1200.0
_LONGEST = 48 * 3600.0


class VeevaVault(System):
    """A vault; its API is below `/api/VERSION`.

    `vault_url`: the API of the vault that a login leads to, "": this one. `logins_left`: how many are allowed in this
    minute, None: any number.
    """

    preset = "veeva-vault"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        switches.idle, switches.longest = min(switches.idle, _IDLE), min(switches.longest, _LONGEST)
        self.vault_url = ""
        self.logins_left: int | None = None
        self._id = 0

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: a login, the session's own calls, documents."""
        match request.path.strip("/").split("/"):
            case ["api", _, "auth"] if request.method == "POST":
                return self._dressed(await self._login(request), request)
            case ["api", _, *rest]:
                if not self.use(_session(request)):
                    if not self.switches.early:
                        await request.read()
                    return self._dressed(self._dead(), request)
                answer = await self._api(request, rest)
                return answer if isinstance(answer, web.StreamResponse) else self._dressed(answer, request)
        return web.Response(status=404, text="Not Found")

    async def _login(self, request: web.BaseRequest) -> dict[str, Any]:
        form = dict(parse_qsl((await request.read()).decode()))
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            self.switches.login_faults.pop(0)
            return failure("UNEXPECTED_ERROR", "The vault is in maintenance.")
        if self.logins_left is not None:
            if self.logins_left <= 0:
                self.counters["limited_logins"] += 1
                return failure("API_LIMIT_EXCEEDED", "You have exceeded the maximum number of authentication calls.")
            self.logins_left -= 1
        session = self.log_in(form.get("username", ""), form.get("password", ""))
        if session is None:
            told = failure("USERNAME_OR_PASSWORD_INCORRECT", "Authentication failed for user.")
            return told | {"errorType": "AUTHENTICATION_FAILED"}
        url = self.vault_url or f"{self.base_url}/api"
        return {
            "responseStatus": "SUCCESS",
            "sessionId": session,
            "userId": _USER,
            "vaultIds": [
                {"id": _VAULT - 1, "name": "Sandbox", "url": "https://sandbox.example.com/api"},
                {"id": _VAULT, "name": urlsplit(url).hostname, "url": url},
            ],
            "vaultId": _VAULT,
        }

    def _dead(self) -> dict[str, Any]:
        return failure("INVALID_SESSION_ID", "Invalid or expired session ID.")

    async def _api(self, request: web.BaseRequest, path: list[str]) -> dict[str, Any] | web.StreamResponse:
        body = await request.read()
        match request.method, path:
            case "DELETE", ["session"]:
                self.counters["logouts"] += 1
                self.sessions.pop(_session(request), None)
                return {"responseStatus": "SUCCESS"}
            case "POST", ["keep-alive"]:
                self.counters["keepalives"] += 1
                return {"responseStatus": "SUCCESS"}
            case "GET", ["objects", "documents"]:
                start = int(request.query.get("start", "0"))
                rows = [{"document": {"id": number}} for number in range(start, start + _PAGE)]
                return {"responseStatus": "SUCCESS", "start": start, "documents": rows}
            case "POST", ["objects", "documents"]:
                name = dict(parse_qsl(body.decode())).get("name__v", "")
                if name.startswith("forbidden"):
                    self.counters["forbidden"] += 1
                    return failure("INSUFFICIENT_ACCESS", "User does not have sufficient privileges.")
                self._id += 1
                self.write(f"POST {name}")
                return {"responseStatus": "SUCCESS", "responseMessage": "created", "id": self._id}
            case "PUT", ["objects", "documents", number, "file"]:
                self.files[number] = body, request.headers.get("Content-Type", "application/octet-stream")
                self.write(f"FILE {sha256(body).hexdigest()}")
                return {"responseStatus": "SUCCESS", "id": number}
            case "GET", ["objects", "documents", "report", "file"]:
                # A document whose content is what a dead session is told with.
                return _file(json.dumps(self._dead()).encode(), "application/json")
            case "GET", ["objects", "documents", number, "file"] if number in self.files:
                return _file(*self.files[number])
        return failure("MALFORMED_URL", "The resource does not exist.")

    def _dressed(self, told: Mapping[str, Any], request: web.BaseRequest) -> web.Response:
        """Return *told* as JSON, or as XML where that is accepted, with what every answer has."""
        if "application/xml" in request.headers.get("Accept", ""):
            text = f'<?xml version="1.0" encoding="UTF-8"?><VaultResponse>{_xml(told)}</VaultResponse>'
            answer = web.Response(text=text, content_type="application/xml")
        else:
            answer = web.json_response(told)
        answer.headers["X-VaultAPI-BurstLimit"] = str(_BURST)
        answer.headers["X-VaultAPI-BurstLimitRemaining"] = str(max(0, _BURST - self.counters["calls"]))
        return answer


def failure(kind: str, message: str) -> dict[str, Any]:
    """Return what an error is told with."""
    return {"responseStatus": "FAILURE", "responseMessage": message, "errors": [{"type": kind, "message": message}]}


def _session(request: web.BaseRequest) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _file(content: bytes, kind: str) -> web.Response:
    return web.Response(body=content, content_type=kind, headers={"Content-Disposition": "attachment; filename=file"})


def _xml(value: Any, name: str = "") -> str:
    """Return *value* as elements; those of a list have its name in the singular."""
    if isinstance(value, Mapping):
        inner = "".join(_xml(each, key) for key, each in value.items())
    elif isinstance(value, list):
        inner = "".join(_xml(each, name.removesuffix("s")) for each in value)
    else:
        inner = escape(str(value))
    return f"<{name}>{inner}</{name}>" if name else inner
