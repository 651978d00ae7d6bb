"""What an operator does to the tokens: through the running sidecar, or on its store when none runs."""

import asyncio
from typing import Any, Literal

import httpx

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.events import Event
from sidecar.run.credentials import make_broker, make_issuer
from sidecar.run.join import Running, find_running
from sidecar.run.state import admin_token, open_store, prepare
from sidecar.run.status import upstream_status
from sidecar.settings import Settings

_SHORT = 2.0


Action = Literal["show", "renew", "revoke"]


def act(settings: Settings, action: Action, upstream: str | None) -> dict[str, Any]:
    """Do *action* to one upstream's token, None: to all, and return their states by name.

    Raises ConfigurationError for an unknown upstream, IssuerError or StoreError when the action failed.
    """
    names = list(settings.upstreams) if upstream is None else [upstream]
    if unknown := set(names) - settings.upstreams.keys():
        known = ", ".join(settings.upstreams)
        raise ConfigurationError(f"upstream {unknown.pop()} is not configured; expected one of: {known}")
    running = find_running(settings)
    return asyncio.run(
        _locally(settings, action, names) if running is None else _remotely(running, settings, action, names)
    )


async def _remotely(running: Running, settings: Settings, action: Action, names: list[str]) -> dict[str, Any]:
    base_url = f"http://{running.addresses['admin']}"
    async with httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=_SHORT) as client:
        if action != "show":
            proof = {"Authorization": f"Bearer {admin_token(settings).reveal()}"}
            for name in names:
                patience = settings.upstreams[name].renew.timeout + _SHORT
                answer = await client.post(f"/upstreams/{name}/{action}", headers=proof, timeout=patience)
                if answer.status_code != httpx.codes.OK:
                    raise SidecarError(f"{name}: {answer.json()['detail']}")
        states = (await client.get("/status")).json()["upstreams"]
        return {name: states[name] for name in names if name in states}


async def _locally(settings: Settings, action: Action, names: list[str]) -> dict[str, Any]:
    def ignore(event: Event) -> None:
        del event

    prepare(settings.state_dir)
    clock = SystemClock()
    store, ring = open_store(settings)
    states = {}
    try:
        for name in names:
            upstream = settings.upstreams[name]
            broker = make_broker(name, upstream, make_issuer(upstream, clock), store, ring, clock, ignore)
            try:
                await broker.recall()
                if action == "renew":
                    await broker.renew()
                elif action == "revoke":
                    await broker.revoke()
                states[name] = upstream_status(broker, clock.now())
            finally:
                await broker.aclose()
    finally:
        await store.aclose()
    return states
