"""A nightly supplier sync as people write it: the standard library, one connection per request, no retries.

It stands for the unmodified script: it knows nothing of tokens but the stale one somebody pasted into it, and
of proxies only what `urllib` reads from the environment. It imports nothing of this package.

    python oauth2.py http://plm.example.com:8443 20
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.request

HEADERS = {"Authorization": "Bearer expired-yesterday", "Content-Type": "application/json"}
PAGE = 50
SYNCS_PER_PAGE = 6
PAUSE = 0.03
SHOWN_FAILURES = 5
TIMEOUT = 60


def call(method: str, url: str, payload: object = None, key: str = "") -> object:
    """Send one request and return the JSON of its answer; raises for anything but 2xx."""
    body = None if payload is None else json.dumps(payload).encode()
    headers = dict(HEADERS, **({"Idempotency-Key": key} if key else {}))
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return json.loads(answer.read())


def main(base_url: str, seconds: float) -> int:
    """Sync suppliers for *seconds*, print one JSON line; return 1 if a request failed, else 0."""
    base_url = base_url.rstrip("/") + "/api/v1"
    run = f"{time.time_ns():x}"
    started = time.monotonic()
    requests = 0
    failures = []
    suppliers = list(range(1, SYNCS_PER_PAGE + 1))

    def attempt(method: str, path: str, payload: object = None) -> object:
        nonlocal requests
        requests += 1
        key = "" if method == "GET" else f"{run}-{requests}"
        try:
            return call(method, base_url + path, payload, key)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{method} {path}: {error}")
            return None
        finally:
            time.sleep(PAUSE)

    offset = 0
    while time.monotonic() - started < seconds:
        page = attempt("GET", f"/suppliers?limit={PAGE}&offset={offset}")
        if isinstance(page, dict) and page.get("results"):
            suppliers = [supplier["id"] for supplier in page["results"]]
            offset = (offset + PAGE) % page["total"]
        for supplier in suppliers[:SYNCS_PER_PAGE]:
            attempt("POST", f"/suppliers/{supplier}/sync", {"source": "erp"})
        attempt("GET", "/health")
    report = {
        "requests": requests,
        "failures": len(failures),
        "first_failures": failures[:SHOWN_FAILURES],
        "seconds": round(time.monotonic() - started, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        _, address, duration = sys.argv
    except ValueError:
        sys.exit("usage: oauth2.py BASE_URL SECONDS")
    sys.exit(main(address, float(duration)))
