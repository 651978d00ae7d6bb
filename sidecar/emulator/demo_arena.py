"""A nightly sync with Arena as people write it: it logs in by itself, uses one session, and retries nothing.

It stands for the unmodified script: it knows its own old password, and of proxies only what `urllib` reads from the
environment. It imports nothing of this package.

    python demo_arena.py http://api.example.com/v1 20
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
import urllib.request

LOGIN = {"email": "old-script@plant.example", "password": "caNARY-of-last-year", "workspaceId": 7}
PAUSE = 0.05
TIMEOUT = 60


def call(method: str, url: str, payload: object, session: str) -> dict[str, object]:
    """Send one request and return the JSON of its answer; raises for anything but 2xx."""
    body = None if payload is None else json.dumps(payload).encode()
    headers = {"Content-Type": "application/json", **({"arena_session_id": session} if session else {})}
    request = urllib.request.Request(url, data=body, headers=headers, method=method)  # noqa: S310  the operator's URL
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        told: dict[str, object] = json.loads(answer.read() or b"{}")
        return told


def main(base_url: str, seconds: float) -> int:
    """Sync for *seconds*, print one JSON line; return 1 if a request failed, else 0."""
    started, requests, failures = time.monotonic(), 0, []
    session, number, run = "", 0, f"{time.time_ns():x}"

    def attempt(method: str, path: str, payload: object = None) -> dict[str, object]:
        nonlocal requests
        requests += 1
        try:
            return call(method, base_url + path, payload, session)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{method} {path}: {error}")
            return {}
        finally:
            time.sleep(PAUSE)

    session = str(attempt("POST", "/login", LOGIN).get("arenaSessionId", ""))
    while session and time.monotonic() - started < seconds:
        attempt("GET", f"/items?limit=20&offset={number % 100}")
        for _ in range(4):
            number += 1
            attempt("POST", "/items", {"number": f"{run}-{number}", "name": "Bolt"})
    if session:
        attempt("PUT", "/logout")
    report = {"requests": requests, "failures": len(failures), "first_failures": failures[:5], "writes": number}
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/"), float(sys.argv[2])))
