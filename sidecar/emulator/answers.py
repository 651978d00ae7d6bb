"""The answers and connection tricks that the areas of the emulator share. Knows no state."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from sidecar.emulator.faults import Fault
from sidecar.emulator.issuer import REALM, Answer

NO_TOKEN = "There is no access token associated with this request or the access token is not valid."  # noqa: S105


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return Arena's error envelope."""
    body = {"status": status, "errors": [{"code": status, "message": message}]}
    return web.json_response(body, status=status, headers=headers)


def unauthorized(
    code: str = "invalid_token", status: int = HTTPStatus.UNAUTHORIZED, message: str = NO_TOKEN
) -> web.Response:
    """Return the answer to a missing, unknown, ended or revoked token (RFC 6750 section 3)."""
    return error(status, message, {"WWW-Authenticate": f'Bearer realm="{REALM}", error="{code}"'})


def of_fault(fault: Fault) -> web.Response:
    """Return what a client gets instead of service; an empty answer for a dropped connection."""
    if fault.status is None:
        return web.Response()
    if fault.status == HTTPStatus.UNAUTHORIZED:
        return unauthorized()
    return error(fault.status, "Switched on.", retry_after(fault.retry_after))


def retry_after(seconds: int | None) -> dict[str, str]:
    """Return the field, nothing for None."""
    return {} if seconds is None else {"Retry-After": str(seconds)}


def oauth(answer: Answer) -> web.Response:
    """Return the token endpoint's answer, which no cache may keep (RFC 6749 section 5.1)."""
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
    if answer.challenge:
        headers["WWW-Authenticate"] = answer.challenge
    return web.json_response(answer.body, status=answer.status, headers=headers)


def bearer(credentials: list[str]) -> str | None:
    """Return the token of the only Authorization field, None without one or with another scheme."""
    scheme, _, token = credentials[0].partition(" ") if len(credentials) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else None


async def ask_for_body(request: web.BaseRequest) -> None:
    """Send 100 Continue to a client that waits for it (RFC 9110 section 10.1.1), once the request is accepted."""
    if request.headers.get("Expect", "").lower() == "100-continue" and not request.content.is_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The writer takes any output for the start of the answer.
        request.writer.output_size = 0


def drop(request: web.BaseRequest) -> None:
    """Reset the connection; whatever is written to it afterwards goes nowhere."""
    if isinstance(request.transport, asyncio.Transport):
        request.transport.abort()
