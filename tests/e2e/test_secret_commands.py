"""A sidecar whose secrets come from programs, as processes: one fails, one changes its mind, one hangs."""

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sidecar.emulator import Emulator, Switches
from tests.canary import canary
from tests.process import Running, start_sidecar
from tests.rig import configuration, problem_of, raw, status_of
from tests.waiting import eventually, until

REQUEST = b"GET /items HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def program(folder: Path, body: str) -> dict[str, list[str]]:
    """Return a secret from a program in *folder* that does *body*; `$run` is the number of this run of it, from 1."""
    folder.mkdir()
    path, runs = folder / "program", shlex.quote(str(folder / "runs"))
    path.write_text(f"#!/bin/sh\necho run >>{runs}\nrun=$(wc -l <{runs})\n{body}\n")
    path.chmod(0o755)
    return {"command": [str(path), canary("argument")]}


def runs(folder: Path) -> int:
    """Return how often the program in *folder* was run."""
    path = folder / "runs"
    return path.read_text().count("\n") if path.exists() else 0


def configured(plm: Emulator, folder: Path, client_secret: Any) -> dict[str, Any]:
    oauth2 = {"client_id": plm.client_id, "client_secret": client_secret}
    state = folder / "state"
    return configuration(plm.base_url, plm.token_url, state, tls={"ca": str(plm.ca_path)}, oauth2=oauth2)


async def get(running: Running) -> int:
    return status_of(await raw(running.port("plm"), REQUEST))


async def test_command_that_fails_at_first_is_waited_for(tmp_path: Path, outputs: Path) -> None:
    """The sidecar starts, says what failed, and serves once the program works, without a restart."""
    async with Emulator.start(switches=Switches()) as plm:
        body = f'[ "$run" -gt 2 ] || exit 7\nprintf %s {shlex.quote(plm.client_secret)}'
        secret = program(tmp_path / "vault", body)
        async with start_sidecar(configured(plm, tmp_path, secret), tmp_path, outputs / "fails-first.log") as running:
            await until(lambda: running.log_events("renewal"), "the failure is told")
            told = running.log_events("renewal")[0]
            answer = await raw(running.port("plm"), REQUEST)
            if status_of(answer) != 404:
                assert problem_of(answer)["reason"] == "credential_rejected"
            await eventually(lambda: get(running), 404)

        assert f"secret command {secret['command'][0]} failed: exit code 7" in json.dumps(told)
        assert runs(tmp_path / "vault") == 3


async def test_secret_that_has_changed_is_asked_for_after_a_refusal(tmp_path: Path, outputs: Path) -> None:
    """A refused secret has its program run again, and the new one is used, without a restart."""
    async with Emulator.start(switches=Switches()) as plm:
        new = shlex.quote(plm.client_secret)
        secret = program(tmp_path / "vault", f'[ "$run" -gt 1 ] && printf %s {new} || echo {canary("old")}')
        async with start_sidecar(configured(plm, tmp_path, secret), tmp_path, outputs / "changed.log") as running:
            await eventually(lambda: get(running), 404)
            results = [event["result"] for event in running.log_events("renewal")]

        assert (results[0], results[-1]) == ("rejected", "ok")
        assert runs(tmp_path / "vault") == 2


async def test_program_that_hangs_holds_nothing_up(tmp_path: Path, outputs: Path) -> None:
    """While one upstream's program takes its time, the other upstream and the admin port answer."""
    async with Emulator.start(switches=Switches()) as plm:
        data = configured(plm, tmp_path, {"value": plm.client_secret})
        gate = shlex.quote(str(tmp_path / "go"))
        slow = program(tmp_path / "vault", f"while [ ! -e {gate} ]; do sleep 0.1; done; printf %s {canary('slow')}")
        other = configured(plm, tmp_path, slow)["upstreams"]["plm"] | {"base_url": f"{plm.base_url}/other"}
        other["oauth2"] |= {"client_id": "other"}
        data["upstreams"]["other"] = other
        async with start_sidecar(data, tmp_path, outputs / "hangs.log") as running:
            await until(lambda: runs(tmp_path / "vault"), "the program runs")
            found = await get(running)
            alive = await raw(
                running.port("admin"), b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            hung = not (tmp_path / "go").exists() and runs(tmp_path / "vault")
            (tmp_path / "go").touch()

        assert (found, status_of(alive), hung) == (404, 200, 1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_start_waits_for_the_program_of_the_store_key(tmp_path: Path, outputs: Path, workers: int) -> None:
    """`ready` comes when the key is there; why it takes so long stands in the log, without a word of the program's."""
    log = outputs / f"store-key-{workers}.log"
    async with Emulator.start(switches=Switches()) as plm:
        key = "a" * 43 + "="
        gate = shlex.quote(str(tmp_path / "go"))
        secret = program(tmp_path / "vault", f"[ -e {gate} ] || {{ echo {canary('stderr')} >&2; exit 9; }}\necho {key}")
        data = configured(plm, tmp_path, {"value": plm.client_secret}) | {
            "store": {"keys": [secret]},
            "workers": workers,
        }

        async def open_the_gate() -> None:
            await until(lambda: log.exists() and "failed: exit code 9; waiting for it" in log.read_text(), "it is told")
            (tmp_path / "go").touch()

        opening = asyncio.create_task(open_the_gate())
        async with start_sidecar(data, tmp_path, log) as running:
            assert opening.done()
            assert await get(running) == 404
        await opening
