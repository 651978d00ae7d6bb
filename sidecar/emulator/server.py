"""The emulator as a server: which request goes where, and what is counted of it.

One function per area, top to bottom. Dispatch is on the raw path and not by a router, so that `/echo/` takes
every target that aiohttp's parser lets through: dot segments, stray percent signs; not bytes over 127.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl

from aiohttp import web

from sidecar.clock import Clock, SystemClock
from sidecar.emulator import answers, api, faults, streams
from sidecar.emulator.faults import Counters, Switches
from sidecar.emulator.issuer import GRANTS, Account, Issuer, refusal
from sidecar.emulator.listening import NAMES, authority_of, listen, serving

_FORM = "application/x-www-form-urlencoded"


class Emulator:
    """A running system: a token endpoint, the supplier API, `/echo/`, `/bytes/` and `/_emulator/`.

    Made by `start`. *switches* and *counters* are live objects. `/_emulator/` asks for no credential, so bind
    it to loopback or to a network of tests only.
    """

    def __init__(self, *, account: Account, switches: Switches, clock: Clock) -> None:
        self.client_id = account.client_id
        self.client_secret = account.client_secret
        self.username = account.username
        self.password = account.password
        self.switches = switches
        self.counters = Counters()
        self.base_url = ""
        self.plain_url: str | None = None
        self.ca_path = Path()
        self._at_start = asdict(switches)
        self._clock = clock
        self._issuer = Issuer(account, switches, clock)
        self._suppliers = api.fresh_suppliers()
        self._token_calls_now = 0

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        *,
        switches: Switches | None = None,
        tls: bool = True,
        plain: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        plain_port: int = 0,
        names: Sequence[str] = NAMES,
        account: Account | None = None,
        clock: Clock | None = None,
    ) -> AsyncIterator[Self]:
        """Serve until the context ends; port 0 asks the system for a free one.

        *tls*: https on *port*. *plain*, or no *tls*: http on *plain_port* (without *tls* on *port* if only
        that is given). *names*: what the certificate is for; the first is the host of the addresses. The CA
        file lives as long as the context. Requests still running at the end get two seconds.
        """
        emulator = cls(account=account or Account(), switches=switches or Switches(), clock=clock or SystemClock())
        # The echo reports the bytes that were sent, not what they decompress to.
        async with serving(emulator._answer, names, auto_decompress=False) as (runner, context, emulator.ca_path):
            if tls:
                bound = await listen(runner, host, port, context)
                emulator.base_url = f"https://{authority_of(names[0], bound)}"
            if plain or not tls:
                bound = await listen(runner, host, plain_port if tls else plain_port or port, None)
                emulator.plain_url = f"http://{authority_of(names[0], bound)}"
            emulator.base_url = emulator.base_url or emulator.plain_url or ""
            yield emulator

    @property
    def token_url(self) -> str:
        """The address of the token endpoint."""
        return f"{self.base_url}/oauth/token"

    @property
    def control_url(self) -> str:
        """The address below which `state`, `switches`, `revoke` and `reset` are."""
        return f"{self.base_url}/_emulator"

    def change(self, **values: object) -> None:
        """Set switches, all or none; raises ValueError for an unknown name or a wrong value."""
        faults.change(self.switches, values)

    def revoke_all(self, *, grants: bool = False) -> None:
        """Revoke every access token at once, with *grants* the refresh tokens too."""
        self._issuer.revoke(grants=grants)

    def reset(self) -> None:
        """Be as at the start: switches, counters, suppliers; no token lives. Addresses and certificate stay."""
        faults.change(self.switches, self._at_start)
        self.counters.reset()
        self._suppliers.update(api.fresh_suppliers())
        self.revoke_all(grants=True)

    def state(self) -> dict[str, object]:
        """Return counters, switches and the number of live tokens, for `json.dumps`."""
        live = self._issuer.live()
        return {"counters": self.counters.as_json(), "switches": asdict(self.switches), "tokens_live": live}

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await self._route(request)
            if self.switches.ahead and not response.prepared:
                response.headers["Date"] = formatdate(self._clock.now() + self.switches.ahead, usegmt=True)
            return response
        except ConnectionError:
            # The client went away: daily bread in tests of faults, and nobody is left to read an answer.
            return web.Response()

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path.startswith(("/api/", "/echo/", "/bytes/")):
            return await self._gate(request)
        if path == "/oauth/token":
            return await self._token(request)
        if path.startswith("/_emulator/"):
            return await self._control(request, path.removeprefix("/_emulator/"))
        return answers.error(HTTPStatus.NOT_FOUND, "The requested resource does not exist.")

    async def _token(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return answers.error(HTTPStatus.METHOD_NOT_ALLOWED, "Use POST.", {"Allow": "POST"})
        await answers.ask_for_body(request)
        body = (await request.read()).decode("utf-8", "replace")
        form = parse_qsl(body, keep_blank_values=True) if request.content_type == _FORM else None
        grant = dict(form or ()).get("grant_type")
        self.counters.token_calls[grant if grant in GRANTS else "other"] += 1
        self._token_calls_now += 1
        self.counters.token_concurrent_max = max(self.counters.token_concurrent_max, self._token_calls_now)
        try:
            await self._clock.sleep(self.switches.token_delay)
            response = self._token_response(request, form)
        finally:
            self._token_calls_now -= 1
        self.counters.token_sent[response.status] += 1
        return response

    def _token_response(self, request: web.BaseRequest, form: list[tuple[str, str]] | None) -> web.Response:
        fault = faults.next_token_fault(self.switches)
        if fault == "drop":
            answers.drop(request)
        if fault == "garbage":
            return web.Response(text="<html>Please log in</html>", content_type="text/html")
        if fault and fault.isdigit():
            wait = self.switches.retry_after if int(fault) == HTTPStatus.TOO_MANY_REQUESTS else None
            return web.Response(
                status=int(fault), text="The service is not available.", headers=answers.retry_after(wait)
            )
        if fault and fault != "drop":
            answer = refusal(fault, "switched on")
        elif form is None:
            answer = refusal("invalid_request", f"the body must be {_FORM}")
        else:
            answer = self._issuer.answer(form, request.headers.get("Authorization"))
        self.counters.tokens_issued += answer.status == HTTPStatus.OK
        return answers.oauth(answer)

    async def _gate(self, request: web.BaseRequest) -> web.StreamResponse:
        """Count an API request, let faults have it, check its token, then serve it."""
        self.counters.api_requests += 1
        fault = faults.next_fault(self.switches, self.counters.api_requests)
        credentials = request.headers.getall("Authorization", [])
        token = answers.bearer(credentials)
        self.counters.note_authorization(credentials, issued=token is not None and self._issuer.issued(token))
        await self._clock.sleep(self.switches.api_delay)
        dropped = fault is not None and fault.status is None
        response: web.StreamResponse
        if fault is not None and not (dropped and self.switches.drop_after):
            response = answers.of_fault(fault)
        elif len(credentials) > 1:
            response = answers.unauthorized(
                "invalid_request", HTTPStatus.BAD_REQUEST, "More than one Authorization field."
            )
        else:
            left = None if token is None else self._issuer.use(token)
            response = answers.unauthorized() if left is None else await self._serve(request, left)
        if dropped:
            self.counters.dropped += 1
            answers.drop(request)
            return response
        self.counters.sent[response.status] += 1
        if not response.prepared and request.headers.get("Expect") and not request.content.is_eof():
            # Refused before 100 Continue: the client may or may not send the body now (RFC 9110 section 10.1.1).
            response.force_close()
        return response

    async def _serve(self, request: web.BaseRequest, left: float) -> web.StreamResponse:
        # Rounded down: a second too early is harmless, a second too late is a 401.
        extra = {"X-Token-Expires-In": str(int(left))}
        path = request.rel_url.raw_path
        await answers.ask_for_body(request)
        if path.startswith("/bytes/"):
            response = await streams.serve_bytes(request, self._clock, extra)
        else:
            is_echo = path.startswith("/echo/")
            response = await (streams.echo(request) if is_echo else api.serve(request, self._suppliers))
            response.headers.update(extra)
        if response.status < HTTPStatus.BAD_REQUEST:
            self.counters.executed[f"{request.method} {path}"] += 1
            if job := request.headers.get("X-Job-Id") or request.headers.get("Idempotency-Key"):
                self.counters.jobs[job] += 1
        return response

    async def _control(self, request: web.BaseRequest, action: str) -> web.Response:
        match request.method, action:
            case "GET", "state":
                pass
            case "POST", "switches":
                try:
                    self.change(**json.loads(await request.read()))
                except (ValueError, TypeError) as problem:
                    return answers.error(HTTPStatus.BAD_REQUEST, str(problem))
            case "POST", "revoke":
                self.revoke_all(grants=request.rel_url.query.get("grants", "0") != "0")
            case "POST", "reset":
                self.reset()
            case _:
                return answers.error(HTTPStatus.NOT_FOUND, "Expected GET state, or POST switches, revoke or reset.")
        return web.json_response(self.state())
