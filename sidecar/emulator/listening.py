"""Sockets and certificates of the emulator. Knows no request."""

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from aiohttp import web

from sidecar.clock import SystemClock

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
KEEPALIVE_SECONDS = 75.0  # as nginx and many application servers
MAX_FIELD = 256 << 10
"""Above any limit of a proxy under test, so that never the emulator is the one that refuses a head."""
NAMES = ("localhost", "127.0.0.1", "::1")
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


@asynccontextmanager
async def serving(
    answer: Answer, names: Sequence[str], *, auto_decompress: bool = True
) -> AsyncIterator[tuple[web.ServerRunner, ssl.SSLContext, Path]]:
    """Yield what `listen` opens ports of, a context with a certificate for *names*, and the file of the CA behind it.

    Requests still running at the end get two seconds. *auto_decompress*: *answer* gets bodies without their coding.
    """
    server = web.Server(
        answer,
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        auto_decompress=auto_decompress,
        max_line_size=MAX_FIELD,
        max_field_size=MAX_FIELD,
        max_headers=1000,
    )
    runner = web.ServerRunner(server, shutdown_timeout=2.0)
    with TemporaryDirectory(prefix="auth-sidecar-emulator-") as folder:
        ca_path = Path(folder) / "ca.pem"
        context = server_context(names, ca_path)
        await runner.setup()
        try:
            yield runner, context, ca_path
        finally:
            await runner.cleanup()


async def listen(runner: web.ServerRunner, host: str, port: int, context: ssl.SSLContext | None) -> int:
    """Open a listener and return its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    await web.SockSite(runner, listener, ssl_context=context, backlog=_BACKLOG).start()
    return int(listener.getsockname()[1])


def authority_of(name: str, port: int) -> str:
    """Return the host and port part of a URL."""
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
