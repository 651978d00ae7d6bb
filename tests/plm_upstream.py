"""A PLM system as client libraries know it: OData 2, SOAP with a WSDL, WebDAV; over TLS and below a base path.

It writes its own name into every link. It takes only the newest token of its issuer, and that for USES requests.
"""

import contextlib
import json
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote

import trustme
from aiohttp import web

from tests.rig import TOKEN, TokenServer

HOST = "plm.test"
"""A name that only the sidecar can resolve."""
PATH = "/plm"
USES = 2

_CSRF = "X-CSRF-Token"
_PAGE = 2
_METADATA = """<?xml version="1.0" encoding="utf-8"?>
<edmx:Edmx Version="1.0" xmlns:edmx="http://schemas.microsoft.com/ado/2007/06/edmx">
 <edmx:DataServices xmlns:m="http://schemas.microsoft.com/ado/2007/08/dataservices/metadata" m:DataServiceVersion="2.0">
  <Schema Namespace="PLM" xmlns="http://schemas.microsoft.com/ado/2008/09/edm">
   <EntityType Name="Part">
    <Key><PropertyRef Name="Number"/></Key>
    <Property Name="Number" Type="Edm.String" Nullable="false"/>
    <Property Name="Name" Type="Edm.String" Nullable="false"/>
   </EntityType>
   <EntityContainer Name="PLM" m:IsDefaultEntityContainer="true">
    <EntitySet Name="Parts" EntityType="PLM.Part"/>
   </EntityContainer>
  </Schema>
 </edmx:DataServices>
</edmx:Edmx>"""
# The types are in a file of their own, as JAX-WS has it.
_WSDL = Template("""<?xml version="1.0" encoding="UTF-8"?>
<definitions name="Parts" targetNamespace="urn:plm" xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:plm="urn:plm"
  xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:xsd="http://www.w3.org/2001/XMLSchema">
 <types><xsd:schema><xsd:import namespace="urn:plm" schemaLocation="$url/soap?xsd=1"/></xsd:schema></types>
 <message name="GetPart"><part name="parameters" element="plm:GetPart"/></message>
 <message name="GetPartResponse"><part name="parameters" element="plm:GetPartResponse"/></message>
 <portType name="Parts">
  <operation name="GetPart"><input message="plm:GetPart"/><output message="plm:GetPartResponse"/></operation>
 </portType>
 <binding name="Parts" type="plm:Parts">
  <soap:binding transport="http://schemas.xmlsoap.org/soap/http"/>
  <operation name="GetPart">
   <soap:operation soapAction="urn:plm:GetPart"/>
   <input><soap:body use="literal"/></input><output><soap:body use="literal"/></output>
  </operation>
 </binding>
 <service name="Parts"><port name="Parts" binding="plm:Parts"><soap:address location="$url/soap"/></port></service>
</definitions>""")
_TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<xsd:schema targetNamespace="urn:plm" elementFormDefault="qualified" xmlns:xsd="http://www.w3.org/2001/XMLSchema">
 <xsd:element name="GetPart"><xsd:complexType><xsd:sequence>
  <xsd:element name="number" type="xsd:string"/>
 </xsd:sequence></xsd:complexType></xsd:element>
 <xsd:element name="GetPartResponse"><xsd:complexType><xsd:sequence>
  <xsd:element name="name" type="xsd:string"/>
  <xsd:element name="call" type="xsd:int"/>
  <xsd:element name="page" type="xsd:string"/>
 </xsd:sequence></xsd:complexType></xsd:element>
