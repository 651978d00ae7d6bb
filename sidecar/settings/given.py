"""What `credential` gives a recipe: each value of the type that the recipe asks for."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from sidecar.settings.explain import explained
from sidecar.settings.recipe import Recipe, Variable
from sidecar.settings.secrets import EXPECTED, SecretReference

Given = SecretReference | bool | int | str
_TYPES: Mapping[str, str] = MappingProxyType({"str": "text", "int": "whole number", "bool": "boolean, true or false"})


def given(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Given]:
    """Return what *values* give to the variables of *recipe*, without its defaults; null is as if it were not there.

    ValueError names the key.
    """
    present = {name: value for name, value in values.items() if value is not None}
    if unknown := sorted(present.keys() - recipe.vars.keys()):
        raise ValueError(f"{unknown[0]}: unknown key; {recipe.id} accepts {', '.join(recipe.vars) or 'none'}")
    for name, variable in recipe.vars.items():
        if name not in present and variable.default is None and not variable.optional:
            what = EXPECTED if variable.secret else f"expected a {_TYPES[variable.type]}"
            raise ValueError(f"{name}: missing; {what}")
    return {name: _value(name, recipe.vars[name], value) for name, value in present.items()}


def _value(name: str, variable: Variable, value: Any) -> Given:
    if variable.secret:
        try:
            return SecretReference.model_validate(value)
        except ValidationError as error:
            raise ValueError(f"{name}: {explained(error, SecretReference)}") from None
    if variable.type == "str" and isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if variable.type == "bool" and (isinstance(value, bool) or value in ("true", "false")):
        return value is True or value == "true"
    if variable.type == "int" and not isinstance(value, bool) and isinstance(value, str | int):
        try:
            return int(value)
        except ValueError:
            pass
    secret = "; it is no secret, and shows in clear" if isinstance(value, Mapping | SecretReference) else ""
    raise ValueError(f"{name}: expected a {_TYPES[variable.type]}{secret}")
