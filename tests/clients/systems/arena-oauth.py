"""A sync with Arena's machine user as people write it: requests, one token. BASE_URL RUN, PASSWORD, TOKEN_URL."""

import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
session = requests.Session()
failures = []
calls = []


def call(method, path, expected=200, **more):
    calls.append(path)
    answer = session.request(method, BASE + path, timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
    return answer


form = {
    "grant_type": "client_credentials",
    "client_id": "script",
    "client_secret": os.environ["PASSWORD"],
    "workspace_id": "7",
}
told = requests.post(os.environ["TOKEN_URL"], data=form, timeout=120)
if told.ok:
    session.headers["Authorization"] = f"Bearer {told.json()['access_token']}"
    pages = [call("GET", f"/items?offset={offset}&limit=20").json() for offset in (0, 20, 40, 60)]
    failures += ["a page is not whole" for page in pages if len(page.get("results", ())) != 20]
    for number in range(12):
        call("POST", "/items", 201, json={"number": f"{RUN}-{number}", "name": "Bolt"})
    refused = call("PUT", "/items/X/lifecycle", 400, json={})
    if refused.json()["errors"][0]["code"] != 4001:
        failures.append("the business error is another one")
else:
    failures.append(f"token: {told.status_code} {told.text[:400]}")
print(json.dumps({"calls": len(calls), "failures": failures, "session": session.headers.get("Authorization")}))
sys.exit(1 if failures else 0)
