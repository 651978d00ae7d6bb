"""Windchill REST Services as PTC's documents and public clients show them: HTTP Basic, a servlet session, a nonce.

Where they are silent: a stale nonce is answered with 403 and the words of the user interface, a wrong password with 401
by the web server, and the second stage of an upload wants no nonce.
"""

import re
from hashlib import sha256
from typing import Any

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.nonces import READS, NonceSystem
from sidecar.emulator.systems.system import SystemSwitches, json_of

_ODATA = re.compile(r"/Windchill/servlet/odata(?:/v\d+)?/([^/]+)/(.*)")
_REPLICA = "/Windchill/servlet/WindchillGW/wt.fv.uploadtocache.DoUploadToCache_Server/doUploadToCache_Master"
_STALE = (
    "A potential security problem was detected. Refresh the page and try again."
    " If the problem persists, contact your administrator."
)
_PAGE = 25


class Windchill(NonceSystem):
    """Windchill; its API is below `/Windchill`.

    `old`: it has GetNonceToken() instead of GetCSRFToken(). `value`: the member that this has it in.
    """

    preset = "windchill"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        self.old = False
        self.value = "NonceToken"
        self._ids = 0

    @property
    def api_url(self) -> str:
        """The base URL of the API."""
        return self.base_url + "/Windchill"

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: a nonce, an entity, a batch, or a stage of an upload."""
        if self.switches.login_faults:
            return web.Response(status=self.switches.login_faults.pop(0), text="busy")
        if not self.switches.early:
            await request.read()
        session = await self.enter(request)
        if session is None:
            challenge = {"WWW-Authenticate": 'Basic realm="Windchill"'}
            return web.Response(status=401, text="<h1>Unauthorized</h1>", content_type="text/html", headers=challenge)
        return self.dressed(await self._entered(request, session), request, session)

    async def _entered(self, request: web.BaseRequest, session: str) -> web.Response:
        if request.path == _REPLICA and request.method == "POST":
            return await self._stage_2(request)
        found = _ODATA.fullmatch(request.path)
        if found is None:
            return web.Response(status=404, text="<h1>Not Found</h1>", content_type="text/html")
        domain, rest = found.groups()
        if request.method not in READS and self.is_stale(session, request.headers.get("CSRF_NONCE")):
            return _error(self.switches.odd_status or 403, _STALE)
        if domain == "PTC":
            return self._ptc(rest, session)
        if rest == "$batch" and request.method == "POST":
            return await self._batch(request)
        body = await request.read()
        match request.method, rest:
            case "GET", "Parts":
                return _page(request)
            case "POST", "Parts":
                return self._create(json_of(body))
            case "POST", _ if rest.endswith("/PTC.DocMgmt.UploadStage1Action"):
                stage = {"ReplicaUrl": self.base_url + _REPLICA, "StreamIds": [len(self.files) + 1]}
                return web.json_response({"value": [stage]})
            case "POST", _ if rest.endswith("/PTC.DocMgmt.UploadStage3Action"):
                return self._stage_3(rest, json_of(body))
            case "GET", _ if rest.endswith("/PrimaryContent/$value") and rest.partition("/")[0] in self.files:
                content, kind = self.files[rest.partition("/")[0]]
                return web.Response(body=content, content_type=kind)
        return _error(404, "The requested entity does not exist.")

    def _ptc(self, rest: str, session: str) -> web.Response:
        context = {"@odata.context": f"{self.api_url}/servlet/odata/v6/PTC/$metadata#PTC.CSRFToken"}
        if rest == "GetCSRFToken()" and not self.old:
            self.counters["nonces"] += 1
            return web.json_response(context | {"NonceKey": "CSRF_NONCE", "NonceValue": self.nonces[session]})
        if rest == "GetNonceToken()" and self.old:
            self.counters["nonces"] += 1
            return web.json_response(context | {self.value: self.nonces[session]})
        return web.json_response({"value": []}) if not rest else _error(404, "There is no such function.")

    def _create(self, part: dict[str, Any]) -> web.Response:
        number = str(part.get("Number"))
        if number.startswith("forbidden"):
            # The status of a stale nonce, and another meaning.
            self.counters["forbidden"] += 1
            return _error(403, "You do not have permission to create an object in this context.")
        self.write(f"POST {number}")
        self._ids += 1
        return web.json_response({"ID": f"OR:wt.part.WTPart:{self._ids}", "Number": number}, status=201)

    async def _batch(self, request: web.BaseRequest) -> web.Response:
        """Answer a batch of creations: each part is a request of its own, and has no nonce."""
        body = (await request.read()).decode()
        answers = []
        for text in re.findall(r"^POST \S*Parts.*?\r\n\r\n(\{.*?\})\r\n", body, re.DOTALL | re.MULTILINE):
            made = self._create(json_of(text.encode()))
            answers.append(
                f"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {made.status} X\r\n\r\n{made.text}\r\n"
            )
        return web.Response(
            body="".join([*answers, "--b--\r\n"]).encode(), headers={"Content-Type": "multipart/mixed;boundary=b"}
        )

    async def _stage_2(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        boundary = request.headers.get("Content-Type", "").partition("boundary=")[2].strip('"').encode()
        part = next((each for each in body.split(b"--" + boundary) if b"filename=" in each), b"")
        content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        stream = f"stream-{sha256(content).hexdigest()}"
        self.files[stream] = content, "application/octet-stream"
        return web.json_response({"contentInfos": [{"streamId": 1, "encodedInfo": stream, "mimeType": "x"}]})

    def _stage_3(self, rest: str, given: dict[str, Any]) -> web.Response:
        stream = str(given.get("ContentInfo", [{}])[0].get("EncodedInfo"))
        if stream not in self.files:
            return _error(400, "The content was not uploaded.")
        self.files[rest.partition("/")[0]] = self.files.pop(stream)
        self.write(f"FILE {rest.partition('/')[0]}")
        return web.json_response({"value": [{"FormatName": "x"}]})


def _page(request: web.BaseRequest) -> web.Response:
    start = int(request.query.get("$skip", "0"))
    return web.json_response({"value": [{"Number": f"OLD{number:05d}"} for number in range(start, start + _PAGE)]})


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"code": None, "message": message}}, status=status)
