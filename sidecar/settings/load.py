"""From a file, the environment and `--set` to Settings; errors name the key path and what is accepted."""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from sidecar.errors import ConfigurationError
from sidecar.settings.model import Settings
from sidecar.settings.secrets import SecretReference

_PREFIX = "AUTH_SIDECAR__"
_MAX_FILE = 1 << 20
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
_UNQUOTED = re.compile(r"""(?:[^"']|'[^']')*""")
"""What a message of the YAML reader says before it quotes more than a character of the text."""


def default_paths(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where a configuration is looked for, in order."""
    named = [Path(environ["AUTH_SIDECAR_CONFIG"])] if environ.get("AUTH_SIDECAR_CONFIG") else []
    return named or [Path("auth-sidecar.yaml"), Path("/etc/auth-sidecar/config.yaml")]


def configuration_file(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file that `load` reads for *path*; None when no default one exists."""
    return path or next(filter(_is_there, default_paths(environ)), None)


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
    found = configuration_file(path, environ)
    if found is not None:
        _merge(data, _read_yaml(found))
    elif base is None:
        tried = ", ".join(str(candidate) for candidate in default_paths(environ))
        raise _error(f"no configuration file; looked for {tried}; expected -c FILE or one of these")
    for name, text in sorted(environ.items()):
        if name.startswith(_PREFIX):
            _assign(data, name.removeprefix(_PREFIX).lower().split("__"), text, name)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise _error(f"--set {key}: expected key.path=value")
        _assign(data, key.split("."), text, f"--set {key}")
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise _error(_one_line(error, found)) from None


def effective(settings: Settings) -> dict[str, Any]:
    """Return the whole configuration as plain data: `***` for every inline secret, `...` for arguments of a command."""

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            if SecretReference.model_fields.keys() == value.keys():
                return {key: _masked(key, item) for key, item in value.items() if item is not None}
            return {key: hide(item) for key, item in value.items()}
        return [hide(item) for item in value] if isinstance(value, list) else value

    plain: dict[str, Any] = hide(settings.model_dump(mode="json"))
    return plain


def _masked(source: str, where: Any) -> Any:
    if source == "command":
        return [where[0], *["..."] * (len(where) > 1)]
    return "***" if source == "value" else where


def _is_there(path: Path) -> bool:
    """Tell whether there is anything at *path*, or something keeps us from knowing: reading it will say what."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_FILE + 1).decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise _error(f"{path}: cannot be read: {reason}") from None
    if len(text.encode()) > _MAX_FILE:
        raise _error(f"{path}: over 1 MiB; expected a configuration file")
    try:
        data = _parse(text)
    except ValueError as error:
        raise _error(f"{path}: {error}; expected YAML") from None
    if not isinstance(data, dict):
        raise _error(f"{path}: expected a mapping with the key upstreams")
    return data


def _parse(text: str) -> Any:
    """Return the data of a YAML text; ValueError says where it is wrong, without a word of it: it may hold secrets."""
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # the warning would quote the text
    try:
        data = yaml.load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        said = _UNQUOTED.match(error.problem or "")
        raise ValueError(f"line {line}: {said[0].strip() if said else ''}") from None
    except Exception:  # noqa: BLE001  the reader raises KeyError, AssertionError, RecursionError and more
        raise ValueError("it cannot be read, or is nested too deeply") from None
    _check_size(data)
    return data


def _check_size(data: Any) -> None:
    """Raise ValueError for data that is small as text and huge, or endless, once its aliases are followed."""
    level, count = [data], 0
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            count += len(inner)
            if count > _MAX_VALUES:
                raise ValueError(f"it has over {_MAX_VALUES} values, with its aliases")
            below.extend(inner)
        level = below
    if level:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")


def _assign(data: dict[str, Any], keys: list[str], text: str, source: str) -> None:
    """Set one value: lists, mappings, quoted text and nothing are read as YAML, all else is *text* as it stands."""
    value: Any = text
    if text.strip() in ("", "~", "null") or text.lstrip()[0] in "[{'\"":
        with contextlib.suppress(ValueError):
            value = _parse(text)
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise _error(f"{source}: {key} is not a mapping; expected a key path of the configuration")
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
    location, message = first["loc"], first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        known = _known_keys(location)
        message = f"missing; expected a {f'mapping of {", ".join(known)}' if known else 'value'}"
    if first["type"] == "model_type":
        message = f"expected a mapping of {', '.join(_known_keys(location))}"
    if first["type"] in ("extra_forbidden", "invalid_key"):
        known = _known_keys(location[:-1])
        message = f"unknown key; expected one of: {', '.join(known)}"
        if known == list(SecretReference.model_fields):
            location = location[:-1]  # in braces, the secret itself would be the key
    key = ".".join(str(part) for part in location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return ": ".join(filter(None, (str(path or "configuration"), key, message + more)))


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


def _error(message: str) -> ConfigurationError:
    """Return the error, in one line that shows as it is: keys may hold anything."""
    return ConfigurationError("".join(char if char.isprintable() else "?" for char in message))
