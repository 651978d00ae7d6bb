"""The same proxy inside mitmproxy's own tools; what they show and save holds no credential."""

import asyncio
import http.client
import json
import shutil
import ssl
import sys
from pathlib import Path
from urllib.parse import urlsplit

from sidecar.emulator import Emulator, Switches
from tests.canary import canary
from tests.redis_servers import free_port
from tests.rig import configuration, raw, status_of
from tests.waiting import PATIENCE

TOP = Path(__file__).parents[2]
ADDON = TOP / "addons/auth_sidecar.py"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP)}


def _through_connect(port: int, base_url: str, roots: Path) -> int:
    """Make a request inside CONNECT and return its status."""
    target = urlsplit(base_url)
    assert target.hostname
    context = ssl.create_default_context(cafile=str(roots))
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE)
    connection.set_tunnel(target.hostname, target.port)
    connection.request("GET", "/echo/inside", headers={"Authorization": f"Bearer {canary('inside')}"})
    status = connection.getresponse().status
    connection.close()
    return status


async def test_mitmdump_serves_and_its_dumps_hold_no_credential(tmp_path: Path, outputs: Path) -> None:
    """`mitmdump -s` serves through the sidecar; log, flow file and HAR show bodies, and no credential of anybody's."""
    port = free_port()
    log = outputs / "mitmdump.log"
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        oauth2 = {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}}
        state = tmp_path / "state"
        data = configuration(plm.base_url, plm.token_url, state, tls={"ca": str(plm.ca_path)}, oauth2=oauth2)
        data["listen"]["proxy"] = f"127.0.0.1:{port}"
        (tmp_path / "config.yaml").write_text(json.dumps(data))
        command = shutil.which("mitmdump", path=str(Path(sys.executable).parent))
        assert command is not None
        settings = {
            "server": "false",
            "auth_sidecar_config": tmp_path / "config.yaml",
            "confdir": tmp_path / "conf",
            "hardump": outputs / "mitmdump.har",
        }
        arguments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                *(command, "-s", str(ADDON), "-w", str(outputs / "mitmdump.flows"), *arguments),
                stdout=stream,
                stderr=stream,
                cwd=tmp_path,
                env=ENVIRONMENT,
            )
        try:
            async with asyncio.timeout(PATIENCE):
                while b'"event": "ready"' not in log.read_bytes():
                    await asyncio.sleep(0.1)
            target = plm.base_url.replace("https://", "http://", 1).encode()
            secret = canary("own").encode()
            head = (
                b"POST %b/echo/x?access_token=%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\nCookie: s=%b\r\n"
                % (
                    target,
                    secret,
                    secret,
                    secret,
                )
            )
            answer = await raw(port, head + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi")
            inside = await asyncio.to_thread(_through_connect, port, plm.base_url, state / "ca/roots.pem")
        finally:
            process.terminate()
            async with asyncio.timeout(PATIENCE):
                code = await process.wait()

    har = json.loads((outputs / "mitmdump.har").read_text())
    assert status_of(answer) == 200
    assert code == 0
    requests = [entry["request"] for entry in har["log"]["entries"]]
    assert [(each["method"], each["url"].split(":")[0]) for each in requests] == [("POST", "http"), ("GET", "https")]
    contents = [entry["response"]["content"]["text"] for entry in har["log"]["entries"]]
    assert requests[0]["postData"]["text"] == "hi"
    assert [json.loads(content)["target"] for content in contents] == ["/echo/x", "/echo/inside"]
    assert inside == 200
    assert plm.counters.unissued == 0
    assert b"s=" + secret in answer
    assert b"access_token" not in answer


async def test_bad_configuration_ends_mitmdump(tmp_path: Path) -> None:
    """A configuration that cannot be used is one line and exit code 1, not a proxy without us."""
    (tmp_path / "config.yaml").write_text("upstreams: {}")
    command = shutil.which("mitmdump", path=str(Path(sys.executable).parent))
    assert command is not None
    options = ["--set", f"auth_sidecar_config={tmp_path / 'config.yaml'}", "--set", f"confdir={tmp_path / 'conf'}"]
    process = await asyncio.create_subprocess_exec(
        *(command, "-s", str(ADDON), "--set", "server=false", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=ENVIRONMENT,
    )
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate()

    assert process.returncode == 1
    assert b"config.yaml: upstreams:" in output
    assert b"Traceback" not in output
