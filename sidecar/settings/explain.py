"""What is wrong with a value, in one line that names the key path and what is accepted."""

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from sidecar.settings.secrets import SecretReference


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """Return key path and message of the first of the errors of *model*, and how many more there are."""
    first = error.errors(include_url=False, include_input=False)[0]
    location, message = first["loc"], first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        known = _known_keys(model, location)
        message = f"missing; expected a {f'mapping of {", ".join(known)}' if known else 'value'}"
    if first["type"] == "model_type":
        message = f"expected a mapping of {', '.join(_known_keys(model, location))}"
    if first["type"] in ("extra_forbidden", "invalid_key"):
        known = _known_keys(model, location[:-1])
        near = get_close_matches(str(location[-1]), known, 1) if location else []
        message = f"unknown key; expected one of: {', '.join(known)}{f'; did you mean {near[0]}?' if near else ''}"
        if known == list(SecretReference.model_fields):
            location = location[:-1]  # in braces, the secret itself would be the key
    key = ".".join(str(part) for part in location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return ": ".join(filter(None, (key, message + more)))


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model at *location* accepts, from the JSON Schema."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
        node = next((option for option in node.get("anyOf", ()) if "$ref" in option), node)
        if reference := node.get("$ref"):
            node = schema["$defs"][reference.rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))
