"""The neighbours that most tests of the running proxy need: an issuer, and upstreams that record."""

from collections.abc import AsyncIterator

import pytest
from mitmproxy.proxy import commands

from tests import rig
from tests.rig import Recorder, TokenServer, recorder, token_server


async def _look_on(_: commands.StartHook) -> None:
    """See a hook as an addon does that changes nothing."""


@pytest.fixture(params=["direct", "addons"])
def both_modes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the sidecars of a test as `run` does, and again with mitmproxy's streams and flows in the way."""
    if request.param == "addons":
        monkeypatch.setattr(rig, "dispatch", _look_on)
    return str(request.param)


@pytest.fixture
async def tokens() -> AsyncIterator[TokenServer]:
    """A token endpoint."""
    async with token_server() as state:
        yield state


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    """An upstream over plain HTTP."""
    async with recorder() as record:
        yield record


@pytest.fixture
async def other() -> AsyncIterator[Recorder]:
    """Another one."""
    async with recorder() as record:
        yield record
