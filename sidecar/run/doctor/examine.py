"""The whole diagnosis: what can be told of this machine, then every credential and its upstreams, side by side."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, SidecarError
from sidecar.run.credentials import AT_ONCE, Credential, credentials
from sidecar.run.doctor import machine, storing
from sidecar.run.doctor.check import Check, Row, Verdict, failed, passed
from sidecar.run.doctor.subject import SECONDS, in_memory, subject
from sidecar.run.join import find_running
from sidecar.run.operator import act, opened_store
from sidecar.settings import Settings, Upstream, configuration_file, load


def diagnose(path: Path | None, overrides: Sequence[str], upstream: str | None) -> list[Check]:
    """Return what there is to say of the configuration in *path* and of one upstream, None: of all.

    Raises ConfigurationError for an upstream that is not in it; all else that is wrong is a line.
    """
    clock = SystemClock()
    try:
        settings = load(path, overrides=overrides)
        credentials(settings, clock, read=False)
    except ConfigurationError as error:
        return [failed(Row.CONFIGURATION, str(error), "correct it; auth-sidecar check tells of it without the network")]
    names = list(settings.upstreams) if upstream is None else [upstream]
    if unknown := set(names) - settings.upstreams.keys():
        known = ", ".join(settings.upstreams)
        raise ConfigurationError(f"upstream {unknown.pop()} is not configured; expected one of: {known}")
    settings = settings.model_copy(update={"upstreams": {name: settings.upstreams[name] for name in names}})
    running = find_running(settings)
    alone = {
        name: _state(settings, name)
        for name, each in settings.upstreams.items()
        if running is not None and in_memory(settings, each) and _one(each)
    }
    addresses = running.addresses if running else {}
    trust = machine.ca(settings, os.environ, addresses)
    count = f"{len(names)} upstream{'' if len(names) == 1 else 's'}"
    found = [
        passed(Row.CONFIGURATION, f"{configuration_file(path)} can be used; {count}"),
        *machine.proxy(settings, os.environ, addresses, clock),
        *([trust] if trust else []),
        *asyncio.run(_examine(settings, alone)),
    ]
    order = list(Row)
    return sorted(found, key=lambda each: (_place(each, names), order.index(each.name)))


def _place(check: Check, names: list[str]) -> int:
    return -1 if check.upstream is None else names.index(check.upstream)


def _one(upstream: Upstream) -> bool:
    """Tell whether another login would end the session of a sidecar that runs."""
    return upstream.system is not None and upstream.system.sessions.per_account == "one"


def _state(settings: Settings, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = act(settings, "show", name).get(name, {})
    except SidecarError:
        return {}
    return found


async def _examine(settings: Settings, alone: Mapping[str, dict[str, Any]]) -> list[Check]:
    unread = await machine.secrets(settings, SECONDS)
    found = [*unread, machine.state_dir(settings)]
    if found[-1].verdict is not Verdict.PASS:
        return found
    secretless = frozenset(check.upstream for check in unread if check.verdict is not Verdict.PASS)
    try:
        async with opened_store(settings) as shared:
            every = credentials(settings, shared.clock, shared.contexts)
            found += await storing.store(settings, shared, every, SECONDS)
            turns = asyncio.Semaphore(AT_ONCE)

            async def one(credential: Credential) -> list[Check]:
                async with turns:
                    return await subject(settings, shared, credential, alone, secretless)

            parts = await asyncio.gather(*map(one, every))
            return [*found, *(check for checks in parts for check in checks)]
    except ConfigurationError as error:
        if None in secretless:
            return found  # it is that secret
        return [*found, failed(Row.STORE, str(error), "check store.keys and the files in state_dir")]
