"""The neighbours that most tests of the running proxy need: an issuer, and upstreams that record."""

from collections.abc import AsyncIterator

import pytest

from tests.rig import Recorder, TokenServer, recorder, token_server


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
