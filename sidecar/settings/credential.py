"""Whether what stands under `credential` is what a recipe asks for."""

from collections.abc import Mapping

from sidecar.settings.recipe import Recipe
from sidecar.settings.secrets import SecretReference

_TYPES: Mapping[str, type] = {"str": str, "int": int, "bool": bool}


def check_credential(recipe: Recipe, given: Mapping[str, SecretReference | str | int | bool]) -> None:
    """Raise ValueError that names the key, and nothing of its value."""
    accepted = ", ".join(recipe.vars) or "none"
    for name in given:
        if name not in recipe.vars:
            raise ValueError(f"credential.{name}: unknown key; expected one of: {accepted}")
    for name, variable in recipe.vars.items():
        value = given.get(name)
        if value is None:
            if variable.default is None and not variable.optional:
                secret = " as {file: PATH}" if variable.secret else ""
                raise ValueError(f"credential.{name}: missing; expected a value{secret}")
        elif variable.secret != isinstance(value, SecretReference):
            expected = "{file: PATH}, {env: NAME} or another place of a secret" if variable.secret else "a plain value"
            raise ValueError(f"credential.{name}: expected {expected}")
        elif not variable.secret and not _fits(value, variable.type):
            raise ValueError(f"credential.{name}: expected a value of type {variable.type}")


def _fits(value: object, kind: str) -> bool:
    """Tell whether *value* may stand for a variable; from the environment and options every value is a text."""
    if kind == "str":
        return isinstance(value, str | int) and not isinstance(value, bool)
    if kind == "bool":
        return isinstance(value, bool) or value in ("true", "false")
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdigit())
