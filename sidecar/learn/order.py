"""What `learn` is asked for, looked at before anything is run, and the settings of the sidecar that watches."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.errors import ConfigurationError
from sidecar.policy.routing import parse_base_url
from sidecar.settings import Settings, load

_COMMON = frozenset({"api", "www", "rest", "app", "localhost"})
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for; *out* None: to standard output.

    *also*: URLs of other hosts that are looked at. *secrets*: names of environment variables.
    """

    base_url: str
    out: Path | None
    check: bool = False
    name: str = ""
    ca: Path | None = None
    secrets: Sequence[str] = ()
    also: Sequence[str] = ()
    command: Sequence[str] = field(repr=False)


def checked(order: Order) -> tuple[str, str, dict[str, str]]:
    """Return the base URL in its normal form, the upstream's name, and the named secrets with their names.

    Raises ConfigurationError, also for a file that is there already.
    """
    try:
        origin = parse_base_url(order.base_url)
    except ValueError as error:
        raise ConfigurationError(f"--base-url: {error}") from None
    if order.out is not None and order.out.exists():
        raise ConfigurationError(f"{order.out}: is there already, and stays as it is; expected --out with another name")
    name = order.name or _name_of(origin.host)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"--name {name}: expected a letter, then letters, digits and _, in lower case")
    return origin.url, name, _named(order.secrets, os.environ)


def watching(order: Order, base: str, name: str, folder: Path) -> Settings:
    """Return settings that add nothing: the base URL, for its reverse port, all else of its origin, and others."""
    common: dict[str, Any] = {
        "insecure_http": True,  # they are the script's own credentials, which go where it sends them
        "recipe": {"recipe": 1, "id": "watched", "login": {}},
        "retry": {"attempts": 1},
        "tls": {"ca": str(order.ca)} if order.ca is not None else {},
    }
    upstreams = {name: {**common, "base_url": base, "listen": "127.0.0.1:0"}}
    others = {_root(url) for url in (base, *order.also)} - {base}
    upstreams |= {f"{name}_{number}": {**common, "base_url": url} for number, url in enumerate(sorted(others))}
    file = folder / "watch.json"
    file.write_text(
        json.dumps({"state_dir": str(folder / "watch"), "store": {"url": "memory"}, "upstreams": upstreams})
    )
    return load(file, environ={})


def _root(url: str) -> str:
    """Return the origin of *url* as a URL; raises ConfigurationError."""
    try:
        origin = parse_base_url(url)
    except ValueError as error:
        raise ConfigurationError(f"--also: {error}") from None
    return f"{origin.scheme}://{origin.authority}"


def _named(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that lie in the environment variables *names*, with those names."""
    for name in names:
        if not environ.get(name):
            raise ConfigurationError(f"--secret {name}: the environment variable is not set; expected the secret in it")
    return {environ[name]: name for name in names}


def _name_of(host: str) -> str:
    labels = [label for label in host.split(".") if label not in _COMMON and not label.isdigit()]
    word = re.sub(r"[^a-z0-9]+", "_", labels[0].lower()).strip("_") if labels else ""
    return word if _NAME.fullmatch(word) else "plm"
