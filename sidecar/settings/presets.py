"""The recipes that come with us, by name, and recipes that begin with another."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ruamel.yaml import YAML

_FOLDER = files("sidecar.settings") / "presets"
_SUFFIX = ".yaml"
_DEEPEST = 4


def preset_names() -> list[str]:
    """Return the names of the recipes that come with us."""
    return sorted(each.name.removesuffix(_SUFFIX) for each in _FOLDER.iterdir() if each.name.endswith(_SUFFIX))


def preset_text(name: str) -> str:
    """Return the YAML of a recipe that comes with us; ValueError, which lists all, for an unknown name."""
    if name not in preset_names():
        raise ValueError(f"unknown preset; expected one of: {', '.join(preset_names())}")
    return (_FOLDER / f"{name}{_SUFFIX}").read_text()


def preset_data(name: str) -> dict[str, Any]:
    """Return the data of a recipe that comes with us; ValueError for an unknown name."""
    data = YAML(typ="safe", pure=True).load(preset_text(name))
    whole: dict[str, Any] = extended(data)
    return whole


def extended(data: Any, depth: int = 0) -> Any:
    """Return *data* of a recipe on top of what it `extends`, which is gone then; what extends nothing is as it was.

    Mappings are merged key by key, all else is replaced, and null removes a key. ValueError for an unknown name, or
    ever more of them.
    """
    if not isinstance(data, Mapping) or data.get("extends") is None:
        return {name: value for name, value in data.items() if name != "extends"} if isinstance(data, Mapping) else data
    if depth == _DEEPEST:
        raise ValueError("extends: recipes extend each other for ever")
    base = YAML(typ="safe", pure=True).load(preset_text(str(data["extends"])))
    return merged(extended(base, depth + 1), {name: value for name, value in data.items() if name != "extends"})


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return *below* with *above* on top of it, key by key; a key that is null there is gone."""
    found = dict(below)
    for name, value in above.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(below.get(name), Mapping):
            found[name] = merged(below[name], value)
        else:
            found[name] = value
    return found
