"""The variables that lead every common client through a sidecar: a pure function of plain values.

Each is documented by its tool; `docs/how-it-works.md` lists who reads which.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from sidecar.run.exec.no_proxy import entries, is_loopback, java_patterns, without_upstreams

CA_VARIABLES = (
    "SSL_CERT_FILE",  # OpenSSL and what stands on it: Python, Ruby, Perl, .NET; Go, rustls, httpx, uv
    "REQUESTS_CA_BUNDLE",  # Python requests
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "PERL_LWP_SSL_CA_FILE",  # not HTTPS_CA_FILE, which switches the check of host names off
    "npm_config_cafile",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "NIX_SSL_CERT_FILE",
    "BUNDLE_SSL_CA_CERT",  # Bundler
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",  # gcloud
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HEX_CACERTS_PATH",  # Elixir
)
"""Each names a PEM file. SSL_CERT_DIR stays the caller's: who reads it reads SSL_CERT_FILE too, and first."""

NO_PROXY = ("no_proxy", "NO_PROXY")
_PROXY = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY")
_SWITCHES = {"NODE_USE_ENV_PROXY": "1", "PERL_LWP_ENV_PROXY": "1"}
_TRUST_STORE_PASSWORD = "changeit"  # noqa: S105  Java's own; the store holds public certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What clients read from disk: PEM bundle, PKCS12 trust store, wgetrc, a directory with a `php.ini` of ours."""

    bundle: Path
    truststore: Path
    wgetrc: Path
    php: Path


def proxy_url(host: str, port: int, username: str = "", password: str = "") -> str:
    """Return what a client takes as its proxy; a wildcard address becomes the loopback one that it covers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    login = f"{quote(username, safe='')}:{quote(password, safe='')}@" if username else ""
    return f"http://{login}[{host}]:{port}" if ":" in host else f"http://{login}{host}:{port}"


def variables(
    proxy: str,
    files: Files | None,
    environ: Mapping[str, str],
    upstreams: Sequence[tuple[str, int]],
    reverse: Mapping[str, str],
) -> dict[str, str | None]:
    """Return what to set in *environ*, None: to unset.

    *files* None: nothing is intercepted, so no client needs another CA. *upstreams*: host and port of each.
    *reverse*: base URL of the reverse port, by upstream. What *environ* already has of ours is not added again.
    """
    kept = without_upstreams(entries(environ.get(name) for name in NO_PROXY), upstreams)
    found: dict[str, str | None] = dict.fromkeys(_PROXY, proxy)
    # Unset, not empty: a client that splits without care reads an empty value as one entry, the suffix of any host.
    found |= dict.fromkeys(NO_PROXY, ",".join(kept) or None)
    found |= _SWITCHES
    # Java adds loopback to any list of hosts but the empty one.
    hosts = "" if any(is_loopback(host) for host, _ in upstreams) else java_patterns(kept)
    found["JAVA_TOOL_OPTIONS"] = _appended(
        environ.get("JAVA_TOOL_OPTIONS", ""), " ", _java(proxy, hosts, files)
    ).strip()
    if files is not None:
        found |= dict.fromkeys(CA_VARIABLES, str(files.bundle))
        found["SYSTEM_WGETRC"] = str(files.wgetrc)
        # An empty part stands for the directory that PHP was built with.
        found["PHP_INI_SCAN_DIR"] = _appended(environ.get("PHP_INI_SCAN_DIR", ""), os.pathsep, str(files.php))
    return found | {f"AUTH_SIDECAR_URL_{name.upper()}": url for name, url in reverse.items()}


def _java(proxy: str, hosts: str, files: Files | None) -> str:
    parts = urlsplit(proxy)
    options = [
        f"-D{scheme}.proxy{key}"
        for scheme in ("http", "https")
        for key in (f"Host={parts.hostname}", f"Port={parts.port}")
    ]
    # Without retryPost=false, a POST that gets no answer is sent twice.
    options += [f"-Dhttp.nonProxyHosts={hosts}", "-Dsun.net.http.retryPost=false"]
    if files is not None:
        # The JVM takes quotes as a shell does, and no other escape.
        options.append(f"-Djavax.net.ssl.trustStore={shlex.quote(str(files.truststore))}")
        options += [
            "-Djavax.net.ssl.trustStoreType=PKCS12",
            f"-Djavax.net.ssl.trustStorePassword={_TRUST_STORE_PASSWORD}",
        ]
    return " ".join(options)


def _appended(value: str, separator: str, ours: str) -> str:
    """Return *value* with *ours* at its end, as it stands if it ends so: an `exec` in an `exec` adds nothing."""
    return value if f"{separator}{value}".endswith(f"{separator}{ours}") else f"{value}{separator}{ours}"
