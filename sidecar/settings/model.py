"""The configuration model: every key a user can set, its default, and what cannot be combined.

Keys of the contract that belong to parts not built yet are absent, so that they are refused as unknown.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sidecar.policy.hosts import matching
from sidecar.policy.routing import Origin
from sidecar.settings.base import Model
from sidecar.settings.names import HostPattern, is_local
from sidecar.settings.secrets import SecretReference
from sidecar.settings.upstream import Upstream
from sidecar.settings.values import (
    EMBEDDED,
    Address,
    Duration,
    HostPort,
    ListenAddress,
    Size,
    StoreUrl,
)

_UPSTREAM_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _state_dir() -> Path:
    # "/" is the home of a user that has none: containers and systemd say so.
    if (home := os.environ.get("HOME") or "/") != "/":
        return Path(home) / ".local/state/auth-sidecar"
    # systemd separates several with colons.
    return Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "/var/lib/auth-sidecar")


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("expected a directory; there is no home to stand for ~") from None


class ProxyAuth(Model):
    username: Annotated[str, Field(pattern=r"^[^:\x00-\x1f\x7f]+$")]  # RFC 7617: no colon, no control characters
    password: SecretReference


class Listen(Model):
    proxy: Address = HostPort("127.0.0.1", 8080)
    admin: Address = HostPort("127.0.0.1", 8081)
    admin_token: SecretReference | None = None
    auth: ProxyAuth | None = None

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.auth is None and not is_local(self.proxy):
            raise ValueError(
                "proxy is neither loopback nor unix:/path, so that others could use the credential; expected auth too"
            )
        return self


class Store(Model):
    url: StoreUrl = "sqlite"
    username: str | None = None
    password: SecretReference | None = None
    ca: Path | None = None
    keys: tuple[SecretReference, ...] = ()
    timeout: Annotated[Duration, Field(gt=0)] = 0.1

    @property
    def shared(self) -> bool:
        """Whether the records are kept by a Redis, and so by more than this machine."""
        return self.url not in EMBEDDED

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.shared and not self.keys:
            raise ValueError("keys: a Redis store needs at least one; expected what `auth-sidecar keys new` prints")
        if not self.shared and (self.username or self.password or self.ca):
            raise ValueError("username, password and ca are those of a Redis; expected url: redis://... beside them")
        return self


class Limits(Model):
    header: Annotated[Size, Field(ge=1 << 10, le=1 << 20)] = 64 << 10
    connections: Annotated[int, Field(ge=1)] = 1000
    header_timeout: Annotated[Duration, Field(gt=0)] = 10.0
    idle_connection: Annotated[Duration, Field(gt=0)] = 75.0


class Log(Model):
    format: Literal["json", "text"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Model):
    """The whole configuration of one sidecar."""

    listen: Listen = Listen()
    state_dir: Annotated[Path, AfterValidator(_expanded)] = Field(default_factory=_state_dir)
    store: Store = Store()
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    passthrough: tuple[HostPattern, ...] = ()
    grace: Duration = 25.0
    limits: Limits = Limits()
    upstreams: dict[str, Upstream]
    log: Log = Log()

    @property
    def served(self) -> dict[str, tuple[str, ListenAddress]]:
        """The proxy port as `proxy` and the reverse ports under the names of their upstreams: key path and address."""
        found: dict[str, tuple[str, ListenAddress]] = {"proxy": ("listen.proxy", self.listen.proxy)}
        for name, upstream in self.upstreams.items():
            if upstream.listen is not None:
                found[name] = (f"upstreams.{name}.listen", upstream.listen)
        return found

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if not self.upstreams:
            raise ValueError("upstreams: expected at least one, such as plm: {base_url: ..., oauth2: {...}}")
        for name in self.upstreams:
            if not _UPSTREAM_NAME.fullmatch(name) or name in ("proxy", "admin"):
                raise ValueError(f"upstreams.{name}: expected a name like [a-z][a-z0-9_]*, not proxy or admin")
        seen: dict[Origin, str] = {}
        for name, upstream in self.upstreams.items():
            if (other := seen.setdefault(upstream.origin, name)) != name:
                raise ValueError(f"upstreams.{name}.base_url is the same as that of {other}; expected each once")
        if self.workers != 1 and self.store.url == "memory":
            raise ValueError("workers: processes cannot share store.url memory; expected sqlite or a Redis, or 1")
        for name, upstream in self.upstreams.items():
            if upstream.grant == "refresh_token" and self.store.url == "memory":
                raise ValueError(
                    f"store.url: memory forgets what the grant refresh_token gives to upstream {name}, and the first"
                    " one is presented once; expected sqlite or a Redis"
                )
        patterns = frozenset(self.passthrough)
        for name, upstream in self.upstreams.items():
            for host in (upstream.origin.host, *sorted(upstream.shim_hosts)):
                if pattern := matching(host, patterns):
                    raise ValueError(f"passthrough: {pattern} is the host of upstream {name}; expected other hosts")
        ports = [self.served["proxy"], ("listen.admin", self.listen.admin), *list(self.served.values())[1:]]
        taken: dict[object, str] = {}
        for key, address in ports:
            if address[-1] and taken.setdefault(address, key) != key:
                raise ValueError(f"{key} is the same address as {taken[address]}; expected each once")
        return self
