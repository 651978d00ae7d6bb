"""Connections to Redis, alone, behind Sentinels or as a cluster; the only place that imports its client."""

import contextlib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from typing import Any

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, NoScriptError, ResponseError, TimeoutError  # noqa: A004

from sidecar.auth.tls import Material, client_context, read_pem
from sidecar.tokens.redis.faults import Fault, fault_of
from sidecar.tokens.redis.url import Layout, Target

AT_ONCE = 8
"""Commands, and so connections to one server, at a time."""

CLEAN_UP = 0.02
"""Seconds that a command may take beyond its time-out to put its connection away."""

_CAUSES = 8
_MOST_TEXT = 2000


class _Tls:
    """A connection with our own context: redis-py's would be made anew for each, and obey SSLKEYLOGFILE."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self._context = context

    def _connection_arguments(self) -> Mapping[str, Any]:
        address = {"host": self.host, "port": self.port}  # type: ignore[attr-defined]
        return {**address, "ssl": self._context, "ssl_shutdown_timeout": CLEAN_UP}


class _MayNeedNoPassword:
    """A connection to a Sentinel: many have no password though their servers have one, and refuse any."""

    username: str | None
    password: str | None

    async def connect(self) -> None:
        try:
            await super().connect()  # type: ignore[misc]
        except AuthenticationError:
            self.username = self.password = None
            await super().connect()  # type: ignore[misc]


class _TlsConnection(_Tls, SSLConnection):
    pass


class _TlsMasterConnection(_Tls, SentinelManagedSSLConnection):
    pass


class _SentinelConnection(_MayNeedNoPassword, Connection):
    pass


class _TlsSentinelConnection(_MayNeedNoPassword, _Tls, SSLConnection):
    pass


class _Sentinels(Sentinel):
    """Asks one Sentinel after the other, and keeps the cause when none helps; redis-py keeps its text only."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        answered, failure = False, None
        for sentinel in self.sentinels:
            try:
                masters: dict[str, Any] = await sentinel.sentinel_masters()  # type: ignore[assignment]
            except (ConnectionError, TimeoutError) as error:
                failure = error
                continue
            answered, state = True, masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                return state["ip"], state["port"]
        raise MasterNotFoundError("No master found") from (None if answered else failure)


class _NoCommands:
    """In place of a parser that asks a cluster for its hundreds of commands: a script's keys are known."""

    async def initialize(self, node: object) -> None:
        pass


def _single(target: Target, options: dict[str, Any]) -> list[Any]:
    ((host, port),) = target.nodes
    kind = _TlsConnection if target.tls else Connection
    return [Redis.from_pool(ConnectionPool(kind, host=host, port=port, db=target.db, **options))]


def _sentinel(target: Target, options: dict[str, Any]) -> list[Any]:
    kind = _TlsSentinelConnection if target.tls else _SentinelConnection
    manager = _Sentinels([])  # type: ignore[no-untyped-call]
    manager.sentinels = [
        Redis.from_pool(ConnectionPool(kind, host=host, port=port, **options)) for host, port in target.nodes
    ]
    to_master = _TlsMasterConnection if target.tls else SentinelManagedConnection
    return [manager.master_for(target.service, connection_class=to_master, db=target.db, **options), manager]


class _Cluster(RedisCluster):
    """Closes what a failure has left open, too."""

    async def aclose(self) -> None:
        with contextlib.suppress(Exception):
            await super().aclose()
        for nodes in ("nodes_cache", "startup_nodes"):
            with contextlib.suppress(Exception):
                await self.nodes_manager.aclose(nodes)


def _cluster(target: Target, options: dict[str, Any]) -> list[Any]:
    context = options.pop("context", None)
    cluster = _Cluster(startup_nodes=[ClusterNode(host, port) for host, port in target.nodes], **options)
    cluster.commands_parser = _NoCommands()  # type: ignore[assignment]
    if context:
        # It takes no class of connection; the dict is the one that every node is made with.
        kinds = cluster.connection_kwargs
        kinds |= {"connection_class": _TlsConnection, "context": context}
        nodes = (ClusterNode(host, port, **kinds) for host, port in target.nodes)
        cluster.nodes_manager.startup_nodes = {node.name: node for node in nodes}
    return [cluster]


_CLIENTS = {Layout.SINGLE: _single, Layout.SENTINEL: _sentinel, Layout.CLUSTER: _cluster}


def options(target: Target, timeout: float, ca: Path | None) -> dict[str, Any]:
    """Return what every connection to *target* is made with; ConfigurationError if *ca* cannot be used."""
    made: dict[str, Any] = {
        "username": target.username,
        "password": target.password.reveal() if target.password else None,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 2 * AT_ONCE,
        # The plainest protocol: no greeting but the password, no notices that would change a time-out.
        "protocol": 2,
        "driver_info": None,
    }
    if target.tls:
        made["context"] = client_context(Material(ca=read_pem("store.ca", ca)))
    return made


class Line:
    """A client with its connections, to be given up as a whole.

    *first*: which node to ask first, so that one that is silent does not take up the time of every call.
    *users*: how many commands use it. *spent*: no further one takes it.
    """

    def __init__(self, target: Target, options: dict[str, Any], first: int) -> None:
        first %= len(target.nodes)
        turned = replace(target, nodes=target.nodes[first:] + target.nodes[:first])
        self._clients = _CLIENTS[target.layout](turned, dict(options))
        self.users = 0
        self.spent = False

    async def evaluate(self, script: str, keys: Sequence[str], *args: str | bytes | int) -> Any:
        """Return the answer of *script*, which is sent only if the server has not seen it yet."""
        run, rest = self._clients[0].execute_command, (len(keys), *keys, *args)
        try:
            return await run("EVALSHA", sha1(script.encode(), usedforsecurity=False).hexdigest(), *rest)
        except NoScriptError:
            return await run("EVAL", script, *rest)

    async def aclose(self) -> None:
        """Close every connection; each takes no longer than its time-out."""
        # No time-out for all: one that ran out while the loop was held up would leave connections open.
        for client in self._clients:
            with contextlib.suppress(Exception):
                await client.aclose()


def fault_in(error: BaseException) -> Fault:
    """Return what *error* of `Line.evaluate` means, by its own text and that of its causes."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < _CAUSES:
        code = getattr(cause, "status_code", None) or ""
        texts.append(f"{type(cause).__name__} {code} {cause}"[:_MOST_TEXT])
        cause = cause.__cause__ or cause.__context__
    return fault_of("\n".join(texts), reply=isinstance(error, ResponseError))
