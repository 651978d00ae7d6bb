"""The sidecar as a mitmproxy addon, for `mitmdump -s` and `mitmweb -s`: the same proxy, seen through their eyes.

Flows never hold a credential: the client's is taken out before mitmproxy sees a request, ours goes in after.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy import commands

from sidecar.policy.headers import CREDENTIALS, normal_name
from sidecar.policy.message import Fields
from sidecar.proxy.port import Dispatch

_SECRET_FIELDS = CREDENTIALS | {b"cookie"}


class Run(Protocol):
    """Starts the sidecar with the configuration at a path (None: the default places)."""

    def __call__(
        self, path: Path | None, *, dispatch: Dispatch, show: Callable[[Fields], Fields]
    ) -> contextlib.AbstractAsyncContextManager[Any]:
        """Return a context that serves while it is open."""
        ...


def without_credentials(fields: Fields) -> Fields:
    """Return what a flow may hold: no field that carries a credential of the client's."""
    return tuple(pair for pair in fields if normal_name(pair[0]) not in _SECRET_FIELDS)


class AuthSidecar:
    """Opens our listeners in mitmproxy's loop and hands its addons every hook; its own listener stays closed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def load(self, loader: Loader) -> None:
        """Declare the option that names the configuration file."""
        loader.add_option(
            "auth_sidecar_config", str, "", "Configuration file of auth-sidecar; default: its usual places"
        )

    async def running(self) -> None:
        """Serve; a configuration that cannot be used ends mitmproxy with its one line."""
        ctx.options.update(server=False)
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="auth-sidecar")

    async def done(self) -> None:
        """Drain and close."""
        self._stop.set()
        if self._task is not None:
            await self._task

    async def _serve(self) -> None:
        named = ctx.options.auth_sidecar_config
        try:
            async with self._run(Path(named) if named else None, dispatch=_dispatch, show=without_credentials):
                await self._stop.wait()
        except Exception:
            ctx.master.shutdown()
            raise


async def _dispatch(hook: commands.StartHook) -> None:
    await ctx.master.addons.handle_lifecycle(hook)
