"""The configuration: its model, its values, and how a file, the environment and options become one."""

from sidecar.settings.load import configuration_file, default_paths, effective, load
from sidecar.settings.model import Limits, Listen, Settings, Store
from sidecar.settings.oauth2 import OAuth2, parse_token_url
from sidecar.settings.recipe import Recipe
from sidecar.settings.references import (
    check_secrets,
    commands_of_start,
    files_of,
    plain_secrets,
    secret_references,
    share_runs,
)
from sidecar.settings.secrets import SecretReference, prime
from sidecar.settings.upstream import (
    Breaker,
    Keepalive,
    Renew,
    Replay,
    Retry,
    Sessions,
    Strip,
    Timeouts,
    Tls,
    Upstream,
)
from sidecar.settings.values import HostPort, ListenAddress, SocketPath

__all__ = [
    "Breaker",
    "HostPort",
    "Keepalive",
    "Limits",
    "Listen",
    "ListenAddress",
    "OAuth2",
    "Recipe",
    "Renew",
    "Replay",
    "Retry",
    "SecretReference",
    "Sessions",
    "Settings",
    "SocketPath",
    "Store",
    "Strip",
    "Timeouts",
    "Tls",
    "Upstream",
    "check_secrets",
    "commands_of_start",
    "configuration_file",
    "default_paths",
    "effective",
    "files_of",
    "load",
    "parse_token_url",
    "plain_secrets",
    "prime",
    "secret_references",
    "share_runs",
]
