"""A nightly sync with Teamcenter as people write it: it logs in by itself, keeps its cookies, and retries nothing.

It stands for the unmodified script: it knows its own old password, and of proxies only what `urllib` reads from the
environment. It imports nothing of this package.

    python demo_teamcenter.py http://plm.example.com 20
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar

LOGIN = {
    "user": "old-script",
    "password": "caNARY-of-last-year",
    "group": "",
    "role": "",
    "locale": "",
    "descrimator": "x",
}
PAUSE = 0.05
TIMEOUT = 60

jar = CookieJar()
opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))


def call(url: str, service: str, body: object) -> dict[str, object]:
    """Send one request and return the JSON of its answer; raises for an exception that it tells of."""
    xsrf = next((cookie.value for cookie in jar if cookie.name == "XSRF-TOKEN"), "") or ""
    data = json.dumps({"header": {"state": {}, "policy": {}}, "body": body}).encode()
    headers = {"Content-Type": "application/json", "X-XSRF-TOKEN": xsrf}
    request = urllib.request.Request(f"{url}/tc/JsonRestServices/{service}", data=data, headers=headers)  # noqa: S310
    with opener.open(request, timeout=TIMEOUT) as answer:
        told: dict[str, object] = json.loads(answer.read())
    if "Exceptions." in str(told.get(".QName")):
        raise ValueError(str(told.get("message")))
    return told


def main(base_url: str, seconds: float) -> int:
    """Sync for *seconds*, print one JSON line; return 1 if a request failed, else 0."""
    started, requests, failures = time.monotonic(), 0, []
    number, run = 0, f"{time.time_ns():x}"

    def attempt(service: str, body: object) -> dict[str, object]:
        nonlocal requests
        requests += 1
        try:
            return call(base_url, service, body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{service}: {error}")
            return {}
        finally:
            time.sleep(PAUSE)

    opener.open(f"{base_url}/getSessionVars", timeout=TIMEOUT).read()
    fine = attempt("Core-2011-06-Session/login", {"credentials": LOGIN})
    while fine and time.monotonic() - started < seconds:
        attempt("Core-2006-03-DataManagement/getProperties", {"start": number})
        for _ in range(4):
            number += 1
            attempt("Core-2006-03-DataManagement/createItems", {"items": [{"id": f"{run}-{number}"}]})
    if fine:
        attempt("Core-2006-03-Session/logout", {})
    report = {"requests": requests, "failures": len(failures), "first_failures": failures[:5], "writes": number}
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/"), float(sys.argv[2])))
