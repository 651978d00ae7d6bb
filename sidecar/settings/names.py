"""Words and places that a configuration may name: local addresses, hosts, networks, methods, fields."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

from sidecar.policy.hosts import configured_host
from sidecar.settings.values import Address, ListenAddress, SocketPath

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")  # RFC 6838 section 4.2
_PATH = re.compile(r"/(?!/)(?:[!$%&'()*+,./0-9:;=?@A-Z_a-z~-])*")  # RFC 3986 section 3.3 and a query


def is_local(address: ListenAddress) -> bool:
    """Tell whether only this machine reaches *address*: it is a loopback one or a unix socket."""
    if isinstance(address, SocketPath):
        return True
    try:
        parsed = ipaddress.ip_address(address.host)
    except ValueError:
        return address.host == "localhost"
    # Python before 3.12.4 does not look into an IPv4 address written as IPv6.
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _local(address: ListenAddress) -> ListenAddress:
    if not is_local(address):
        raise ValueError("expected a loopback address or unix:/path: whoever reaches this port can use the credential")
    return address


def _host_pattern(value: str) -> str:
    try:
        host = configured_host(value.removeprefix("*.").strip("[]"))
    except ValueError:
        raise ValueError("expected a host such as pypi.org, or *.example.org for all below it") from None
    return f"*.{host}" if value.startswith("*.") else host


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError("expected a network such as 10.1.0.0/16 or an address") from None


def _method(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("expected an HTTP method")
    return value


def _target_path(value: str) -> str:
    if not _PATH.fullmatch(value):
        raise ValueError("expected a path such as /api/v1/health, with or without a query")
    return value


def _media_type(value: str) -> str:
    if not _MEDIA_TYPE.fullmatch(value):
        raise ValueError("expected a media type such as application/json, without parameters and wildcards")
    if value.lower().startswith("multipart/"):
        raise ValueError("a multipart body cannot be rewritten: its parts may tell their lengths")
    return value.lower()


def _field_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("expected a header, cookie or parameter name")
    return value


LocalAddress = Annotated[Address, AfterValidator(_local)]
HostPattern = Annotated[str, AfterValidator(_host_pattern)]
Network = Annotated[str, AfterValidator(_network)]
Method = Annotated[str, AfterValidator(_method)]
Name = Annotated[str, AfterValidator(_field_name)]
"""Of a header field, a cookie or a query parameter."""
MediaType = Annotated[str, AfterValidator(_media_type)]
TargetPath = Annotated[str, AfterValidator(_target_path)]
"""What of a URL comes after the base URL: a path and perhaps a query."""