</xsd:schema>"""
_ENVELOPE = Template(
    '<?xml version="1.0" encoding="UTF-8"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/">'
    "<e:Body>$body</e:Body></e:Envelope>"
)
_PART = Template(
    '<GetPartResponse xmlns="urn:plm"><name>bolt $number</name><call>$call</call><page>$url/parts/$number</page>'
    "</GetPartResponse>"
)
_FAULT = "<e:Fault><faultcode>e:Client</faultcode><faultstring>no such part</faultstring></e:Fault>"
_RESOURCE = Template(
    "<d:response><d:href>$href</d:href><d:propstat><d:prop><d:resourcetype>$kind</d:resourcetype>"
    "<d:getcontentlength>$length</d:getcontentlength></d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat>"
    "</d:response>"
)


@dataclass
class Plm:
    """The system; *refused* are the credentials of others that it was shown, *heads* all fields that it read.

    *deaths* counts the requests that came with a token that had just been revoked.
    """

    issuer: TokenServer
    port: int = 0
    deaths: int = 0
    refused: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes | None] = field(default_factory=dict)
    locks: dict[str, str] = field(default_factory=dict)
    short_hrefs: bool = False
    _used: Counter[str] = field(default_factory=Counter)
    _sessions: Counter[str] = field(default_factory=Counter)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}{PATH}"

    def reset(self, *, short_hrefs: bool) -> None:
        """Forget what was asked and stored; the newest token stays what it is. *short_hrefs*: WebDAV lists paths."""
        self.short_hrefs = short_hrefs
        self.parts = {"1": "bolt", "2": "nut", "3": "washer"}
        self.files = {"/": None}
        for record in (self.refused, self.heads, self.locks, self._sessions):
            record.clear()
        self.deaths = 0

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer one request; whatever is wrong about it is told by its status."""
        body = await request.read()
        self.heads.append(b"\r\n".join(name + b": " + value for name, value in request.raw_headers))
        shown = request.headers.getall("Authorization", ["none"])
        newest = f"Bearer {TOKEN}-{self.issuer.calls}"
        if shown != [newest] or self._used[newest] == USES:
            if shown == [newest]:
                self.deaths += 1
            elif any(not value.startswith(f"Bearer {TOKEN}-") for value in shown):
                self.refused.extend(shown)
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="PLM"'})
        self._used[newest] += 1
        room, _, rest = request.path.removeprefix(PATH).removeprefix("/").partition("/")
        rooms: dict[str, Callable[[web.BaseRequest, str, bytes], web.Response]] = {
            "odata": self._odata,
            "soap": self._soap,
            "dav": self._dav,
        }
        if request.host != f"{HOST}:{self.port}" or room not in rooms:
            return web.Response(status=404, text=f"nothing is at {request.host} {request.path}")
        return rooms[room](request, "/" + rest, body)

    def _odata(self, request: web.BaseRequest, path: str, body: bytes) -> web.Response:
        """CSRF as SAP has it: a token that is fetched, good together with the cookie of its session."""
        session = request.cookies.get("SAP_SESSIONID", "")
        if request.method in ("GET", "HEAD") and request.headers.get(_CSRF, "").lower() == "fetch":
            session = session or f"s{next(self._numbers)}"
            cookie = f"SAP_SESSIONID={session}; Path={PATH}/odata; Secure; HttpOnly; SameSite=None"
            return web.Response(headers={_CSRF: f"csrf-{session}", "Set-Cookie": cookie})
        if request.method not in ("GET", "HEAD") and (not session or request.headers.get(_CSRF) != f"csrf-{session}"):
            return web.Response(status=403, headers={_CSRF: "Required"}, text="CSRF token validation failed")
        key = re.fullmatch(r"/Parts\('(\w+)'\)", path)
        if path == "/$metadata":
            return web.Response(text=_METADATA, content_type="application/xml")
        if path == "/Parts" and request.method == "POST":
            part = _json(body)
            self.parts[part["Number"]] = part["Name"]
            entity = self._entity(part["Number"])
            return web.json_response({"d": entity}, status=201, headers={"Location": entity["__metadata"]["uri"]})
        if path == "/Parts":
            skip = int(request.query.get("$skiptoken", "0"))
            page = {"results": [self._entity(number) for number in list(self.parts)[skip : skip + _PAGE]]}
            more = (
                {"__next": f"{self.url}/odata/Parts?$skiptoken={skip + _PAGE}"}
                if len(self.parts) > skip + _PAGE
                else {}
            )
            return web.json_response({"d": page | more})
        if key is None or key[1] not in self.parts:
            return web.Response(status=404)
        if request.method == "GET":
            return web.json_response({"d": self._entity(key[1])})
        if request.method == "DELETE":
            del self.parts[key[1]]
        else:
            self.parts[key[1]] = _json(body)["Name"]
        return web.Response(status=204)

    def _entity(self, number: str) -> dict[str, Any]:
        uri = f"{self.url}/odata/Parts('{number}')"
        return {"__metadata": {"uri": uri, "type": "PLM.Part"}, "Number": number, "Name": self.parts[number]}

    def _soap(self, request: web.BaseRequest, path: str, body: bytes) -> web.Response:
        """A session from its first call on; it counts its calls."""
        if request.method == "GET":
            text = _TYPES if "xsd" in request.query else _WSDL.substitute(url=self.url)
            return web.Response(text=text, content_type="text/xml")
        session = request.cookies.get("JSESSIONID") or f"j{next(self._numbers)}"
        self._sessions[session] += 1
        number = re.search(rb"number>(\w+)<", body)
        known = number is not None and number[1] != b"0"
        part = (
            _PART.substitute(number=number[1].decode(), call=self._sessions[session], url=self.url) if known else _FAULT
        )
        return web.Response(
            status=200 if known else 500,
            text=_ENVELOPE.substitute(body=part),
            content_type="text/xml",
            headers={"Set-Cookie": f"JSESSIONID={session}; Path={PATH}/soap; Secure; HttpOnly"},
        )

    def _dav(self, request: web.BaseRequest, path: str, body: bytes) -> web.Response:
        path = unquote(path).rstrip("/") or "/"
        method = request.method
        if method in ("COPY", "MOVE"):
            return self._transfer(request, path)
        if path in self.locks and method == "PUT":
            wanted = f"<{self._href(path)}> (<{self.locks[path]}>)"
            if request.headers.get("If") != wanted:
                return web.Response(status=412 if "If" in request.headers else 423)
        if method == "MKCOL" and path not in self.files:
            self.files[path] = None
            return web.Response(status=201)
        if method == "PUT":
            existed = path in self.files
            self.files[path] = body
            return web.Response(status=204 if existed else 201)
        if path not in self.files:
            return web.Response(status=404)
        if method == "LOCK":
            self.locks[path] = f"opaquelocktoken:{next(self._numbers)}"
            return web.Response(headers={"Lock-Token": f"<{self.locks[path]}>"})
        if method == "DELETE":
            del self.files[path]
            return web.Response(status=204)
        if method == "PROPFIND":
            below = [name for name in self.files if name != path and name.rpartition("/")[0] == path.rstrip("/")]
            shown = [path, *below] if request.headers.get("Depth") != "0" else [path]
            text = '<?xml version="1.0"?><d:multistatus xmlns:d="DAV:">%s</d:multistatus>'
            return web.Response(
                status=207, text=text % "".join(map(self._resource, shown)), content_type="application/xml"
            )
        return web.Response(body=self.files[path] or b"")

    def _transfer(self, request: web.BaseRequest, path: str) -> web.Response:
        """COPY or MOVE; a destination that is not this server's own is one of another (RFC 4918 section 9.8.5)."""
        given = request.headers.get("Destination", "")
        if not given.startswith(f"{self.url}/dav/"):
            return web.Response(status=502)
        target = unquote(given.removeprefix(f"{self.url}/dav")).rstrip("/")
        self.files[target] = self.files[path]
        if request.method == "MOVE":
            del self.files[path]
        return web.Response(status=201, headers={"Location": self._href(target)})

    def _href(self, path: str) -> str:
        return f"{self.url}/dav{path}"

    def _resource(self, path: str) -> str:
        content = self.files[path]
        kind = "<d:collection/>" if content is None else ""
        href = f"{PATH}/dav{path}" if self.short_hrefs else self._href(path)
        return _RESOURCE.substitute(href=href, kind=kind, length=len(content or b""))


def _json(body: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(body)
    return found


@contextlib.asynccontextmanager
async def serving(issuer: TokenServer, ca: Path) -> AsyncIterator[Plm]:
    """Serve a Plm on loopback as HOST, with the tokens of *issuer*; write the CA of its certificate to *ca*."""
    authority = trustme.CA(organization_name="plm")
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    plm = Plm(issuer)
    plm.reset(short_hrefs=False)
    runner = web.ServerRunner(web.Server(plm.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    plm.port = runner.addresses[0][1]
    try:
        yield plm
    finally:
        await runner.cleanup()
