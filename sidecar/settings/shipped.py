"""The recipes that come with the product, and how one of an operator's own extends another."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import ValidationError

from sidecar.settings.explain import explained
from sidecar.settings.recipe import Recipe
from sidecar.settings.soundness import check_names, check_origins
from sidecar.settings.yaml_text import parse

PRESETS = (
    "3dexperience",
    "api-key",
    "aras",
    "arena",
    "arena-oauth",
    "autodesk",
    "basic",
    "oracle-fusion",
    "salesforce",
    "sap-odata",
    "teamcenter",
    "veeva-vault",
    "windchill",
)
"""Their ids, in the order of the alphabet."""


def preset_text(name: str) -> str:
    """Return the YAML of a shipped recipe as it was written; ValueError lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown; expected one of {', '.join(PRESETS)}")
    return (files("sidecar.settings") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def preset(name: str) -> Recipe:
    """Return a shipped recipe; ValueError as `preset_text`."""
    return resolved({"extends": name})


def resolved(data: Mapping[str, Any]) -> Recipe:
    """Return the recipe that *data* says, on top of the one that it extends.

    Mappings are merged key by key, lists and scalars replaced, and null removes a key. ValueError names the key path.
    """
    try:
        recipe = Recipe.model_validate(_whole(data, ()))
    except ValidationError as error:
        raise ValueError(explained(error, Recipe)) from None
    check_names(recipe)
    check_origins(recipe)
    return recipe


def _whole(data: Mapping[str, Any], above: tuple[str, ...]) -> dict[str, Any]:
    if data.get("extends") is None:
        if "recipe" not in data:
            raise ValueError("recipe: missing; expected recipe: 1, the version of the schema, or extends")
        return {key: value for key, value in data.items() if key != "extends"}
    extended = data["extends"]
    for key in ("recipe", "id"):
        if key in data:
            raise ValueError(f"{key}: not with extends; it is that of the extended recipe")
    if extended in above:
        raise ValueError(f"extends: {extended} extends itself")
    try:
        text = preset_text(str(extended))
    except ValueError as error:
        raise ValueError(f"extends: {error}") from None
    below = _whole(parse(text), (*above, extended))
    return merged(below, {key: value for key, value in data.items() if key != "extends"})


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return *below* with what *above* says instead; a null in *above* removes the key."""
    result = {key: value for key, value in below.items() if above.get(key, value) is not None or key not in above}
    for key, value in above.items():
        if isinstance(value, Mapping):
            inner = below.get(key)
            result[key] = merged(inner if isinstance(inner, Mapping) else {}, value)
        elif value is not None:
            result[key] = value
    return result


def preset_data(name: str) -> dict[str, Any]:
    """Return a shipped recipe as plain data; ValueError as `preset_text`."""
    data: dict[str, Any] = parse(preset_text(name))
    return data


def starting(recipe: Recipe) -> dict[str, Any]:
    """Return a configuration for a shipped recipe that `check` accepts: secrets are files, the rest examples.

    What has a default is left out.
    """
    credential: dict[str, Any] = {}
    for name, variable in recipe.vars.items():
        if variable.secret and variable.default is None:
            credential[name] = {"file": f"/run/secrets/{recipe.id}-{name.replace('_', '-')}"}
        elif variable.example is not None:
            credential[name] = variable.example
    base = {} if recipe.base else {"base_url": f"https://{recipe.id}.example.com"}
    name = recipe.id.replace("-", "_")
    name = name if name[0].isalpha() else f"plm_{name}"
    return {"upstreams": {name: {**base, "preset": recipe.id, "credential": credential}}}
