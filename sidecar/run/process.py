"""What every process of ours does that serves or has others serve: hides what could leak, says that it is ready."""

import contextlib
import os
import resource
import sys

from sidecar.events import Emit, Event, Ready
from sidecar.observe.log import ready_line


def harden() -> None:
    """Keep secrets out of core dumps and key logs, and our own clients off any proxy of the environment.

    As many descriptors may be open as the system allows: connections are bounded by the configuration.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says endless and means less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for name in ("SSLKEYLOGFILE", "MITMPROXY_SSLKEYLOGFILE"):
        os.environ.pop(name, None)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


def announcing(emit: Emit) -> Emit:
    """Print the ready line on standard output, whatever the log level; in the log too, unless both are one."""
    same = os.path.sameopenfile(1, 2)

    def announce(event: Event) -> None:
        if isinstance(event, Ready):
            sys.stdout.write(ready_line(event) + "\n")
            sys.stdout.flush()
        if not (same and isinstance(event, Ready)):
            emit(event)

    return announce
