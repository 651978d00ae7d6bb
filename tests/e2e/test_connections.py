"""A day of a script that opens a connection per request, in a few seconds: nothing grows."""

import asyncio
import socket
import ssl
from pathlib import Path

from sidecar.emulator import Emulator, Switches
from tests.process import Running, start_sidecar
from tests.rig import configuration
from tests.waiting import PATIENCE, until

CONNECTIONS = 1000


def descriptors(running: Running) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def connect(running: Running, context: ssl.SSLContext, host: str, port: int, number: int) -> None:
    """Make *number* requests one after the other, each on a new connection through CONNECT with a full handshake."""
    request = b"GET /echo/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    for _ in range(number):
        with socket.create_connection(("127.0.0.1", running.port()), timeout=PATIENCE) as plain:
            plain.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert plain.recv(4096).startswith(b"HTTP/1.1 200 ")
            with context.wrap_socket(plain, server_hostname=host, suppress_ragged_eofs=False) as secure:
                secure.sendall(request)
                answer = b""
                while part := secure.recv(65536):
                    answer += part
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_new_connections_leave_nothing_behind(tmp_path: Path, outputs: Path) -> None:
    """After 1000 of them, memory is where it was after the first 200, and so are the descriptors."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        oauth2 = {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}}
        data = configuration(
            plm.base_url, plm.token_url, tmp_path / "state", tls={"ca": str(plm.ca_path)}, oauth2=oauth2
        )
        async with start_sidecar(data, tmp_path, outputs / "connections.log") as running:
            context = ssl.create_default_context(cafile=str(tmp_path / "state/ca/roots.pem"))
            host, port = plm.base_url.removeprefix("https://").split("/")[0].rsplit(":", 1)
            target = (running, context, host, int(port))
            await asyncio.to_thread(connect, *target, 200)
            memory, open_files = running.resident(), descriptors(running)
            await asyncio.to_thread(connect, *target, CONNECTIONS)
            grown = running.resident() - memory
            # Warm connections to the upstream come and go.
            await until(lambda: descriptors(running) <= open_files + 2, "descriptors at rest")

    assert grown < 3.0
    assert plm.counters.unissued == 0
