"""Sessions of real clients, in each way of use: the login leads them on, and their cookie comes back."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.clients.packages import program
from tests.process import start_sidecar
from tests.rig import Seen, configuration, recorder, token_server

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/clients"

# What the login says for each kind: the attributes of its cookie, and where to go; `@` is the upstream's own authority.
KINDS = {
    "secure": (b"Path=/; Secure; HttpOnly", b"https://@/plm/api/me"),
    "path": (b"Path=/plm/api; HttpOnly", b"/plm/api/me"),
    "domain": (b"Domain=plm.test; Path=/plm/; Secure; SameSite=None", b"//@/plm/api/me"),
    "here": (b"Path=/plm/api/; Secure", b"../me"),
    # A server that knows nothing of TLS; a client of https:// is led away from it, with us and without.
    "plain": (b"Path=/; Secure", b"http://@/plm/api/me"),
}
CLIENTS = {
    "Python requests": "{python} requests_session.py",
    "curl": "sh curl_jar.sh",
    "Perl LWP": "perl lwp_jar.pl",
    "Java": "java -cp {classes} Jar",
}


@dataclass
class Stage:
    """A running sidecar with an upstream that has sessions, and its reverse port."""

    folder: Path
    url: str
    reverse: str

    async def run(self, command: str, *before: str) -> str:
        """Run a command line of the shell in the folder of the scripts, *before* in front; return what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(*before, "sh", "-c", command),
            cwd=SCRIPTS,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(100):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def under_exec(self, command: str) -> str:
        """The same under `exec`."""
        words = (sys.executable, "-m", "sidecar", "exec", "-c", str(self.folder / "config.yaml"), "--")
        return await self.run(command, *words)


async def _answer(seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    path = seen.line.split(b" ")[1]
    if path.startswith(b"/plm/api/login/"):
        kind = path.rpartition(b"/")[2]
        attributes, place = KINDS[kind.decode()]
        lines = [
            b"HTTP/1.1 302 Found",
            b"Set-Cookie: sid=%b; %b" % (kind, attributes),
            b"Location: " + place.replace(b"@", seen.values(b"host")[0]),
        ]
        body = b""
    else:
        lines, body = [b"HTTP/1.1 200 OK"], b",".join(seen.values(b"cookie")) or b"nobody"
    writer.write(b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body]))


@pytest.fixture
async def stage(tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setenv("PYTHONPATH", f"{SCRIPTS / 'names'}:{ROOT}")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("plm.test").configure_cert(context)
    async with recorder(_answer, tls=context) as upstream, token_server() as tokens:
        url = f"https://plm.test:{upstream.port}/plm/api"
        data = configuration(url, tokens.url, tmp_path / "state", tls={"ca": str(tmp_path / "ca.pem")})
        async with start_sidecar(data, tmp_path, outputs / "jars.log") as running:
            yield Stage(tmp_path, url, f"http://127.0.0.1:{running.port('plm')}")


def _filled(command: str, folder: Path) -> str:
    if "{classes}" in command:
        compiled = [program("javac"), "-d", str(folder / "classes"), str(SCRIPTS / "Jar.java")]
        subprocess.run(compiled, check=True, capture_output=True, timeout=100)
    return command.format(python=sys.executable, classes=folder / "classes")


@pytest.mark.parametrize("name", CLIENTS)
async def test_session_of_a_real_client_is_kept(stage: Stage, name: str) -> None:
    """Over https://, over http:// and on the reverse port, however the upstream writes its redirect and its cookie."""
    command = await asyncio.to_thread(_filled, CLIENTS[name], stage.folder)
    kinds = list(KINDS)
    secure_kinds = [kind for kind in kinds if kind != "plain"]
    plain = stage.url.replace("https://", "http://", 1)

    printed = await stage.under_exec(" ".join([command, stage.url, *secure_kinds, "&&", command, plain, *kinds]))
    printed += await stage.run(" ".join([command, stage.reverse, *kinds]))

    assert printed.splitlines() == [f"{kind} sid={kind} sid={kind}" for kind in (*secure_kinds, *kinds, *kinds)]
