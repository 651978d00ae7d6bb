"""Keys of the store are replaced without anybody asking for a new token."""

import asyncio
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.emulator import Emulator, Switches
from tests.process import start_sidecar
from tests.rig import configuration, raw, status_of

TOP = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "sidecar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=environment)


def settings(plm: Emulator, folder: Path, **store: Any) -> dict[str, Any]:
    oauth2 = {"client_id": plm.client_id, "client_secret": {"value": plm.client_secret}}
    tls = {"ca": str(plm.ca_path)}
    data = configuration(plm.base_url, plm.token_url, folder / "state", tls=tls, oauth2=oauth2) | {"store": store}
    (folder / "config.yaml").write_text(json.dumps(data))
    return data


async def served(port: int, plm: Emulator) -> int:
    target = plm.base_url.replace("https://", "http://", 1).encode()
    answer = await raw(port, b"GET %b/echo/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
    return status_of(answer)


@pytest.mark.parametrize("named", [True, False], ids=["named", "default"])
async def test_rotation_under_a_running_sidecar(tmp_path: Path, outputs: Path, named: bool) -> None:
    """The record is sealed anew, the process goes on, and without the old key a restart finds its token again."""
    async with Emulator.start(switches=Switches(supplier_lifetime=None)) as plm:
        file = tmp_path / "key" if named else tmp_path / "state/store.key"
        if named:
            file.write_text(run("keys", "new", cwd=tmp_path).stdout)
            file.chmod(0o600)
        data = settings(plm, tmp_path, **({"keys": [{"file": str(file)}]} if named else {}))
        log = outputs / f"keys-{named}.log"
        rotate = ("keys", "rotate", "-c", str(tmp_path / "config.yaml"), str(file))
        async with start_sidecar(data, tmp_path, log) as sidecar:
            assert await served(sidecar.port(), plm) == 200
            old = file.read_text().split()
            result = await asyncio.to_thread(run, *rotate, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
            assert result.stdout == f"{file} has a fresh key; 1 records are sealed with it\n"
            fresh = file.read_text().split()
            assert fresh[1:] == old
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert not any(key in result.stdout + result.stderr for key in fresh)
            await asyncio.to_thread(run, "token", "renew", "-c", str(tmp_path / "config.yaml"), cwd=tmp_path)
            assert await served(sidecar.port(), plm) == 200
            sidecar.process.kill()
        calls = plm.counters.token_calls.total()
        file.write_text(fresh[0])
        async with start_sidecar(data, tmp_path, log) as sidecar:
            assert await served(sidecar.port(), plm) == 200

        assert calls == 2
        assert plm.counters.token_calls.total() == calls


def test_printing_changes_nothing(tmp_path: Path) -> None:
    """What goes into a Secret of a cluster: the fresh key first, then what was there, comments included."""
    file = tmp_path / "key"
    file.write_text("# of the plant in Graz\n" + run("keys", "new", cwd=tmp_path).stdout)
    before = file.read_text()
    result = run("keys", "rotate", "--print", str(file), cwd=tmp_path)

    assert result.returncode == 0
    assert result.stdout.partition("\n")[2] == before
    assert len(result.stdout.partition("\n")[0]) == 43
    assert file.read_text() == before


@pytest.mark.parametrize("content", [None, "", "no key\n"])
def test_file_that_is_no_key_file_is_left_alone(tmp_path: Path, content: str | None) -> None:
    """One line that names it, and exit code 2."""
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    result = run("keys", "rotate", "--print", str(file), cwd=tmp_path)

    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert (file.read_text() if file.exists() else None) == content


def test_file_that_the_configuration_does_not_name_is_left_alone(tmp_path: Path) -> None:
    """The records would be sealed with a key that no sidecar reads."""
    file = tmp_path / "key"
    file.write_text(run("keys", "new", cwd=tmp_path).stdout)
    before = file.read_text()
    data = configuration("https://plm.example.com", "https://plm.example.com/token", tmp_path / "state")
    (tmp_path / "config.yaml").write_text(json.dumps(data))
    result = run("keys", "rotate", "-c", str(tmp_path / "config.yaml"), str(file), cwd=tmp_path)

    assert result.returncode == 2
    assert "is not one of store.keys; expected one of:" in result.stderr
    assert file.read_text() == before
