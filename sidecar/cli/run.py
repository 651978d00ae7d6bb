"""`auth-sidecar run`."""

import gc
from typing import Annotated, Any

import typer

from sidecar.cli.options import ConfigOption, SetOption
from sidecar.errors import ConfigurationError
from sidecar.settings import Settings, configuration_file, load


def run(
    config: ConfigOption = None,
    overrides: SetOption = None,
    upstream: Annotated[str | None, typer.Option(metavar="URL", help="Base URL of a single upstream.")] = None,
    token_url: Annotated[str | None, typer.Option(metavar="URL", help="Its token endpoint.")] = None,
    client_id: Annotated[str | None, typer.Option(metavar="ID", help="The client id there.")] = None,
    client_secret_file: Annotated[str | None, typer.Option(metavar="FILE", help="File of the client secret.")] = None,
    grace: Annotated[
        str | None, typer.Option(metavar="DURATION", help="What SIGTERM leaves to requests in flight.")
    ] = None,
    for_exec: Annotated[bool, typer.Option("--for-exec", hidden=True)] = False,
    worker: Annotated[str | None, typer.Option("--worker", hidden=True)] = None,
) -> None:
    """Serve in the foreground until SIGTERM; read the configuration again on SIGHUP and when a file of it has changed.

    Example: auth-sidecar run -c auth-sidecar.yaml --set listen.proxy=127.0.0.1:9000
    """
    single = {
        "--upstream": upstream,
        "--token-url": token_url,
        "--client-id": client_id,
        "--client-secret-file": client_secret_file,
    }
    changes = [*(overrides or ()), *([f"grace={grace}"] if grace else [])]
    base = _single_upstream(single)
    file = configuration_file(config)

    def read() -> Settings:
        return load(file, overrides=changes, base=base)

    settings = read()
    if settings.workers != 1 and not worker and not for_exec:
        from sidecar.run.supervisor import supervise

        given = [f"{name}={value}" for name, value in single.items() if value]
        given += [f"--set={change}" for change in changes] + ([f"--config={config}"] if config else [])
        supervise(settings, given)
        return
    gc.disable()  # what a start makes stays; `serve` turns it on again
    from sidecar.run.service import serve

    serve(read, file, for_exec=for_exec, worker=worker)


def _single_upstream(options: dict[str, str | None]) -> dict[str, Any] | None:
    """Return a configuration of one upstream named `upstream`, None when no such option was given."""
    given = [name for name, value in options.items() if value]
    if not given:
        return None
    if missing := [name for name in options if name not in given]:
        raise ConfigurationError(f"{given[0]} also needs {', '.join(missing)}; or use a configuration file")
    return {
        "upstreams": {
            "upstream": {
                "base_url": options["--upstream"],
                "oauth2": {
                    "token_url": options["--token-url"],
                    "client_id": options["--client-id"],
                    "client_secret": {"file": options["--client-secret-file"]},
                },
            }
        }
    }
