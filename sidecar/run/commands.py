"""Waiting for the programs that secrets come from, where a start needs what they print."""

import sys
from types import ModuleType

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.events import Emit, Trouble
from sidecar.settings import Settings, commands_of_start, prime

_AGAIN = 1.0
"""Seconds between two looks; how often a program is run is its own affair."""


async def wait_for_commands(settings: Settings, clock: Clock, emit: Emit) -> None:
    """Wait until every `commands_of_start` gave a secret; a credential is waited for by the requests that need it.

    Why one is not there is told once. May be cancelled at any time.
    """
    needed, told = commands_of_start(settings), set()
    if not needed:
        return
    tenacity = _tenacity()
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(ConfigurationError), wait=tenacity.wait_fixed(_AGAIN), sleep=clock.sleep
    )
    async for attempt in retrying:
        with attempt:
            await prime(reference for _, reference in needed)
            missing = []
            for path, reference in needed:
                try:
                    reference.read()
                except ConfigurationError as error:
                    missing.append(f"{path}: {error}; waiting for it")
            for detail in missing:
                if detail not in told:
                    told.add(detail)
                    emit(Trouble(where="secrets", detail=detail))
            if missing:
                raise ConfigurationError(missing[0])


def _tenacity() -> ModuleType:
    """Return tenacity without tornado, which it loads where that is installed: two thirds of its time, for nothing."""
    absent = object()
    tornado = sys.modules.get("tornado", absent)
    if tornado is absent:
        sys.modules["tornado"] = None  # type: ignore[assignment]
    try:
        import tenacity
    finally:
        if tornado is absent:
            del sys.modules["tornado"]
    return tenacity
