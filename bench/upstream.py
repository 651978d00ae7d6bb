"""The upstream that every contender has: nginx over TLS, which refuses whoever brings no credential.

Small answers come from memory. Files are below `/files/`, and what is put below `/up/` is thrown away with the folder.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.programs import find, line, program, serving

_CONF = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    keepalive_timeout 300s;
    keepalive_requests 100000000;
    default_type application/json;
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.pem;
        # Older nginx leaves 1.3 out, and each new connection would cost a round trip more than it does today.
        ssl_protocols TLSv1.2 TLSv1.3;
        if ($http_authorization !~ "^Bearer .") {{ return 401; }}
        location / {{ return 200 '{{"items":[1,2,3]}}'; }}
        location /files/ {{ alias {folder}/files/; }}
        location /up/ {{ alias {folder}/up/; dav_methods PUT; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where it is, on `localhost`; *ca*: a file with the certificate that it is trusted by; *folder*: its own."""

    port: int
    ca: Path
    folder: Path

    @property
    def url(self) -> str:
        """The base address, without a slash at its end."""
        return f"https://localhost:{self.port}"


@contextlib.asynccontextmanager
async def nginx(folder: Path, port: int, files: Mapping[str, int] | None = None) -> AsyncIterator[Upstream]:
    """Serve while the context is open; *files*: sparse ones below `/files/`, name and size in bytes."""
    _prepare(folder, port, files or {})
    log = folder / "nginx.log"
    async with program(find("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), log=log) as process:
        await serving(process, port, "nginx", log)
        yield Upstream(port, folder / "ca.pem", folder)


@contextlib.asynccontextmanager
async def behind_relay(upstream: Upstream, *options: str) -> AsyncIterator[Upstream]:
    """Give the same upstream behind a relay with *options*, which is a process of its own."""
    log = upstream.folder / "relay.log"
    command = (sys.executable, "-O", "-m", "bench.relay", str(upstream.port), *options)
    async with program(*command, log=log) as process:
        yield replace(upstream, port=int(await line(process, "the relay", log)))


async def emptied(upstream: Upstream) -> None:
    """Remove what was put."""
    await asyncio.to_thread(_empty, upstream.folder / "up")


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _prepare(folder: Path, port: int, files: Mapping[str, int]) -> None:
    import trustme

    for name in ("files", "up"):
        (folder / name).mkdir(parents=True)
    for name, size in files.items():
        with (folder / "files" / name).open("wb") as file:
            file.truncate(size)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    # As root nginx would drop to a user who cannot reach our folder.
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(_CONF.format(user=user, folder=folder, port=port), encoding="utf-8")
