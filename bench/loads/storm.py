"""Two hundred clients that never pause, and in their midst every token is revoked."""

import asyncio
import json
import ssl
import statistics
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx

from bench.contenders import sidecar
from bench.figures import OURS, Sample
from bench.plan import Plan
from bench.programs import line, output, program
from sidecar.clock import SystemClock
from sidecar.emulator import Account
from tests.rig import configuration

CASE = "storm, 200 clients"
CALM = "calm p99 ms"
SLOWEST = "slowest in the storm ms"
ENDPOINT = "token endpoint ms"
CALLS = "token calls"
SEEN = "401s seen"
FAILED = "other failures seen"

_CLIENTS = 200
_ENDPOINT_SECONDS = 0.3
_WARM_UP = 1.0
_PATH = "/api/v1/health"
_UNAUTHORIZED, _OK = 401, 200


async def storm(plan: Plan) -> AsyncGenerator[Sample]:
    """The emulator as upstream; each round with a sidecar of its own, so that `renew.min_interval` holds nothing up."""
    plan.say(CASE)
    for number in range(plan.effort.storms):
        folder = plan.folder / f"storm-{number}"
        folder.mkdir()
        log = folder / "emulator.log"
        lives = ("--lifetime", "7200", "--supplier-lifetime", "7200")
        async with program(sys.executable, "-O", "-m", "sidecar.emulator", *lives, log=log) as emulator:
            plm = json.loads(await line(emulator, "the emulator", log))
            for what, value in (await _round(plm, folder, plan.effort.storm_seconds)).items():
                yield Sample("storm", CASE, OURS, what, value)


async def _round(plm: Mapping[str, Any], folder: Path, seconds: int) -> dict[str, float]:
    clock = SystemClock()
    secret = {"client_id": plm["client_id"], "client_secret": {"value": Account().client_secret}}
    data = configuration(plm["base_url"], plm["token_url"], folder / "state", tls={"ca": plm["ca_path"]}, oauth2=secret)
    context = ssl.create_default_context(cafile=plm["ca_path"])
    async with (
        httpx.AsyncClient(base_url=plm["control_url"], verify=context, trust_env=False, timeout=30) as control,
        sidecar(data, folder) as (_, ports),
    ):
        await _first_token(control, ports["admin"])
        slow = {"token_delay": _ENDPOINT_SECONDS}
        before = (await control.post("/switches", json=slow)).raise_for_status().json()["counters"]["token_calls"]
        span = _WARM_UP + 2 * seconds
        options = ("--connections", str(_CLIENTS), "--seconds", f"{span:g}", "--path", _PATH)
        command = (sys.executable, "-O", "-m", "bench.clients", str(ports["plm"]), *options)
        async with asyncio.TaskGroup() as group:
            clients = group.create_task(output(*command, within=span + 90))
            await clock.sleep(_WARM_UP + seconds)
            revoked = clock.monotonic()
            (await control.post("/revoke")).raise_for_status()
        after = (await control.get("/state")).raise_for_status().json()["counters"]["token_calls"]
    each, failed, refused = json.loads(clients.result())
    return _figures(each, revoked, seconds) | {
        CALLS: sum(after.values()) - sum(before.values()),
        FAILED: failed + refused + sum(status not in (_OK, _UNAUTHORIZED) for _, _, status in each),
    }


async def _first_token(client: httpx.AsyncClient, port: int) -> None:
    """Wait until the sidecar has its first token: it serves before that."""
    async with asyncio.timeout(30):
        while (await client.get(f"http://127.0.0.1:{port}/readyz")).is_error:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)


def _figures(each: list[tuple[float, float, int]], revoked: float, seconds: float) -> dict[str, float]:
    """Return what the clients saw; *each* as in `bench.clients.Answers`."""
    calm = [took for ended, took, _ in each if revoked - seconds < ended <= revoked]
    stormy = [took for ended, took, _ in each if ended > revoked]
    return {
        CALM: statistics.quantiles(calm, n=100)[98] * 1000,
        SLOWEST: max(stormy) * 1000,
        ENDPOINT: _ENDPOINT_SECONDS * 1000,
        SEEN: sum(status == _UNAUTHORIZED for _, _, status in each),
    }
