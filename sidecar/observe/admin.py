"""The admin port: health, status, and an operator's renew and revoke. Reads memory only, so it always answers.

Not reachable through the proxy: its address is one of our own listeners, which the upstream side refuses.
"""

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sidecar.errors import IssuerError, StoreError
from sidecar.secret import Secret

_UNPROVEN = "expected Authorization: Bearer with the admin token"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ALLOWED_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the admin port shows and does; all but the actions return at once.

    *problems*: why the sidecar is not ready, by upstream, empty when it is. *exec_port*: opens the proxy port for
    commands of `exec`, which passes other hosts through, and returns its address; the same one each time. *pid*: of
    the process to be found by. *metrics*: a page in the text format of Prometheus.
    """

    status: Callable[[], dict[str, Any]]
    problems: Callable[[], dict[str, str]]
    renew: Callable[[str], Awaitable[None]]
    revoke: Callable[[str], Awaitable[None]]
    upstreams: Callable[[], Mapping[str, object]]
    exec_port: Callable[[], Awaitable[str]]
    pid: int
    metrics: Callable[[], bytes]


class Admin:
    """The admin server on one bound socket.

    *local*: only this machine reaches it. If not, everything beyond health and metrics needs *token*; None: it is
    not served at all, since a token that nobody configured is on this machine only.
    """

    def __init__(self, source: Source, token: Secret | None, *, local: bool) -> None:
        self._source = source
        self._token = token
        self._local = local
        self._runner: web.AppRunner | None = None

    async def serve(self, bound: socket.socket) -> None:
        """Accept from now on."""
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/upstreams/{name}/renew", self._renew)
        app.router.add_post("/upstreams/{name}/revoke", self._revoke)
        app.router.add_post("/exec", self._exec)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, bound).start()

    async def aclose(self) -> None:
        """Stop serving; twice does no harm."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "pid": self._source.pid})

    async def _readyz(self, _: web.Request) -> web.Response:
        problems = self._source.problems()
        body = {"status": "not ready" if problems else "ok", "reasons": problems}
        return web.json_response(body, status=503 if problems else 200)

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self._source.status())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._source.metrics(), headers={"Content-Type": _METRICS_TYPE})

    async def _renew(self, request: web.Request) -> web.Response:
        return await self._act(request, self._source.renew)

    async def _revoke(self, request: web.Request) -> web.Response:
        return await self._act(request, self._source.revoke)

    async def _act(self, request: web.Request, action: Callable[[str], Awaitable[None]]) -> web.Response:
        name = request.match_info["name"]
        if not self._trusted(request):
            return _problem(401, _UNPROVEN)
        if name not in self._source.upstreams():
            return _problem(404, f"no upstream {name}; expected one of: {', '.join(self._source.upstreams())}")
        try:
            await action(name)
        except (IssuerError, StoreError) as error:
            return _problem(502, str(error))
        return web.json_response(self._source.status()["upstreams"][name])

    async def _exec(self, request: web.Request) -> web.Response:
        if not self._trusted(request):
            return _problem(401, _UNPROVEN)
        return web.json_response({"proxy": await self._source.exec_port()})

    def _trusted(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "surrogateescape")
        return self._token is not None and hmac.compare_digest(given, self._token.reveal().encode())

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse what a page in the user's browser could send, and what others may not ask for."""
        host = (request.headers.get("Host") or "").rpartition(":")[0] or request.headers.get("Host", "")
        open_to_all = request.path in _OPEN_PATHS
        # On a port for others, a name is as good as an address: who sends it must have the token.
        known = host in _ALLOWED_HOSTS or not self._local or (open_to_all and _is_address(host))
        if not known or request.headers.get("Origin") or not _from_here(request):
            return _problem(403, "expected a request to a loopback name, not from a page of another site")
        if not self._local and not open_to_all:
            if self._token is None:
                return _problem(404, "this port serves health and metrics only; listen.admin_token opens the rest")
            if not self._trusted(request):
                return _problem(401, _UNPROVEN)
        response = await handler(request)
        response.headers["Cache-Control"] = "no-store"
        return response


def _is_address(host: str) -> bool:
    """Tell whether *host* is no name: probes and scrapers ask by address, which no name can be made to look like."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _from_here(request: web.Request) -> bool:
    return request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")


def _problem(status: int, detail: str) -> web.Response:
    body = {"type": "about:blank", "title": "Refused", "status": status, "detail": detail}
    return web.json_response(body, status=status, content_type="application/problem+json")
