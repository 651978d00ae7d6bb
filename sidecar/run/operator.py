"""What an operator does to the tokens: through the running sidecar, or on its store when none runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, SidecarError, StoreError
from sidecar.events import Event
from sidecar.run.credentials import Shared, credentials, make_brokers
from sidecar.run.join import Running, find_running, host_and_port
from sidecar.run.state import MARKS, admin_token, prepare
from sidecar.run.status import upstream_status
from sidecar.run.stores import instance_name, instances, open_store
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
    return asyncio.run(_act(settings, running, action, names))


async def _act(settings: Settings, running: Running | None, action: Action, names: list[str]) -> dict[str, Any]:
    states = None if running is None else await _remotely(running, settings, action, names)
    if states is None:
        states = await _locally(settings, action, names)
    fleet = await _fleet(settings)
    return {name: state | {"instances": fleet.get(name, {})} for name, state in states.items()}


async def _remotely(running: Running, settings: Settings, action: Action, names: list[str]) -> dict[str, Any] | None:
    """Return the states by name; None when the admin port serves no more than health, to others or on a socket."""
    try:
        host, port = host_and_port(running.addresses["admin"])
    except ValueError:
        return None
    base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    proof = {"Authorization": f"Bearer {admin_token(settings).reveal()}"}
    client = httpx.AsyncClient(base_url=base_url, headers=proof, trust_env=False, timeout=_SHORT)
    async with _asking(), client:
        status = await client.get("/status")
        if status.status_code == httpx.codes.NOT_FOUND:
            return None
        if action != "show":
            for name in names:
                patience = settings.upstreams[name].renew.timeout + _SHORT
                _checked(await client.post(f"/upstreams/{name}/{action}", timeout=patience), name)
            status = await client.get("/status")
        states = _checked(status, "status")["upstreams"]
        return {name: states[name] for name in names if name in states}


@contextlib.asynccontextmanager
async def _asking() -> AsyncIterator[None]:
    """Turn what can go wrong between us and the sidecar into an error of ours."""
    try:
        yield
    except httpx.HTTPError as error:
        raise SidecarError(f"the running sidecar gave no answer ({type(error).__name__}); see its log") from None


def _checked(answer: httpx.Response, what: str) -> dict[str, Any]:
    content: dict[str, Any] = answer.json()
    if answer.status_code != httpx.codes.OK:
        raise SidecarError(f"{what}: {content.get('detail', answer.status_code)}")
    return content


async def _locally(settings: Settings, action: Action, names: list[str]) -> dict[str, Any]:
    states: dict[str, Any] = {}
    async with opened_store(settings) as shared:
        for credential in credentials(settings, shared.clock):
            if not (wanted := [name for name in credential.names if name in names]):
                continue
            pool = make_brokers(credential, settings, shared)
            try:
                for broker in pool:
                    await broker.recall()
                    if action == "renew":
                        await broker.renew()
                    elif action == "revoke":
                        await broker.revoke()
                states |= {name: upstream_status(pool) for name in wanted}
            finally:
                for broker in pool:
                    await broker.aclose()
    return states


async def _fleet(settings: Settings) -> dict[str, dict[str, int]]:
    """Return, by upstream, which generation each instance uses; empty when the store does not answer."""
    found: dict[str, dict[str, int]] = {}
    with contextlib.suppress(StoreError):
        async with opened_store(settings) as shared:
            for instance, word in sorted((await instances(shared.store, shared.keys)).items()):
                for name, generation in word.get("generations", {}).items():
                    found.setdefault(name, {})[instance] = generation
    return found


def _ignore(event: Event) -> None:
    del event


@contextlib.asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Shared]:
    """Open store and keys for one command; events go nowhere. Raises ConfigurationError."""
    prepare(settings.state_dir)
    clock = SystemClock()
    store, keys = open_store(settings, clock)
    try:
        yield Shared(
            store=store, keys=keys, owner=instance_name(), clock=clock, emit=_ignore, marks=settings.state_dir / MARKS
        )
    finally:
        await store.aclose()
