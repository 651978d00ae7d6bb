"""SAP Gateway's OData as SAP's documents and public clients show it: HTTP Basic, a security session, X-CSRF-Token.

Where they are silent: the collection of services, which is no service, answers 404, with the token if it was asked for.
"""

import re
from hashlib import sha256
from typing import Any

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.nonces import READS, NonceSystem
from sidecar.emulator.systems.system import SystemSwitches, json_of

_PREFIX = "/sap/opu/odata/sap"
_SERVICES = ("API_PRODUCT_SRV", "API_CV_ATTACHMENT_SRV")
_PAGE = 25
_METADATA = """<?xml version="1.0" encoding="utf-8"?>
<edmx:Edmx Version="1.0" xmlns:edmx="http://schemas.microsoft.com/ado/2007/06/edmx">
 <edmx:DataServices xmlns:m="http://schemas.microsoft.com/ado/2007/08/dataservices/metadata" m:DataServiceVersion="2.0">
  <Schema Namespace="API_PRODUCT_SRV" xmlns="http://schemas.microsoft.com/ado/2008/09/edm">
   <EntityType Name="A_ProductType">
    <Key><PropertyRef Name="Product"/></Key>
    <Property Name="Product" Type="Edm.String" Nullable="false"/>
    <Property Name="ID" Type="Edm.Int32" Nullable="true"/>
   </EntityType>
   <EntityContainer Name="API_PRODUCT_SRV_Entities" m:IsDefaultEntityContainer="true">
    <EntitySet Name="A_Product" EntityType="API_PRODUCT_SRV.A_ProductType"/>
   </EntityContainer>
  </Schema>
 </edmx:DataServices>
</edmx:Edmx>"""


class SapOdata(NonceSystem):
    """SAP Gateway; its services are below `/sap/opu/odata/sap`.

    `other_cookie`: a second cookie that a session has, and that is wanted back. `strict`: a root without its slash
    gives no token. `heads`: HEAD is answered.
    """

    preset = "sap-odata"
    cookie = "SAP_SESSIONID_S4H_100"
    other_cookie = "sap-XSRF_S4H_100"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        self.strict = True
        self.heads = True
        self._ids = 0

    @property
    def api_url(self) -> str:
        """The base URL of the services."""
        return self.base_url + _PREFIX

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: a root, an entity, a batch, or a file."""
        if self.switches.login_faults:
            return web.Response(status=self.switches.login_faults.pop(0), text="busy")
        if not self.switches.early:
            await request.read()
        session = await self.enter(request)
        if session is None:
            challenge = {"WWW-Authenticate": 'Basic realm="SAP NetWeaver Application Server [S4H/100]"'}
            return web.Response(status=401, text="<h1>Logon failed</h1>", content_type="text/html", headers=challenge)
        asked = request.headers.get("X-CSRF-Token", "")
        if request.method in READS:
            answer = self._read(request)
            root = request.path.endswith("/") or request.path.count("/") > _PREFIX.count("/") + 1 or not self.strict
            if asked.lower() == "fetch" and root:
                self.counters["nonces"] += 1
                answer.headers["X-CSRF-Token"] = self.nonces[session]
        elif self._is_refused(request, session, asked):
            answer = web.Response(status=403, text="CSRF token validation failed", headers={"X-CSRF-Token": "Required"})
        else:
            answer = await self._write(request)
        answer = self.dressed(answer, request, session)
        if "Set-Cookie" in answer.headers:
            answer.headers.add("Set-Cookie", f"{self.other_cookie}={self._other(session)}; Path=/; Secure")
        return answer

    def _is_refused(self, request: web.BaseRequest, session: str, asked: str) -> bool:
        stale = self.is_stale(session, asked)
        return stale or request.cookies.get(self.other_cookie) != self._other(session)

    def _other(self, session: str) -> str:
        return f"canary-xsrf-9{session.rpartition('-')[2]}"

    def _read(self, request: web.BaseRequest) -> web.Response:
        parts = request.path.removeprefix(_PREFIX).strip("/").split("/")
        if request.method == "HEAD" and not self.heads:
            return web.Response(status=405)
        match parts:
            case [service] if service in _SERVICES:
                return web.json_response({"d": {"EntitySets": ["A_Product"]}})
            case ["API_PRODUCT_SRV", "A_Product"]:
                start = int(request.query.get("$skip", "0"))
                rows = [{"Product": f"OLD{number:05d}"} for number in range(start, start + _PAGE)]
                return web.json_response({"d": {"results": rows}})
            case ["API_PRODUCT_SRV", "$metadata"]:
                return web.Response(text=_METADATA, content_type="application/xml")
            case ["API_CV_ATTACHMENT_SRV", entity, "$value"] if entity in self.files:
                content, kind = self.files[entity]
                return web.Response(body=content, content_type=kind)
        return _error(404, "/IWFND/MED/170", "No service found for the namespace, name and version")

    async def _write(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        match request.method, request.path.removeprefix(_PREFIX).strip("/").split("/"):
            case "POST", ["API_PRODUCT_SRV", "A_Product"]:
                return self._create(json_of(body))
            case "POST", ["API_PRODUCT_SRV", "$batch"]:
                return self._batch(body.decode())
            case "POST", ["API_CV_ATTACHMENT_SRV", "AttachmentContentSet"]:
                name = request.headers.get("Slug", "")
                self.files[f"AttachmentContentSet('{name}')"] = body, "application/octet-stream"
                self.write(f"FILE {sha256(body).hexdigest()}")
                return web.json_response({"d": {"FileName": name}}, status=201)
        return _error(404, "/IWBEP/CM_MGW_RT/004", "Resource not found")

    def _create(self, product: dict[str, Any]) -> web.Response:
        name = str(product.get("Product"))
        if name.startswith("forbidden"):
            # The status of a stale token, and another meaning.
            self.counters["forbidden"] += 1
            return _error(403, "/IWBEP/CM_MGW_RT/018", "No authorization to create the product")
        self.write(f"POST {name}")
        self._ids += 1
        return web.json_response({"d": {"Product": name, "ID": self._ids}}, status=201)

    def _batch(self, text: str) -> web.Response:
        """Answer a batch of creations; its parts have no token, and their line ends may be those of any client."""
        answers = []
        for found in re.findall(r"^POST \S*A_Product.*?\r?\n\r?\n(\{.*?\})\r?\n", text, re.DOTALL | re.MULTILINE):
            made = self._create(json_of(found.encode()))
            answers.append(
                f"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {made.status} X\r\n\r\n{made.text}\r\n"
            )
        kind = {"Content-Type": "multipart/mixed; boundary=b"}
        return web.Response(status=202, body="".join([*answers, "--b--\r\n"]).encode(), headers=kind)


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": {"lang": "en", "value": message}}}, status=status)
