"""Listening sockets, before anybody accepts: bound early, so that a taken address is found before anything runs.

Free of mitmproxy, for the process that only hands sockets on.
"""

import contextlib
import socket
import stat
from pathlib import Path

from sidecar.errors import ConfigurationError
from sidecar.settings import HostPort, ListenAddress, SocketPath

BACKLOG = 1024


def bind(address: ListenAddress, key: str) -> socket.socket:
    """Return a socket that listens on *address*; ConfigurationError, which names *key*, when it cannot be had."""
    try:
        return _unix(address.path) if isinstance(address, SocketPath) else _tcp(*address)
    except OSError as error:
        raise ConfigurationError(
            f"{key}: cannot listen on {address}: {error.strerror}; expected a free local address"
        ) from None


def address_of(bound: socket.socket) -> ListenAddress:
    """Return what was bound, with the port that the system chose."""
    name = bound.getsockname()
    return SocketPath(name) if isinstance(name, str) else HostPort(name[0], name[1])


def _tcp(host: str, port_number: int) -> socket.socket:
    """Return a listening socket.

    With its protocol named, unlike `socket.create_server`: asyncio sets TCP_NODELAY on connections of such
    sockets only, and without it the body of every answer on a kept connection waits 40 ms for an ACK.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port_number))
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _unix(path: str) -> socket.socket:
    """Return a listening unix socket for the owner and the group; what a dead process left at *path* is replaced."""
    place = Path(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(place.stat().st_mode) and not _answers(path):
            place.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        place.chmod(0o660)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            pass  # its queue is full
    return True
