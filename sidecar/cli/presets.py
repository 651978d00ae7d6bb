"""`auth-sidecar presets`."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from sidecar.cli.options import JsonOption
from sidecar.errors import ConfigurationError
from sidecar.settings import Recipe
from sidecar.settings.presets import preset_data, preset_names, preset_text

_PROVENANCE = {
    "documented": "stands in the vendor's documents",
    "vendor_code": "seen in the vendor's code",
    "client_code": "seen in code of working clients",
    "inferred": "inferred; try it",
}
_EXAMPLES = {"int": 123, "bool": True, "str": "..."}


def presets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one; default: list all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the built-in systems; with NAME its recipe, who says so, a ready configuration, and what to ask for.

    Example: auth-sidecar presets arena
    """
    if name is None:
        titles = {each: preset_data(each)["title"] for each in preset_names()}
        print(json.dumps(titles, indent=2) if as_json else "\n".join(f"{each:12} {titles[each]}" for each in titles))
        return
    try:
        recipe = Recipe.model_validate(preset_data(name))
    except ValueError as error:
        raise ConfigurationError(f"presets: {error}") from None
    if as_json:
        print(json.dumps(preset_data(name), indent=2))
        return
    print("\n".join(_lines(name, recipe)))


def _lines(name: str, recipe: Recipe) -> Iterator[str]:
    yield f"{name}: {recipe.title}"
    yield "\n# The recipe\n"
    yield preset_text(name).rstrip()
    yield "\n# Who says so\n"
    for kind, words in _PROVENANCE.items():
        for fact in getattr(recipe.facts, kind):
            yield f"- {fact}: {words}"
    yield "\n# A configuration\n"
    yield configuration(name, recipe)
    yield "\n# What to ask the administrator for\n"
    yield from (f"- {wish}" for wish in recipe.ask)


def configuration(name: str, recipe: Recipe) -> str:
    """Return a configuration with the preset *name* that is accepted as it stands; secrets are files."""
    credential: dict[str, Any] = {}
    for variable, wanted in recipe.vars.items():
        if wanted.secret:
            credential[variable] = {"file": f"/run/secrets/{name}-{variable}"}
        elif wanted.default is None and not wanted.optional:
            credential[variable] = _EXAMPLES[wanted.type]
    shown = ", ".join(f"{key}: {_value(value)}" for key, value in credential.items())
    upstream = name.replace("-", "_")
    base = recipe.base or "https://plm.example.com"
    return f"upstreams:\n  {upstream}:\n    base_url: {base}\n    preset: {name}\n    credential: {{{shown}}}"


def _value(value: Any) -> str:
    return f"{{file: {value['file']}}}" if isinstance(value, dict) else json.dumps(value)
