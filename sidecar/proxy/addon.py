"""The sidecar as a mitmproxy addon, for `mitmdump -s` and `mitmweb -s`: the same proxy, seen through their eyes.

Flows are a copy for the eye, made in `flows`: neither the client's credential is in them nor ours.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader
from mitmproxy.exceptions import AddonHalt
from mitmproxy.flow import Flow
from mitmproxy.hooks import UpdateHook
from mitmproxy.proxy import commands

from sidecar.errors import ConfigurationError
from sidecar.proxy.port import Dispatch

Start = Callable[[Dispatch], contextlib.AbstractAsyncContextManager[Any]]
Prepare = Callable[[Path | None], Start]
"""Reads the configuration at a path (None: the default places) and returns what serves it."""

_OPTION = "auth_sidecar_config"


class AuthSidecar:
    """Opens our listeners in mitmproxy's loop and hands its addons every hook; its own listener is closed."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._start: Start | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def load(self, loader: Loader) -> None:
        """Declare the option that names the configuration file."""
        loader.add_option(_OPTION, str, "", "Configuration file of auth-sidecar; default: its usual places")

    def configure(self, updated: set[str]) -> None:
        """Read the configuration; one that cannot be used ends mitmproxy with its one line and exit code 1."""
        if _OPTION in updated and self._task is None:
            named = getattr(ctx.options, _OPTION)
            try:
                self._start = self._prepare(Path(named) if named else None)
            except ConfigurationError as error:
                # Not OptionsError, which mitmproxy shows with a traceback; an error logged at its start ends it.
                logging.getLogger(__name__).error("%s", error)  # noqa: TRY400

    async def running(self) -> None:
        """Serve. mitmproxy's own port is closed here; in `load` that would be too late for it."""
        ctx.options.update(server=False)
        if self._start is not None:
            self._task = asyncio.get_running_loop().create_task(self._serve(self._start), name="auth-sidecar")

    async def done(self) -> None:
        """Drain and close."""
        self._stop.set()
        if self._task is not None:
            await self._task

    async def _serve(self, start: Start) -> None:
        try:
            async with start(_dispatch):
                await self._stop.wait()
        except Exception:
            ctx.master.shutdown()
            raise


async def _dispatch(hook: commands.StartHook) -> None:
    """Tell every addon of *hook*; raises what the first that failed did, which mitmproxy itself would only log."""
    failure: Exception | None = None
    for addon in tuple(ctx.master.addons.chain):
        try:
            await ctx.master.addons.invoke_addon(addon, hook)
        except AddonHalt:
            break
        except Exception as error:
            logging.getLogger(__name__).exception("an addon failed in %s", hook.name)
            failure = failure or error
    if isinstance(flow := hook.args()[0], Flow):
        await ctx.master.addons.trigger_event(UpdateHook([flow]))
    if failure is not None:
        raise failure
