"""Every secret and every file of a configuration, with its key path."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sidecar.errors import ConfigurationError
from sidecar.settings.model import Settings
from sidecar.settings.secrets import SecretReference
from sidecar.settings.values import without_password

_PLAIN = frozenset({str, int, float, bool, type(None)})
"""What nearly every value is, so that it is looked at first."""


def secret_references(settings: Settings) -> Iterator[tuple[str, SecretReference]]:
    """Yield key path and reference of every secret that the configuration names."""
    yield from ((path, found) for path, found in _walk(settings, "") if isinstance(found, SecretReference))


def plain_secrets(settings: Settings) -> Iterator[str]:
    """Yield the key paths whose secrets stand in the configuration as they are."""
    yield from (key for key, reference in secret_references(settings) if reference.value is not None)
    if without_password(settings.store.url) != settings.store.url:
        yield "store.url"


def files_of(settings: BaseModel) -> set[Path]:
    """Return the files that a configuration, or a part of it, takes something from; not its state directory."""
    named = {
        found.file if isinstance(found, SecretReference) else found
        for key, found in _walk(settings, "")
        if key != "state_dir"
    }
    return {path.expanduser() for path in named if path is not None}


def share_runs(before: Settings, after: Settings) -> None:
    """Let what the commands of *before* gave count for the same commands of *after*: a reload runs none anew."""
    known = {reference: reference for _, reference in secret_references(before) if reference.slow}
    for _, reference in secret_references(after):
        if (same := known.get(reference)) is not None:
            reference.share(same)


def commands_of_start(settings: Settings) -> list[tuple[str, SecretReference]]:
    """Return key path and reference of what a start needs at once and a program is asked for: store, ports and TLS."""
    return [
        (path, reference)
        for path, reference in secret_references(settings)
        if reference.slow and (".tls." in path or not path.startswith("upstreams."))
    ]


def check_secrets(settings: Settings) -> None:
    """Read every secret once; raises ConfigurationError, which names the key path, for one that cannot be read.

    Those that a program is asked for are left out: `prime` asks, and one that fails is waited for.
    """
    for path, reference in secret_references(settings):
        try:
            if not reference.slow:
                reference.read()
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None


def _walk(value: Any, above: str) -> Iterator[tuple[str, SecretReference | Path]]:
    """Yield every secret reference and every path in *value*, a model or a collection, with its key path."""
    inner: Iterable[tuple[Any, Any]] = value  # a model gives names and values
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, tuple):
        inner = enumerate(value)
    for name, item in inner:
        if type(item) in _PLAIN:
            continue
        if isinstance(item, SecretReference | Path):
            yield f"{above}{name}", item
        elif isinstance(item, BaseModel | Mapping | tuple):
            yield from _walk(item, f"{above}{name}.")
