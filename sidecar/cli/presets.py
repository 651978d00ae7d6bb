"""`auth-sidecar presets`."""

import json
from typing import Annotated, Any

import typer

from sidecar.cli.options import JsonOption
from sidecar.errors import ConfigurationError


def presets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes that come with the product, or show one, who says so, and a configuration to begin with.

    Example: auth-sidecar presets arena
    """
    from sidecar.settings.shipped import PRESETS, preset_text, resolved

    if name is None:
        titles = {each: resolved({"extends": each}).title for each in PRESETS}
        print(json.dumps(titles, indent=2) if as_json else "\n".join(f"{id_:12} {titles[id_]}" for id_ in titles))
        return
    try:
        text = preset_text(name)
    except ValueError as error:
        raise ConfigurationError(f"preset {name}: {error}") from None
    shown = _shown(name)
    if as_json:
        print(json.dumps(shown, indent=2))
        return
    print(f"# {shown['title']}\n\n{text}")
    for heading, key in (("Who says so", "facts"), ("Ask the administrator for", "ask"), ("Not so", "myths")):
        if shown[key]:
            print(f"# {heading}:")
            print("\n".join(f"#   {line}" for line in shown[key]), end="\n\n")
    print(f"# A configuration to begin with:\n{_yaml(shown['configuration'])}", end="")


def _shown(name: str) -> dict[str, Any]:
    from sidecar.settings.shipped import preset_data, resolved, starting

    recipe = resolved({"extends": name})
    said = {
        "documented by the vendor": recipe.facts.documented,
        "seen in vendor code": recipe.facts.vendor_code,
        "seen in client code": recipe.facts.client_code,
        "inferred": recipe.facts.inferred,
    }
    return {
        "title": recipe.title,
        "recipe": preset_data(name),
        "facts": [f"{fact} ({source})" for source, found in said.items() for fact in found],
        "ask": list(recipe.ask),
        "myths": list(recipe.myths),
        "configuration": starting(recipe),
    }


def _yaml(data: Any) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()
