"""From a file, the environment and `--set` to Settings; errors name the key path and what is accepted."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sidecar.errors import ConfigurationError
from sidecar.settings.model import Settings

_PREFIX = "AUTH_SIDECAR__"
_MAX_FILE = 1 << 20


def default_paths(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where a configuration is looked for, in order."""
    named = [Path(environ["AUTH_SIDECAR_CONFIG"])] if environ.get("AUTH_SIDECAR_CONFIG") else []
    return named or [Path("auth-sidecar.yaml"), Path("/etc/auth-sidecar/config.yaml")]


def load(
    path: Path | None = None,
    *,
    overrides: Iterable[str] = (),
    base: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Read, override and validate the configuration.

    *path* None: the first default path that exists; none is an error unless *base* is given. Order of
    strength: *overrides* (`a.b=v`), the environment (`AUTH_SIDECAR__A__B`), the file, *base*.
    Raises ConfigurationError, one line.
    """
    data: dict[str, Any] = {}
    _merge(data, base or {})
    found = path or next((candidate for candidate in default_paths(environ) if candidate.exists()), None)
    if found is not None:
        _merge(data, _read_yaml(found))
    elif base is None:
        tried = ", ".join(str(candidate) for candidate in default_paths(environ))
        raise ConfigurationError(f"no configuration file; looked for {tried}; expected -c FILE or one of these")
    for name, text in sorted(environ.items()):
        if name.startswith(_PREFIX):
            _assign(data, name.removeprefix(_PREFIX).lower().split("__"), text, name)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--set {key}: expected key.path=value")
        _assign(data, key.split("."), text, f"--set {key}")
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(_one_line(error, found)) from None


def effective(settings: Settings) -> dict[str, Any]:
    """Return the whole configuration as plain data, with every inline secret replaced by `***`."""

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            secret = {"file", "env", "value"} == value.keys()
            kept = {key: item for key, item in value.items() if not (secret and item is None)}
            return {key: "***" if secret and key == "value" else hide(item) for key, item in kept.items()}
        return [hide(item) for item in value] if isinstance(value, list) else value

    plain: dict[str, Any] = hide(settings.model_dump(mode="json"))
    return plain


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ConfigurationError(f"{path}: over 1 MiB; expected a configuration file")
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"{path}: cannot be read: {reason}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigurationError(f"{path}: line {line}: {_first_line(error.problem)}; expected YAML") from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{path}: {_first_line(str(error))}; expected YAML") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected a mapping with the key upstreams")
    return data


def _assign(data: dict[str, Any], keys: list[str], text: str, source: str) -> None:
    """Set one value; *text* is read as YAML, so that lists and mappings can be given."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        value = text
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"{source}: {key} is not a mapping; expected a key path of the configuration")
        data = inner
    data[keys[-1]] = value


def _merge(data: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping):
            inner = data.get(key)
            data[key] = inner = dict(inner) if isinstance(inner, Mapping) else {}
            _merge(inner, value)
        else:
            data[key] = value


def _one_line(error: ValidationError, path: Path | None) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key; expected one of: {', '.join(_known_keys(first['loc'][:-1]))}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{path or 'configuration'}: {key}: {_first_line(message)}{more}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model at *location* accepts, from the JSON Schema."""
    schema = Settings.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
        node = next((option for option in node.get("anyOf", ()) if "$ref" in option), node)
        if reference := node.get("$ref"):
            node = schema["$defs"][reference.rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))


def _first_line(text: str | None) -> str:
    return (text or "").split("\n", 1)[0]
