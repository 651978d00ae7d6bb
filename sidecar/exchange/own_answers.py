"""Answers of our own: problem details (RFC 9457) with Proxy-Status (RFC 9209), never a byte of anybody else."""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from sidecar.errors import REASONS, Reason, Refusal
from sidecar.policy.message import Fields

if TYPE_CHECKING:
    from sidecar.exchange.destination import Client

FAULT = "a fault of the sidecar; see its log"
_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """A whole answer: status, reason phrase, fields with Content-Length, body."""

    status: int
    reason: bytes
    fields: Fields
    body: bytes

    def encode(self, *, head_only: bool = False) -> bytes:
        """Return the answer as bytes that also close the connection; for where no exchange takes part."""
        lines = [b"HTTP/1.1 %d %b" % (self.status, self.reason)]
        lines += [b"%b: %b" % field for field in (*self.fields, (b"Connection", b"close"))]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only else self.body)


def own_answer(refusal: Refusal) -> OwnAnswer:
    """Return the answer for *refusal*; 503 always has a Retry-After, 405 an Allow, 407 a challenge."""
    facts = REASONS[refusal.reason]
    status = refusal.status or facts.status
    problem = {
        "type": "about:blank",
        "title": facts.title,
        "status": status,
        "detail": refusal.detail,
        "reason": refusal.reason.value,
    }
    if refusal.unknown:
        problem["outcome"] = "unknown"
    body = json.dumps(problem).encode()
    fields = [
        (b"Content-Type", b"application/problem+json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Proxy-Status", f"auth-sidecar; error={facts.error}".encode()),
        (b"Cache-Control", b"no-store"),
    ]
    if status == 503:  # noqa: PLR2004  Service Unavailable
        fields.append((b"Retry-After", b"%d" % (refusal.retry_after or _RETRY_SECONDS)))
    if refusal.reason is Reason.METHOD_REFUSED:
        fields.append((b"Allow", refusal.allow.encode()))
    if refusal.reason is Reason.PROXY_AUTH_REQUIRED:
        fields.append((b"Proxy-Authenticate", b'Basic realm="auth-sidecar", charset="UTF-8"'))
    return OwnAnswer(status, HTTPStatus(status).phrase.encode(), tuple(fields), body)


async def send_own(client: "Client", refusal: Refusal) -> None:
    """Answer *client* with *refusal*, whole; raises ClientGone when it left."""
    answer = own_answer(refusal)
    await client.start(answer.status, answer.reason, answer.fields, chunked=False, data=answer.body, end=True)
