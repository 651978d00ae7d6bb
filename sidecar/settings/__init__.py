"""The configuration: its model, its values, and how a file, the environment and options become one."""

from sidecar.settings.load import default_paths, effective, load
from sidecar.settings.model import Settings, Store
from sidecar.settings.references import check_secrets, secret_references
from sidecar.settings.upstream import OAuth2, Renew, Replay, Retry, Strip, Timeouts, Tls, Upstream
from sidecar.settings.values import HostPort, ListenAddress, SecretReference, SocketPath

__all__ = [
    "HostPort",
    "ListenAddress",
    "OAuth2",
    "Renew",
    "Replay",
    "Retry",
    "SecretReference",
    "Settings",
    "SocketPath",
    "Store",
    "Strip",
    "Timeouts",
    "Tls",
    "Upstream",
    "check_secrets",
    "default_paths",
    "effective",
    "load",
    "secret_references",
]
