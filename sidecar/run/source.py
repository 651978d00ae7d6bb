"""What the admin port shows and does, from a sidecar that serves."""

import asyncio
import os
import signal
from typing import Protocol

from sidecar import __version__
from sidecar.observe.admin import Source
from sidecar.observe.metrics import Metrics
from sidecar.run.findings import Findings
from sidecar.run.status import problems, status
from sidecar.run.supervisor import Inherited
from sidecar.settings import Settings
from sidecar.tokens.broker import Broker


class Serving(Protocol):
    """What is told of a sidecar that serves; *refused*: why the last reload was."""

    stopping: bool
    refused: str

    @property
    def settings(self) -> Settings:
        """The settings in effect."""

    @property
    def pools(self) -> dict[str, tuple[Broker, ...]]:
        """The brokers of all sessions, by upstream."""

    @property
    def addresses(self) -> dict[str, str]:
        """The bound addresses."""

    async def exec_port(self) -> str:
        """Return where commands of `exec` are served."""


def make_source(app: Serving, metrics: Metrics, findings: Findings, inherited: Inherited | None) -> Source:
    """Return the source of *app*; a worker speaks for all, under the process id of its supervisor."""

    def tell() -> None:
        """Have the other workers look at the store."""
        if inherited is not None:
            os.kill(inherited.supervisor, signal.SIGUSR1)

    async def renew(name: str) -> None:
        for broker in app.pools[name]:  # one after the other: a wrong password is tried once
            await broker.renew()
        tell()

    async def revoke(name: str) -> None:
        await asyncio.gather(*(broker.revoke() for broker in app.pools[name]))
        tell()

    return Source(
        status=lambda: (
            status(app.pools, app.addresses, __version__, metrics.breakers(), findings.quotas())
            | {"reload_refused": app.refused or None, "findings": findings.now()}
        ),
        problems=lambda: {"sidecar": "shutting down"} if app.stopping else problems(app.settings.upstreams, app.pools),
        renew=renew,
        revoke=revoke,
        upstreams=lambda: app.pools,
        exec_port=app.exec_port,
        metrics=metrics.render,
        pid=inherited.supervisor if inherited else os.getpid(),
    )
