"""Words and places that a configuration may name: loopback addresses, networks, methods, fields."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

from sidecar.settings.values import Address, HostPort

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2


def _loopback(address: HostPort) -> HostPort:
    try:
        parsed = ipaddress.ip_address(address.host)
        # Python before 3.12.4 does not look into an IPv4 address written as IPv6.
        inside = (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
    except ValueError:
        inside = address.host == "localhost"
    if not inside:
        raise ValueError("expected a loopback address: whoever reaches this port can use the credential")
    return address


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError("expected a network such as 10.1.0.0/16 or an address") from None


def _method(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("expected an HTTP method")
    return value


def _field_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("expected a header, cookie or parameter name")
    return value


LoopbackAddress = Annotated[Address, AfterValidator(_loopback)]
Network = Annotated[str, AfterValidator(_network)]
Method = Annotated[str, AfterValidator(_method)]
Name = Annotated[str, AfterValidator(_field_name)]
"""Of a header field, a cookie or a query parameter."""
