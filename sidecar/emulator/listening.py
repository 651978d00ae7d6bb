"""Sockets and certificates of the emulator. Knows no request."""

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

_BACKLOG = 1024
"""Above aiohttp's 128: tests open hundreds of connections at once."""


def server_context(names: Sequence[str], ca_path: Path) -> ssl.SSLContext:
    """Return a context with a fresh certificate for *names*, and write the CA that signed it to *ca_path*."""
    # Imported here: a process that only needs the issuer or the switches does without.
    import trustme

    authority = trustme.CA(organization_name="auth-sidecar emulator")
    authority.cert_pem.write_to_path(str(ca_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def listen(runner: web.ServerRunner, host: str, port: int, context: ssl.SSLContext | None) -> int:
    """Open a listener and return its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    await web.SockSite(runner, listener, ssl_context=context, backlog=_BACKLOG).start()
    return int(listener.getsockname()[1])


def authority_of(name: str, port: int) -> str:
    """Return the host and port part of a URL."""
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
