"""Hosts: the one spelling in which they are compared, and patterns that name one or all below it."""

import ipaddress
import re
from collections.abc import Container

import idna

EVERY_HOST = "*"
"""The pattern of `exec`: a script's other hosts work as they did without us."""

_HOST_NAME = re.compile(r"[A-Za-z0-9._~-]+")
_LABELS = re.compile(r"[^.]{1,63}(?:\.[^.]{1,63})*")


def normal_host(host: str) -> str:
    """Return *host* in lower case, without one trailing dot, IPv6 in its short form; ValueError if it is none.

    A name is what DNS takes, so only ASCII: the Unicode form of a request could be read in more than one way.
    """
    if ":" in host and "%" not in host:
        return str(ipaddress.IPv6Address(host))
    name = host.removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError("expected a host name")
    return name.lower()


def configured_host(host: str) -> str:
    """Return the normal form of a host in a configuration, where it may be Unicode; ValueError if it is none.

    Such a name becomes the A-labels that clients send for it, by UTS 46 and IDNA 2008: a sharp s stays one.
    """
    name = normal_host(host if host.isascii() else idna.encode(host, uts46=True).decode("ascii"))
    if not _LABELS.fullmatch(name):
        raise ValueError("expected labels of 1 to 63 characters")
    return name


def matching(host: str, patterns: Container[str]) -> str | None:
    """Return the pattern that names *host*, in its normal form, or that it lies below (`*.`); None if none does.

    Asks *patterns* once for each label, so that a set of any size costs the same.
    """
    if EVERY_HOST in patterns:
        return EVERY_HOST
    if host in patterns:
        return host
    dot = host.find(".")
    while dot >= 0:
        if (pattern := f"*{host[dot:]}") in patterns:
            return pattern
        dot = host.find(".", dot + 1)
    return None
