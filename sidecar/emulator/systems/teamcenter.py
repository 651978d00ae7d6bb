"""Teamcenter's JSON REST tier as its public clients meet it: the gateway of Active Workspace, and the plain web tier.

Every operation is a POST; a session is a cookie; that one is dead is told in the body, with whatever status. Where no
document says: that status is 200, and the gateway answers 403 to a POST without its XSRF header.
"""

import asyncio
from hashlib import sha256
from typing import Any

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.system import System, SystemSwitches, json_of

_SERVICES = "/tc/JsonRestServices/"
_EXCEPTIONS = "http://teamcenter.com/Schemas/Soa/2006-03/Exceptions."
_DATA = {".QName": "http://teamcenter.com/Schemas/Soa/2006-03/Base.ServiceData"}
_PAGE = 25
_XML = '<?xml version="1.0"?><ns1:ServiceData xmlns:ns1="http://teamcenter.com/Schemas/Soa/2006-03/Base"/>'


class Teamcenter(System):
    """Teamcenter; `switches.gateway`: with the gateway's own rules, else as the plain web tier.

    `xml`: a dead session is told in XML. `slow`: seconds between two pieces of a slow answer.
    """

    preset = "teamcenter"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        self.xml = False
        self.slow = 0.5
        self.registered: set[str] = set()
        self.tickets: dict[str, str] = {}
        self.xsrf = "canary-xsrf-1"
        self._uid = 0

    @property
    def credential(self) -> dict[str, str]:
        """What `preset: teamcenter` wants."""
        return {"user": self.user}

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: session variables, a service, or a file."""
        path, session = request.path, request.cookies.get("JSESSIONID")
        self.shown |= set(request.cookies.values())
        if self.switches.gateway:
            if path == "/getSessionVars" and request.method == "GET":
                answer = web.json_response({"awSessionVars": {"tcVersion": "14.3"}})
                answer.headers["Set-Cookie"] = f"XSRF-TOKEN={self.xsrf}; Path=/"
                return answer
            if request.method == "POST" and not self._is_ours(request):
                await request.read()
                return web.json_response({"message": "XSRF"}, status=403)
        if path.startswith(_SERVICES) and request.method == "POST":
            return await self._service(request, path.removeprefix(_SERVICES), session)
        if path.startswith("/fms/"):
            return await self._file(request, path, session)
        return web.Response(status=404, text="Not Found")

    def _is_ours(self, request: web.BaseRequest) -> bool:
        given = request.headers.get("X-XSRF-TOKEN")
        return given == self.xsrf == request.cookies.get("XSRF-TOKEN")

    async def _service(self, request: web.BaseRequest, service: str, session: str | None) -> web.StreamResponse:
        if service.endswith("-Session/login"):
            return await self._login(request)
        if not self.use(session):
            if not self.switches.early:
                await request.read()
            return self._dead()
        given = json_of(await request.read())
        if service.endswith("-Session/logout"):
            self.counters["logouts"] += 1
            self.sessions.pop(session or "", None)
            return _reply("http://teamcenter.com/Schemas/Core/2006-03/Session.LogoutResponse", ServiceData=_DATA)
        answer = await self._operation(request, service, given.get("body") or {}, session or "")
        if self.switches.rolls and session and not answer.prepared:
            fresh = self.open(self.sessions.pop(session).user)
            self.registered |= {fresh} if session in self.registered else set()
            answer.headers["Set-Cookie"] = f"JSESSIONID={fresh}; Path=/; HttpOnly"
        return answer

    async def _login(self, request: web.BaseRequest) -> web.StreamResponse:
        given = json_of(await request.read()).get("body", {}).get("credentials", {})
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return web.Response(status=self.switches.login_faults.pop(0), text="busy")
        if "descrimator" not in given:
            return _exception("ServiceException", 1, "descrimator is missing")
        session = self.log_in(str(given.get("user")), str(given.get("password")))
        if session is None:
            return _exception("InvalidCredentialsException", 515143, "The login attempt failed.")
        answer = _reply(
            "http://teamcenter.com/Schemas/Core/2011-06/Session.LoginResponse",
            serverInfo={"Version": "P.14.3.0", "UserID": self.user, "TcServerID": f"pool-{self._count}"},
            partialErrors=[],
        )
        answer.headers["Set-Cookie"] = f"JSESSIONID={session}; Path=/; HttpOnly"
        return answer

    async def _operation(
        self, request: web.BaseRequest, service: str, body: dict[str, Any], session: str
    ) -> web.StreamResponse:
        name = service.rpartition("/")[2]
        match name:
            case "getTCSessionAnalyticsInfo":
                self.registered.add(session)
                return _reply("http://teamcenter.com/Schemas/Internal/AWS2/2019-12/Info", extraInfoOut={})
            case "getTCSessionInfo":
                return _reply(
                    "http://teamcenter.com/Schemas/Core/2007-01/Session.GetTCSessionInfoResponse", user=self.user
                )
            case "getProperties":
                start = int(body.get("start", 0))
                rows = [{"uid": f"OLD{number:05d}"} for number in range(start, start + _PAGE)]
                return _reply("http://teamcenter.com/Schemas/Core/2006-03/Data", rows=rows, ServiceData=_DATA)
            case "createItems":
                return self._create(body)
            case "setReleaseStatus":
                # Told with 200 and in the shape of an expiry, and none.
                return _exception("ServiceException", 38015, "The object is checked out.")
            case "getFileReadTickets":
                self._uid += 1
                ticket = f"ticket-{self._uid:06d}"
                self.tickets[ticket] = str(body.get("file", ""))
                return _reply("http://teamcenter.com/Schemas/Core/2006-03/Tickets", ticket=ticket)
            case "report":
                return await self._drip(request)
        return _exception("InternalServerException", 2, f"unknown operation {name}")

    def _create(self, body: dict[str, Any]) -> web.Response:
        created, refused = [], []
        for item in body.get("items", []):
            self.write(f"item {item.get('id')}")
            if str(item.get("id")).startswith("bad"):
                refused.append({"clientId": item.get("id"), "errorValues": [{"code": 48053, "message": "not valid"}]})
            else:
                self._uid += 1
                created.append({"uid": f"UID{self._uid:06d}", "id": item.get("id")})
        data = _DATA | {"partialErrors": refused} if refused else _DATA
        return _reply("http://teamcenter.com/Schemas/Core/2006-03/Create", output=created, ServiceData=data)

    async def _file(self, request: web.BaseRequest, path: str, session: str | None) -> web.StreamResponse:
        if path.startswith("/fms/fmsdownload/"):
            if request.cookies.get("JSESSIONID"):
                self.counters["cookies_at_tickets"] += 1
            wanted = self.tickets.get(request.query.get("ticket", ""))
            if wanted is None:
                return web.Response(status=404)
            content, kind = self.files.get(wanted, (b"", "application/octet-stream"))
            if wanted == "expired.json":
                content, kind = self._dead().body or b"", "application/json"  # type: ignore[assignment]
            headers = {"Content-Disposition": f'attachment; filename="{wanted}"', "Content-Type": kind}
            return web.Response(body=content, headers=headers)
        if not self.use(session):
            return self._dead()
        if self.switches.gateway and session not in self.registered:
            return web.Response(status=401, text="not registered")
        body = await request.read()
        boundary = request.headers.get("Content-Type", "").partition("boundary=")[2].strip('"').encode()
        part = next((each for each in body.split(b"--" + boundary) if b"filename=" in each), b"")
        head, _, content = part.partition(b"\r\n\r\n")
        name = head.partition(b'filename="')[2].partition(b'"')[0].decode()
        content = content.removesuffix(b"\r\n")
        self.files[name] = content, "application/octet-stream"
        self.write(f"file {sha256(content).hexdigest()}")
        return web.json_response({"file": name})

    async def _drip(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send an answer of JSON piece by piece."""
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        await answer.write(b'{".QName":"report","rows":[0')
        for number in range(1, 7):
            await asyncio.sleep(self.slow)
            await answer.write(b",%d" % number)
        await answer.write(b"]}")
        await answer.write_eof()
        return answer

    def _dead(self) -> web.Response:
        if self.xml:
            return web.Response(text=_XML, content_type="text/xml")
        answer = _exception(
            "InvalidUserException", 1000, "User does not have a valid session.", ssoServerURL="", ssoAppID=""
        )
        answer.set_status(self.switches.odd_status or 200)
        return answer


def _reply(name: str, **members: Any) -> web.Response:
    return web.json_response({".QName": name} | members)


def _exception(name: str, code: int, message: str, **members: Any) -> web.Response:
    shown = {"code": code, "level": 3, "message": message, "messages": [{"code": code, "level": 3, "message": message}]}
    return _reply(_EXCEPTIONS + name, **shown, **members)
