"""`auth-sidecar explain`."""

from typing import Annotated

import typer

from sidecar.cli.options import ConfigOption, SetOption
from sidecar.errors import ConfigurationError


def explain(
    upstream: Annotated[str | None, typer.Argument(metavar="[UPSTREAM]", help="Default: the only one.")] = None,
    login: Annotated[bool, typer.Option("--login", help="Log in step by step.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also where a login ends the session that runs.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Log in before your eyes: each request and answer with secrets as stars, and what was found in it and what not.

    What is obtained is stored nowhere, and logged out where the recipe knows how.

    Example: auth-sidecar explain --login plm
    """
    if not login:
        raise ConfigurationError("explain: expected --login")
    import asyncio

    from sidecar.clock import SystemClock
    from sidecar.run.explain import explain_login
    from sidecar.settings import load

    settings = load(config, overrides=overrides or ())
    asyncio.run(explain_login(settings, upstream, print, SystemClock(), evict=yes))
