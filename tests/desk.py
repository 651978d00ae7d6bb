"""A system with sessions for tests of the exchange: a raw upstream that logs in, and whose answers a test writes."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.canary import canary
from tests.rig import Rig, Seen, raw

PASSWORD = canary("desk-password")
THEIRS = canary("script-password")
SESSION = canary("desk-session")
JSON = b"Content-Type: application/json\r\n"
DEAD = b'{"dead": true}'

RECIPE: dict[str, Any] = {
    "recipe": 1,
    "id": "desk",
    "vars": {"password": {"secret": True}},
    "login": {
        "steps": [
            {
                "request": "POST {base}/login",
                "form": {"password": "{password}"},
                "ok": {"status": 200},
                "get": {"sid": {"json": "/sid"}},
                "fatal": {"status": 400},
            }
        ],
        "send": {"headers": {"X-Session": "{sid}"}},
        "dead": [{"status": 401}, {"json": {"/dead": True}}],
    },
    "shim": [
        {"match": "POST {base}/login", "reply": {"json": {"sid": "{placeholder}", "at": "{self}"}}},
        {"match": "POST {base}/logout", "reply": {"status": 204}},
    ],
}


def answer(body: bytes = b"{}", fields: bytes = JSON, status: int = 200) -> bytes:
    """Return an answer as bytes."""
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, fields, len(body), body)


@dataclass
class Desk:
    """The script of a recorder: *says* gives the answer to a request in a session; *login* None: it is granted."""

    says: Callable[[Seen], bytes] = lambda _: answer()
    login: bytes | None = None
    logins: int = 0
    asked: list[Seen] = field(default_factory=list)

    async def __call__(self, seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b" /login" in seen.line:
            self.logins += 1
            granted = answer(json.dumps({"sid": f"{SESSION}-{self.logins}"}).encode())
            writer.write(granted if self.login is None else self.login)
        else:
            self.asked.append(seen)
            writer.write(self.says(seen))

    @property
    def sessions(self) -> list[bytes]:
        """The sessions that requests were sent in, in order."""
        return [value.removeprefix(SESSION.encode()) for seen in self.asked for value in seen.values(b"x-session")]


def configuration(url: str, folder: Path, recipe: dict[str, Any] | None = None, **upstream: Any) -> dict[str, Any]:
    """Return a configuration with the upstream `plm` at *url*; *upstream* is merged into it."""
    plm = {
        "base_url": url,
        "insecure_http": True,
        "listen": "127.0.0.1:0",
        "recipe": RECIPE if recipe is None else recipe,
        "credential": {"password": {"value": PASSWORD}},
    }
    return {
        "state_dir": str(folder),
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "upstreams": {"plm": plm | upstream},
    }


async def send(rig: Rig, line: bytes, body: bytes = b"", *fields: bytes, port: str = "plm", more: bytes = b"") -> bytes:
    """Send a request with *line* and all that comes until the connection closes; *more* goes after it."""
    head = b"".join(b"%b\r\n" % each for each in (b"Host: localhost", *fields))
    close = b"" if more else b"Connection: close\r\n"
    return await raw(
        rig.port(port),
        b"%b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b%b" % (line, head, close, len(body), body, more),
    )


def chunked(line: bytes, body: bytes, *fields: bytes) -> bytes:
    """Return a request with *body* in chunks, whose connection ends with it."""
    head = b"".join(b"%b\r\n" % each for each in (b"Host: localhost", b"Connection: close", *fields))
    parts = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"%b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (line, head, chunks)
