"""An upstream that we did not write: nginx over TLS, which takes only the second token."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import ssl
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
    gzip on;
    gzip_types application/json;
    map $http_authorization $live {{ default 0; "Bearer {token}-2" 1; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.pem;
        location /v1/whoami {{
            if ($live = 0) {{ return 401; }}
            return 200 "$request_method $request_uri $http_host [$http_x_mark]";
        }}
        location /v1/parts/ {{
            if ($live = 0) {{ return 401; }}
            alias {folder}/files/;
            default_type application/json;
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


async def _directly(nginx: Nginx, request: bytes) -> bytes:
    """Return what nginx itself answers, over TLS, to a request that closes."""
    context = ssl.create_default_context(cafile=str(nginx.folder / "ca.pem"))
    port = int(nginx.url.split("/")[2].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("via", [False, True])
async def test_answers_are_as_compressed_as_without_us(nginx: Nginx, tmp_path: Path, via: bool) -> None:
    """nginx compresses for us what it compresses for a direct client; it would not, with a Via in the request."""
    (nginx.folder / "files/list.json").write_bytes(b'[{"number": "4711", "name": "bolt"}]' * 400)
    asking = b"Accept-Encoding: gzip\r\nConnection: close\r\n"
    async with token_server() as issuer:
        ca = {"ca": str(nginx.folder / "ca.pem")}
        async with sidecar(configuration(nginx.url, issuer.url, tmp_path / "state", tls=ca, via=via)) as rig:
            url = nginx.url.replace("https://", "http://", 1).encode() + b"/parts/list.json"
            through = await raw(rig.port(), b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (url, asking))
    credential = f"Authorization: Bearer {TOKEN}-2\r\n".encode()
    direct = await _directly(
        nginx, b"GET /v1/parts/list.json HTTP/1.1\r\nHost: localhost\r\n%b%b\r\n" % (asking, credential)
    )

    assert b"\r\nContent-Encoding: gzip\r\n" in direct
    assert (b"\r\nContent-Encoding: gzip\r\n" in through) is not via
    assert (through.partition(b"\r\n\r\n")[2] == direct.partition(b"\r\n\r\n")[2]) is not via


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
