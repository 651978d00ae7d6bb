"""Every secret and every file of a configuration, with its key path."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sidecar.errors import ConfigurationError
from sidecar.settings.model import Settings
from sidecar.settings.values import SecretReference, without_password


def secret_references(settings: Settings) -> Iterator[tuple[str, SecretReference]]:
    """Yield key path and reference of every secret that the configuration names."""
    for path, value in _walk(settings, ""):
        if isinstance(value, SecretReference):
            yield path.removeprefix("."), value


def plain_secrets(settings: Settings) -> Iterator[str]:
    """Yield the key paths whose secrets stand in the configuration as they are."""
    yield from (key for key, reference in secret_references(settings) if reference.value is not None)
    if without_password(settings.store.url) != settings.store.url:
        yield "store.url"


def files_of(settings: BaseModel) -> set[Path]:
    """Return the files that a configuration, or a part of it, takes something from; not its state directory."""
    found = set()
    for path, value in _walk(settings, ""):
        if isinstance(value, SecretReference) and value.file is not None:
            found.add(value.file.expanduser())
        elif isinstance(value, Path) and path != ".state_dir":
            found.add(value.expanduser())
    return found


def check_secrets(settings: Settings) -> None:
    """Read every secret once; raises ConfigurationError, which names the key path, for one that cannot be read."""
    for path, reference in secret_references(settings):
        try:
            reference.read()
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, value
    inner: Mapping[Any, Any] = {}
    if isinstance(value, SecretReference):
        return
    if isinstance(value, BaseModel):
        inner = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, Mapping):
        inner = value
    elif isinstance(value, tuple):
        inner = dict(enumerate(value))
    for name, item in inner.items():
        yield from _walk(item, f"{path}.{name}")
