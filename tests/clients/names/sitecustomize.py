"""What DNS is to a sidecar of the tests: started with this directory in PYTHONPATH, it finds plm.test on loopback."""

import socket

_real = socket.getaddrinfo


def _getaddrinfo(host, *arguments, **options):
    return _real("127.0.0.1" if host in ("plm.test", b"plm.test") else host, *arguments, **options)


socket.getaddrinfo = _getaddrinfo
