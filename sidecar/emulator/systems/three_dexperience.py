"""3DEXPERIENCE as its public clients meet it: a login by CAS over two hosts, cookies, and a nonce on writes.

No document says any of it. Where clients are silent: a dead session is led to the login page with 302, and a stale
nonce is told with 403.
"""

from urllib.parse import parse_qsl, quote, urlsplit

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.nonces import READS, NonceSystem
from sidecar.emulator.systems.system import SystemSwitches, json_of

_PAGE = 25
_PASSPORT, _SPACE = "/3dpassport", "/3dspace"
_CSRF = f"{_SPACE}/resources/v1/application/CSRF"
_ITEMS = f"{_SPACE}/resources/v1/modeler/dseng/dseng:EngItem"
_PAGE_OF_LOGIN = '<html><form method="post"><input type="hidden" name="lt" value="%s"/></form></html>'


class ThreeDexperience(NonceSystem):
    """3DSpace at `/3dspace`, and 3DPassport at `/3dpassport` of another host.

    `lt_in_page`: get_auth_params answers the login page. `dead_status`: 302, or what a dead session is told with.
    """

    preset = "3dexperience"
    logs_out = True

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        self.lt_in_page = False
        self.dead_status = 302
        self.tickets: dict[str, str] = {}
        self.contexts: set[str] = set()
        self._issued = 0

    @property
    def api_url(self) -> str:
        """The base URL of 3DSpace."""
        return self.base_url + _SPACE

    @property
    def credential(self) -> dict[str, str]:
        """What `preset: 3dexperience` wants."""
        return {
            "username": self.user,
            "passport": self.places["PASSPORT"],
            "security_context": "VPLMAdmin.Plant.Common",
        }

    @property
    def places(self) -> dict[str, str]:
        """3DPassport."""
        return {"PASSPORT": self.base_url.replace("localhost", "127.0.0.1") + _PASSPORT}

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: 3DPassport's, the CSRF resource, or one of items."""
        body = await request.read()
        self.shown |= set(request.cookies.values())
        if request.path == f"{_PASSPORT}/login":
            return await self._login(request, body)
        if request.path == f"{_PASSPORT}/logout":
            self.counters["logouts"] += 1
            return web.Response(text="<html>bye</html>", content_type="text/html")
        if request.path == _CSRF and (fresh := self.tickets.pop(request.query.get("ticket", ""), None)):
            answer = web.Response(status=302, headers={"Location": self.base_url + _CSRF})
            answer.headers.add("Set-Cookie", f"JSESSIONID={fresh}; Path={_SPACE}; HttpOnly")
            return answer
        session = request.cookies.get("JSESSIONID")
        if session is None or not self.use(session):
            return self._dead(request)
        if request.path == _CSRF:
            self.counters["nonces"] += 1
            told = {"name": "ENO_CSRF_TOKEN", "value": self.nonces[session]}
            return web.json_response({"success": True, "csrf": told})
        if request.method not in READS and self.is_stale(session, request.headers.get("ENO_CSRF_TOKEN")):
            return web.json_response({"error": "CSRF token is invalid"}, status=403)
        self.contexts.add(request.headers.get("SecurityContext", ""))
        return self._items(request, body)

    async def _login(self, request: web.BaseRequest, body: bytes) -> web.Response:
        if request.method == "GET":
            self._issued += 1
            lt = f"LT-{self._issued}-cas"
            if self.lt_in_page or request.query.get("action") != "get_auth_params":
                answer = web.Response(text=_PAGE_OF_LOGIN % lt, content_type="text/html")
            else:
                answer = web.json_response({"response": "login", "lt": lt})
            answer.headers["Set-Cookie"] = f"JSESSIONID=canary-session-9{self._issued:07d}; Path={_PASSPORT}"
            return answer
        await self.clock.sleep(self.switches.login_delay)
        if self.switches.login_faults:
            return web.Response(status=self.switches.login_faults.pop(0), text="busy")
        # Some clients put it all into the query.
        form = dict(request.query) | dict(parse_qsl(body.decode()))
        known = str(form.get("lt", "")).startswith("LT-") and request.cookies.get("JSESSIONID", "")
        session = self.log_in(form.get("username", ""), form.get("password", "")) if known else None
        if session is None:
            return web.Response(text=_PAGE_OF_LOGIN % "LT-0-cas", content_type="text/html")
        ticket = f"ST-{self._issued}-{len(self.tickets)}-cas"
        self.tickets[ticket] = session
        place = f"{form.get('service', '')}?ticket={ticket}"
        answer = web.Response(status=302, headers={"Location": place})
        answer.headers["Set-Cookie"] = f"CASTGC=TGT-{self._issued}-cas; Path={_PASSPORT}; Secure; HttpOnly"
        return answer

    def _dead(self, request: web.BaseRequest) -> web.Response:
        if self.dead_status != web.HTTPFound.status_code:
            return web.Response(status=self.dead_status, text="not authenticated")
        service = quote(self.base_url + request.path_qs, safe="")
        return web.Response(status=302, headers={"Location": f"{self.places['PASSPORT']}/login?service={service}"})

    def _items(self, request: web.BaseRequest, body: bytes) -> web.Response:
        if request.path == f"{_ITEMS}/search" and request.method == "GET":
            start = int(request.query.get("$skip", "0"))
            rows = [{"id": f"OLD{number}", "title": f"Old {number}"} for number in range(start, start + _PAGE)]
            return web.json_response({"totalItems": _PAGE, "member": rows})
        if request.path == _ITEMS and request.method == "POST":
            title = str(json_of(body).get("items", [{}])[0].get("attributes", {}).get("title"))
            if title.startswith("forbidden"):
                # The status of a stale nonce, and another meaning.
                self.counters["forbidden"] += 1
                return web.json_response({"error": "You have no access to create"}, status=403)
            self.write(f"POST {title}")
            return web.json_response({"totalItems": 1, "member": [{"id": title, "title": title}]})
        return web.json_response({"error": f"nothing at {urlsplit(request.path).path}"}, status=404)
