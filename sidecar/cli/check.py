"""`auth-sidecar check`."""

import json
import sys
from typing import Annotated

import typer
from ruamel.yaml import YAML

from sidecar.cli.options import ConfigOption, JsonOption, SetOption
from sidecar.errors import ConfigurationError
from sidecar.settings import Settings, effective, load


def check(
    config: ConfigOption = None,
    overrides: SetOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the file instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate the configuration, without network and without reading secrets, and print the effective one.

    Recipes of your own are looked into as well: steps that are never taken, signals of death that hold for the living.

    Example: auth-sidecar check -c auth-sidecar.yaml
    """
    if schema:
        print(json.dumps(Settings.model_json_schema(), indent=2))
        return
    from sidecar.clock import SystemClock
    from sidecar.run.credentials import credentials
    from sidecar.run.systems import doubts_of

    settings = load(config, overrides=overrides or ())
    credentials(settings, SystemClock(), read=False)
    if doubts := doubts_of(settings):
        more = f" (and {len(doubts) - 1} more)" if doubts[1:] else ""
        raise ConfigurationError(doubts[0] + more)
    plain = effective(settings)
    if as_json:
        print(json.dumps(plain, indent=2))
        return
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(plain, sys.stdout)
