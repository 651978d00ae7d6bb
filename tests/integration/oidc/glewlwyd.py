"""Run Glewlwyd, an OAuth server in C that we did not write, with one client and one user."""

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.canary import canary

CLIENT_ID, CLIENT_SECRET = "sync", "CANARY-se:cret+ /%"
USER, PASSWORD = "svc", canary("password")
LIFETIME = 90

_SCHEMA = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
_ADMIN = {"username": "admin", "password": "password"}  # as its schema makes it
_CONFIGURATION = """
port={port}
bind_address="127.0.0.1"
external_url="http://127.0.0.1:{port}"
login_url="login.html"
api_prefix="api"
log_mode="console"
log_level="INFO"
cookie_domain=""
cookie_secure=0
session_expiration=3600
session_key="session"
admin_scope="g_admin"
profile_scope="g_profile"
user_module_path="/usr/lib/glewlwyd/user"
user_middleware_module_path="/usr/lib/glewlwyd/user_middleware"
client_module_path="/usr/lib/glewlwyd/client"
user_auth_scheme_module_path="/usr/lib/glewlwyd/scheme"
plugin_module_path="/usr/lib/glewlwyd/plugin"
use_secure_connection=false
secure_connection_key_file=""
secure_connection_pem_file=""
secure_connection_ca_file=""
hash_algorithm="SHA512"
database = {{ type = "sqlite3" path = "{database}" }};
"""
_GRANTS = ("code", "implicit", "password", "client", "refresh")
_PLUGIN = {
    "jwt-type": "sha",
    "jwt-key-size": "256",
    "key": canary("signing-key"),
    "access-token-duration": LIFETIME,
    "refresh-token-duration": 3600,
    "code-duration": 600,
    "refresh-token-rolling": True,
    "scope": [],
    **{f"auth-type-{grant}-enabled": True for grant in _GRANTS},
}


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run it on a free port of loopback and give the URL of its token endpoint; skips where the system has none."""
    program = shutil.which("glewlwyd")
    if program is None or not _SCHEMA.exists():
        pytest.skip("Glewlwyd is not packaged for this system; .ci/install-tools installs it where it is")
    with contextlib.closing(sqlite3.connect(folder / "database")) as database:
        database.executescript(_SCHEMA.read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = folder / "configuration"
    configuration.write_text(_CONFIGURATION.format(port=port, database=folder / "database"))
    command = [program, f"--config-file={configuration}", "--log-mode=console"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(port, process, folder / "log")
            _set_up(f"http://127.0.0.1:{port}/api")
            yield f"http://127.0.0.1:{port}/api/oauth/token"
        finally:
            process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"Glewlwyd did not start: {log.read_text()}", pytrace=False)
        time.sleep(0.02)


def _set_up(api: str) -> None:
    grants = ["code", "token", "password", "client_credentials", "refresh_token"]
    client = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "confidential": True, "enabled": True}
    user = {"username": USER, "password": PASSWORD, "scope": ["read"], "enabled": True}
    plugin = {"module": "oauth2-glewlwyd", "name": "oauth", "display_name": "oauth"}
    objects = {
        "/scope/": {"name": "read", "display_name": "read", "password_required": True, "scheme": {}},
        "/user/": user,
        "/client/": {**client, "scope": ["read"], "authorization_type": grants, "redirect_uri": ["http://x/"]},
        "/mod/plugin/": {**plugin, "parameters": {"url": f"{api}/oauth", **_PLUGIN}},
    }
    with httpx.Client(trust_env=False) as admin:
        session = admin.post(f"{api}/auth/", json=_ADMIN).raise_for_status().headers["set-cookie"]
        for path, value in objects.items():
            # Its cookie has an empty Domain, which httpx does not keep.
            admin.post(f"{api}{path}", json=value, headers={"Cookie": session.split(";")[0]}).raise_for_status()
