"""What DNS is to a sidecar started with this directory in PYTHONPATH: the machine's own asks servers on the network."""

import socket
import time

_real = socket.getaddrinfo
_ERRORS = {"nxdomain.test": socket.EAI_NONAME, "servfail.test": socket.EAI_AGAIN, "silent.test": socket.EAI_AGAIN}


def _getaddrinfo(host, port, *arguments, **options):
    name = host.decode() if isinstance(host, bytes) else host
    if name == "blackhole.test":
        return _real("::1", port, *arguments, **options) + _real("127.0.0.1", port, *arguments, **options)
    if name == "silent.test":
        time.sleep(11)
    if name in _ERRORS:
        raise socket.gaierror(_ERRORS[name], "as switched on")
    return _real(host, port, *arguments, **options)


socket.getaddrinfo = _getaddrinfo
