"""One request to a token endpoint, over the network. Knows nothing of grants and of what an answer means."""

import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from sidecar.auth.watch import Asked
from sidecar.errors import BrokenOff, IssuerUnavailable
from sidecar.policy.message import Fields
from sidecar.secret import Secret
from sidecar.settings import parse_token_url

if TYPE_CHECKING:
    import httpx  # takes a tenth of a second: imported where it is used, once a token is needed

MAX_BODY = 64 << 10

Form = list[tuple[str, str | Secret]]
"""The parameters of a request in their order; a name may occur more than once (RFC 8707)."""

_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "Content-Type": "application/x-www-form-urlencoded",
    "User-Agent": "auth-sidecar",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; *flaw* says why *body* was not taken, else it is empty."""

    status: int
    fields: Fields
    body: bytes = field(default=b"", repr=False)  # it holds the token
    flaw: str = ""


def open_client(context: ssl.SSLContext) -> "httpx.AsyncClient":
    """Return a client that adds nothing of its own: no proxy and netrc of the environment, no redirect, no cookie.

    Each request has a connection of its own, so that what failed on it was never a stale one. There is no
    time-out in it: the caller owns the deadline.
    """
    import httpx

    return httpx.AsyncClient(
        verify=context,
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # noqa: S113  see above
        headers=_HEADERS,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


async def post(
    client: "httpx.AsyncClient",
    url: str,
    form: Iterable[tuple[str, str | Secret]],
    authorization: Secret | None,
    *,
    who: str,
) -> Answer:
    """Send *form* to *url*, its target byte for byte, and return the answer, whatever its status; at most 64 KiB of it.

    *who* begins the messages. Raises IssuerUnavailable when nothing was sent, as after a TLS error, and
    BrokenOff when the outcome is unknown.
    """
    import httpx

    origin, target = parse_token_url(url)
    headers = {} if authorization is None else {"Authorization": authorization.reveal()}
    body = urlencode([(name, value.reveal() if isinstance(value, Secret) else value) for name, value in form])
    extensions = {"target": target}  # httpx would normalise it
    failure: IssuerUnavailable
    try:
        async with client.stream(
            "POST", origin.url, content=body.encode(), headers=headers, extensions=extensions
        ) as response:
            return await _read(response)
    except httpx.ConnectError as error:
        failure = IssuerUnavailable(f"{who} cannot be reached: {cause_of(error)}")
    except (httpx.HTTPError, OSError) as error:  # a TLS error after the handshake comes as a bare ssl.SSLError
        failure = BrokenOff(f"{who} broke off before its answer was complete: {cause_of(error)}")
    raise failure  # out here, so that nothing that knows the request hangs on to it


def asked(url: str, form: Iterable[tuple[str, str | Secret]], authorization: Secret | None, answer: Answer) -> Asked:
    """Return what `post` sent and got, for those who look on."""
    shown = [f"{name}={'***' if isinstance(value, Secret) else value}" for name, value in form]
    return Asked(
        where="oauth2",
        line=f"POST {url}",
        names=() if authorization is None else ("Authorization",),
        body="&".join(shown),
        status=answer.status,
        answer=answer.fields,
        content=answer.body,
    )


async def _read(response: "httpx.Response") -> Answer:
    """Read an answer within its limits; a compressed one is not read, since a few bytes may mean gigabytes."""
    status, fields = response.status_code, tuple(response.headers.raw)
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        return Answer(status=status, fields=fields, flaw="is compressed, which was not asked for")
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BODY:
            return Answer(status=status, fields=fields, flaw=f"is over {MAX_BODY >> 10} KiB")
    return Answer(status=status, fields=fields, body=body)


def cause_of(error: BaseException | None) -> str:
    """Say in a few words what is at the root of *error*; only texts of the system and of OpenSSL, never of a peer."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate was refused ({error.verify_message}); trust its authority with tls.ca"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed ({error.reason})"
        if isinstance(error, socket.gaierror):
            return "its host name cannot be resolved; check the address and the DNS"
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno)
        # A group means that several addresses were tried: the first speaks for all.
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
    return "it closed the connection or does not speak HTTP"
