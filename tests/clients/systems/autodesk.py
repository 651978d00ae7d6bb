"""A sync with Fusion Manage as people write it: requests, one token, no retries. BASE_URL RUN, PASSWORD, TOKEN_URL."""

import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
session = requests.Session()
failures = []
calls = []


def call(method, path, expected, **more):
    calls.append(path)
    answer = session.request(method, f"{BASE}/api/v3/workspaces/57/{path}", timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
    return answer


told = requests.post(
    os.environ["TOKEN_URL"],
    data={"grant_type": "client_credentials", "scope": "data:read data:write"},
    auth=("script", os.environ["PASSWORD"]),
    timeout=120,
)
if told.ok:
    session.headers["Authorization"] = f"Bearer {told.json()['access_token']}"
    session.headers["X-user-id"] = "script@plant.example"
    pages = [call("GET", f"items?offset={offset}", 200).json() for offset in (0, 25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("items", ())) != 25]
    for number in range(12):
        call("POST", "items", 201, json={"title": f"{RUN}-{number}"})
    for _ in range(10):
        refused = call("POST", "items", 403, json={"title": f"forbidden-{RUN}"})
    if refused.json()["errorCode"] != "FORBIDDEN":
        failures.append("the business error is another one")
else:
    failures.append(f"token: {told.status_code} {told.text[:400]}")
print(json.dumps({"calls": len(calls), "failures": failures, "session": session.headers.get("Authorization")}))
sys.exit(1 if failures else 0)
