"""An upstream that we did not write: nginx over TLS, which takes only the second token."""

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.redis_servers import free_port
from tests.rig import TOKEN, Rig, configuration, raw, sidecar, status_of, token_server
from tests.waiting import PATIENCE

_CONF = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    keepalive_timeout 2s;
    map $http_authorization $live {{ default 0; "Bearer {token}-2" 1; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.pem;
        location /v1/whoami {{
            if ($live = 0) {{ return 401; }}
            return 200 "$request_method $request_uri $http_host [$http_x_mark]";
        }}
        location /v1/files/ {{
            if ($live = 0) {{ return 401; }}
            alias {folder}/files/;
            dav_methods PUT DELETE;
            create_full_put_path on;
        }}
    }}
}}
"""


@dataclass
class Nginx:
    """A running nginx."""

    url: str
    folder: Path


@contextlib.asynccontextmanager
async def _start(folder: Path) -> AsyncIterator[Nginx]:
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert program is not None, "nginx is missing: run .ci/install-tools"
    port = free_port()
    (folder / "files").mkdir(parents=True)
    # As root nginx would drop to a user who cannot reach a test's folder.
    user = "user root;" if os.getuid() == 0 else ""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    (folder / "nginx.conf").write_text(_CONF.format(folder=folder, port=port, token=TOKEN, user=user))
    process = await asyncio.create_subprocess_exec(program, "-p", str(folder), "-c", str(folder / "nginx.conf"))
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        writer.close()
        yield Nginx(f"https://localhost:{port}/v1", folder)
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def nginx(tmp_path: Path) -> AsyncIterator[Nginx]:
    folder = tmp_path / "nginx"
    folder.mkdir()
    async with _start(folder) as running:
        yield running


@pytest.fixture
async def rig(nginx: Nginx, tmp_path: Path) -> AsyncIterator[Rig]:
    async with token_server() as issuer:
        data = configuration(nginx.url, issuer.url, tmp_path / "state", tls={"ca": str(nginx.folder / "ca.pem")})
        async with sidecar(data) as running:
            yield running


async def _logged(nginx: Nginx, count: int) -> list[str]:
    """Return the status codes of the access log, which nginx writes after it has answered."""
    async with asyncio.timeout(PATIENCE):
        while len(lines := (nginx.folder / "access.log").read_text().splitlines()) < count:
            await asyncio.sleep(0.05)
    return [line.split('" ')[1].split()[0] for line in lines]


async def test_http_is_upgraded_and_401_replayed(nginx: Nginx, rig: Rig) -> None:
    """A plain http:// request reaches nginx over TLS; its 401 is absorbed and the target stays byte for byte."""
    target = nginx.url.replace("https://", "http://", 1).encode() + b"/whoami/a%2Fb/?x=%20&y"
    request = b"GET %b HTTP/1.1\r\nHost: a\r\nX-Mark: caf\xe9\r\nConnection: close\r\n\r\n" % target

    answer = await raw(rig.port(), request)

    authority = nginx.url.split("/")[2].encode()
    assert status_of(answer) == 200
    assert answer.endswith(b"GET /v1/whoami/a%2Fb/?x=%20&y " + authority + b" [caf\xe9]")
    assert await _logged(nginx, 2) == ["401", "200"]


async def test_upload_and_download_through_the_reverse_port(nginx: Nginx, rig: Rig) -> None:
    """A 5 MiB PUT refused once arrives whole, and comes back the same; DELETE without a length works."""
    body = os.urandom(5 << 20)
    head = b"PUT /files/part.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )

    put = await raw(rig.port("plm"), head + body)
    got = await raw(rig.port("plm"), b"GET /files/part.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    gone = await raw(
        rig.port("plm"), b"DELETE /files/part.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )

    assert status_of(put) == 201
    assert hashlib.sha256(got.partition(b"\r\n\r\n")[2]).digest() == hashlib.sha256(body).digest()
    assert status_of(gone) == 204


async def test_warm_connections_survive_nginx_closing_them(nginx: Nginx, rig: Rig) -> None:
    """nginx closes idle connections after 2 s; a POST after that is not lost."""
    target = nginx.url.replace("https://", "http://", 1).encode() + b"/whoami"
    statuses = []
    for pause in (0, 0, 2.1, 0):
        await asyncio.sleep(pause)
        request = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % target
        statuses.append(status_of(await raw(rig.port(), request)))

    assert statuses == [200] * 4
