"""What the scripts of the demos have in common: a sync until the time is over, and one line of JSON that tells of it.

They stand for the unmodified scripts: each has its own old password, and of proxies only what `urllib` reads from the
environment. They import nothing of this package.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.cookiejar import CookieJar

PASSWORD = os.environ["PASSWORD"]
"""The script's own, which no system may ever see."""
PAUSE = 0.05
TIMEOUT = 60
WRITES_PER_READ = 4

jar = CookieJar()
_opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))


class Failed(Exception):
    """What the script counts as a failure, beside what the network and `json` raise."""


def send(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[http.client.HTTPMessage, bytes]:
    """Send one request, and return the fields and the body of its answer; raises for anything but 2xx."""
    request = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)
    with _opener.open(request, timeout=TIMEOUT) as answer:
        return answer.headers, answer.read()


def call(method: str, url: str, given: object = None, headers: Mapping[str, str] | None = None) -> dict[str, object]:
    """Send JSON, None: no body, and return the JSON of the answer; raises for anything but 2xx."""
    body = None if given is None else json.dumps(given).encode()
    told = send(method, url, body, {"Content-Type": "application/json", **(headers or {})})[1]
    found: dict[str, object] = json.loads(told or b"{}")
    return found


def sync(
    login: Callable[[str], None],
    read: Callable[[str, int], object],
    write: Callable[[str, str], object],
    logout: Callable[[str], object] | None = None,
) -> None:
    """Run a sync as the command line says, BASE_URL SECONDS; print one line of JSON, exit 1 if a request failed.

    Each of the four gets the base URL; *read* the number of what was written so far, *write* a fresh name.
    """
    base, seconds = sys.argv[1].rstrip("/"), float(sys.argv[2])
    started, requests, failures = time.monotonic(), 0, []
    number, run = 0, f"{time.time_ns():x}"

    def attempt(what: str, act: Callable[..., object], *given: object) -> bool:
        nonlocal requests
        requests += 1
        try:
            act(base, *given)
        except (OSError, ValueError, KeyError, http.client.HTTPException, Failed) as error:
            failures.append(f"{what}: {error!r}")
            return False
        finally:
            time.sleep(PAUSE)
        return True

    fine = attempt("login", login)
    while fine and time.monotonic() - started < seconds:
        attempt("read", read, number)
        for _ in range(WRITES_PER_READ):
            number += 1
            attempt("write", write, f"{run}-{number}")
    if fine and logout is not None:
        attempt("logout", logout)
    report = {"requests": requests, "failures": len(failures), "first_failures": failures[:5], "writes": number}
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(1 if failures else 0)
