"""An upstream with a token endpoint whose faults are drawn by chance, and which knows what it sent to whom.

Its answers follow from the name of the request, so that no two are alike. A request is executed when its token is good
and no fault befell it before.
"""

import asyncio
import contextlib
import hashlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

from tests.canary import canary

LIFETIME = 20


@dataclass
class Scripted:
    """The upstream; its attributes may be changed while it runs.

    *rates*: the share of requests that each fault befalls: 503, 429, before (reset without an answer), executed (the
    same, after it was done), headers (reset after the head), middle (in the body), slow (a body that drips), hang.
    *issuer*: ok, 503, 429, drop, garbage or slow.
    """

    chance: random.Random
    url: str = ""
    rates: dict[str, float] = field(default_factory=dict)
    pausing: float = 0.5
    """The share of 503 and 429 with a Retry-After."""
    issuer: str = "ok"
    live: dict[str, float] = field(default_factory=dict)
    issued: set[str] = field(default_factory=set)
    executed: Counter[str] = field(default_factory=Counter)
    sent: defaultdict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    broken: set[str] = field(default_factory=set)
    attempts: int = 0
    unauthorized: int = 0
    foreign: int = 0
    token_calls: int = 0

    def revoke(self) -> None:
        """Take no token any more that was issued so far."""
        self.live.clear()

    def heal(self) -> None:
        """Fail no more."""
        self.rates, self.pausing, self.issuer = {}, 0.5, "ok"

    def complete(self, name: str) -> list[tuple[int, str]]:
        """Return status and hash of all answers to the request *name* that were sent to their end."""
        return self.sent[name]

    def broke_off(self, name: str) -> bool:
        """Tell whether an answer to the request *name* was begun and not ended."""
        return name in self.broken

    def twice(self, names: dict[str, int | None]) -> list[str]:
        """Return those of *names* that were executed more than once."""
        return [name for name in names if self.executed[name] > 1]

    def fate(self) -> str:
        """Return what befalls the next request."""
        drawn = self.chance.random()
        for fault, share in self.rates.items():
            drawn -= share
            if drawn < 0:
                return fault
        return "none"

    async def token(self, request: web.BaseRequest) -> web.StreamResponse:
        """Grant a token, or do what *issuer* says."""
        await request.read()
        self.token_calls += 1
        match self.issuer:
            case "503":
                return web.Response(status=503, text="down")
            case "429":
                return web.Response(status=429, headers={"Retry-After": "2"})
            case "garbage":
                return web.Response(text="<html>Please log in</html>")
            case "drop":
                _abort(request)
                return web.Response()
            case "slow":
                await asyncio.sleep(2)
        made = canary(f"access-{self.token_calls}")
        self.issued.add(made)
        self.live[made] = time.monotonic() + LIFETIME
        return web.json_response({"access_token": made, "token_type": "Bearer", "expires_in": LIFETIME})

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request of the API."""
        name = request.headers["X-Request"]
        self.attempts += 1
        body = await request.read()
        fate = self.fate()
        if fate == "before":
            _abort(request)
            return web.Response()
        if fate == "hang":
            await asyncio.sleep(30)
            _abort(request)
            return web.Response()
        if fate in ("503", "429"):
            wait = {"Retry-After": "1"} if self.chance.random() < self.pausing else {}
            return self._whole(name, int(fate), f"{fate} for {name}".encode(), wait)
        fields = request.headers.getall("Authorization", [])
        token = fields[0].removeprefix("Bearer ") if len(fields) == 1 else ""
        if token not in self.issued:
            self.foreign += 1
        if self.live.get(token, 0.0) < time.monotonic():
            self.unauthorized += 1
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return self._whole(name, 401, f"401 for {name}".encode(), challenge)
        self.executed[name] += 1
        if fate == "executed":
            _abort(request)
            return web.Response()
        return await self._stream(request, name, fate, hashlib.sha256(body).hexdigest())

    def _whole(self, name: str, status: int, content: bytes, headers: dict[str, str]) -> web.Response:
        self.sent[name].append((status, hashlib.sha256(content).hexdigest()))
        return web.Response(status=status, body=content, headers=headers)

    async def _stream(self, request: web.BaseRequest, name: str, fate: str, body: str) -> web.StreamResponse:
        size = int(request.rel_url.query["size"])
        content = random.Random(name).randbytes(size)
        response = web.StreamResponse(headers={"X-Body": body})
        if self.chance.random() < 0.5:
            response.content_length = size
        self.broken.add(name)
        await response.prepare(request)
        if fate == "headers" and size:
            _abort(request)
            return response
        half = size // 2
        await response.write(content[:half])
        if fate == "middle" and size:
            await asyncio.sleep(0.01)
            _abort(request)
            return response
        if fate == "slow":
            await asyncio.sleep(self.chance.uniform(0.1, 3.0))
        # Noted before its last byte is out: who has read it all may look at once.
        self.sent[name].append((200, hashlib.sha256(content).hexdigest()))
        await response.write(content[half:])
        await response.write_eof()
        self.broken.discard(name)
        return response


@contextlib.asynccontextmanager
async def scripted(chance: random.Random) -> AsyncIterator[Scripted]:
    """Serve a Scripted on loopback."""
    state = Scripted(chance)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await (state.token if request.path == "/token" else state.serve)(request)
        except ConnectionError:  # the sidecar was killed
            return web.Response()

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield state
    finally:
        await runner.cleanup()


def _abort(request: web.BaseRequest) -> None:
    if isinstance(request.transport, asyncio.Transport):
        request.transport.abort()
