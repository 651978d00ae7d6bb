"""What a Redis URL says. Its text is never shown again: a password may be in any part of it."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn
from urllib.parse import unquote

from sidecar.errors import ConfigurationError
from sidecar.secret import Secret

_SCHEME = re.compile(r"(rediss?)(?:\+(sentinel|cluster))?://(.*)", re.DOTALL)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]+))(?::([0-9]+))?")
_FORMS = (
    "redis://[user:password@]host[:port][/db], redis+sentinel://[user:password@]host[:port],.../service[/db]"
    " or redis+cluster://[user:password@]host[:port],..., with rediss for TLS"
)


class Layout(StrEnum):
    """How the servers are laid out; the value is their name in messages."""

    SINGLE = "Redis"
    SENTINEL = "Redis Sentinel"
    CLUSTER = "Redis Cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the shared store is. *nodes*: host and port; of Sentinels where there are such. *service*: theirs."""

    layout: Layout
    tls: bool
    nodes: tuple[tuple[str, int], ...]
    service: str = ""
    db: int = 0
    username: str | None = None
    password: Secret | None = None

    def __str__(self) -> str:
        nodes = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return f"{self.layout} at {nodes}"


def parse_url(url: str, *, username: str | None = None, password: Secret | None = None) -> Target:
    """Return what *url* says, with user and password from it or handed in; in it they are percent-encoded.

    Raises ConfigurationError, which shows no part of the URL. Options in a query are refused: none may turn TLS off.
    """
    match = _SCHEME.fullmatch(url)
    if match is None:
        _refuse("the scheme is not one of Redis")
    layout = {None: Layout.SINGLE, "sentinel": Layout.SENTINEL, "cluster": Layout.CLUSTER}[match[2]]
    if "?" in match[3] or "#" in match[3]:
        _refuse("there is a ? or # in it, which a user or password must percent-encode")
    authority, _, path = match[3].partition("/")
    if "@" in path:
        _refuse("a user or password with a / in it, which must be percent-encoded")
    userinfo, _, hosts = authority.rpartition("@")
    name, _, secret = userinfo.partition(":")
    if (name or secret) and (username or password) and not (name and not secret and not username):
        _refuse("user and password are given twice, in it and beside it")
    user = username or unquote(name) or None
    word = password or (Secret(unquote(secret)) if secret else None)
    if user is not None and word is None:
        _refuse("a user without a password")
    service, db = _path(layout, path)
    tls, nodes = match[1] == "rediss", _nodes(layout, hosts)
    return Target(layout=layout, tls=tls, nodes=nodes, service=service, db=db, username=user, password=word)


def _refuse(what: str) -> NoReturn:
    raise ConfigurationError(f"store.url: {what}; expected {_FORMS}")


def _nodes(layout: Layout, hosts: str) -> tuple[tuple[str, int], ...]:
    nodes = []
    for text in hosts.split(","):
        match = _HOST.fullmatch(text)
        if match is None:
            _refuse("a host or port cannot be read")
        port = int(match[3] or (26379 if layout is Layout.SENTINEL else 6379))
        if not 0 < port < 1 << 16:
            _refuse("a port is out of range")
        nodes.append((match[1] or match[2], port))
    if layout is Layout.SINGLE and len(nodes) > 1:
        _refuse("several hosts, but neither +sentinel nor +cluster")
    return tuple(dict.fromkeys(nodes))


def _path(layout: Layout, path: str) -> tuple[str, int]:
    """Return the service and the number of the database."""
    service = ""
    if layout is Layout.SENTINEL:
        service, _, path = path.partition("/")
        if not service:
            _refuse("the name of the Sentinel service is missing")
    if path and layout is Layout.CLUSTER:
        _refuse("a cluster has no databases")
    if path and not re.fullmatch("[0-9]{1,6}", path):
        _refuse("the database is not a number")
    return unquote(service), int(path or 0)
