"""From a file, the environment and `--set` to Settings; errors name the key path and what is accepted."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sidecar.errors import ConfigurationError
from sidecar.settings.explain import explained
from sidecar.settings.model import Settings
from sidecar.settings.secrets import SecretReference
from sidecar.settings.yaml_text import parse

_PREFIX = "AUTH_SIDECAR__"
_MAX_FILE = 1 << 20


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
        data = parse(text)
    except ValueError as error:
        raise _error(f"{path}: {error}; expected YAML") from None
    if not isinstance(data, dict):
        raise _error(f"{path}: expected a mapping with the key upstreams")
    return data


def _assign(data: dict[str, Any], keys: list[str], text: str, source: str) -> None:
    """Set one value: lists, mappings, quoted text and nothing are read as YAML, all else is *text* as it stands."""
    value: Any = text
    if text.strip() in ("", "~", "null") or text.lstrip()[0] in "[{'\"":
        with contextlib.suppress(ValueError):
            value = parse(text)
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
    return ": ".join(filter(None, (str(path or "configuration"), explained(error, Settings))))


def _error(message: str) -> ConfigurationError:
    """Return the error, in one line that shows as it is: keys may hold anything."""
    return ConfigurationError("".join(char if char.isprintable() else "?" for char in message))
