"""Sockets and certificates of the emulator. Knows no request."""

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from aiohttp import web

from sidecar.clock import SystemClock

_BACKLOG = 1024
"""Above aiohttp's 128: tests open hundreds of connections at once."""


def server_context(names: Sequence[str], ca_path: Path) -> ssl.SSLContext:
    """Return a context with a fresh certificate for *names*, for a day, and write the CA behind it to *ca_path*.

    ValueError for a name that is no host in its normal form.
    """
    # Imported here: a process that only needs the issuer or the switches does without.
    from sidecar.ca.authority import new_authority, server_pem

    now = SystemClock().now()
    authority = new_authority(frozenset(names), now)
    ca_path.write_bytes(authority.root_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with NamedTemporaryFile() as chain:  # the only way in, readable by its owner only
        chain.write(server_pem(authority, names, now))
        chain.flush()
        context.load_cert_chain(chain.name)
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
