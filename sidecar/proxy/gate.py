"""Who may use a port: proxy authentication, and what keeps a browser from being used against us.

Any page can make a browser send requests to loopback, and a name of the page's own can resolve to it (DNS
rebinding). So a reverse port takes only the Host names it is meant to be called by, and nothing that a page of
another site sends; on the proxy port only a browser says where a request comes from.
"""

import base64
import binascii
import hmac
from dataclasses import dataclass

from sidecar.errors import Reason, Refusal
from sidecar.policy.message import Fields, value_of
from sidecar.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a port asks of its requests.

    *credentials*: `username:password` of proxy authentication, None when it asks for none. *hosts*: the names
    it answers to as a reverse port, None when any will do: on the proxy port, and on a unix socket. *origin*:
    that of the upstream, whose own pages may call its reverse port.
    """

    credentials: Secret | None = None
    hosts: frozenset[str] | None = None
    origin: str = ""

    def check(self, fields: Fields, *, ours: bool) -> None:
        """Raise Refusal when a request with *fields* may not come in; *ours*: it would get a credential."""
        if self.credentials is not None:
            _check_credentials(fields, self.credentials)
        if self.hosts is not None:
            _check_page(fields, self.hosts, self.origin)
        elif ours and value_of(fields, b"sec-fetch-site") == b"cross-site":
            raise _foreign("a page of another site may not use the credential of this proxy")


def _check_credentials(fields: Fields, expected: Secret) -> None:
    """Compare the Basic credentials in constant time (RFC 7617)."""
    scheme, _, encoded = (value_of(fields, b"proxy-authorization") or b"").partition(b" ")
    try:
        given = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        given = b""
    right = hmac.compare_digest(given, expected.reveal().encode())
    if scheme.lower() != b"basic" or not right:
        raise Refusal(Reason.PROXY_AUTH_REQUIRED, "this proxy needs a user and a password; see listen.auth")


def _check_page(fields: Fields, hosts: frozenset[str], upstream: str) -> None:
    host = value_of(fields, b"host")
    name = (host or b"").decode("latin-1").lower()
    # Only HTTP/1.0, which no browser speaks, has no Host.
    if host is not None and _without_port(name) not in hosts:
        raise _foreign("this port does not answer to this Host; expected a loopback name or the upstream's")
    if value_of(fields, b"sec-fetch-site") not in (None, b"none", b"same-origin"):
        raise _foreign("a page of another site may not use the credential of this port")
    origin = value_of(fields, b"origin")
    if origin is not None and origin.decode("latin-1").lower() not in (f"http://{name}", upstream):
        raise _foreign("a page of another origin may not use the credential of this port")


def _without_port(authority: str) -> str:
    name, colon, port = authority.rpartition(":")
    return name if colon and port.isdecimal() else authority


def _foreign(detail: str) -> Refusal:
    return Refusal(Reason.NO_ROUTE, detail)
