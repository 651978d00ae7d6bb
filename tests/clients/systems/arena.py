"""A sync with Arena as people write it: requests, one session, no retries. BASE_URL RUN, the password in PASSWORD."""

import hashlib
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


given = {"email": "script@plant.example", "password": os.environ["PASSWORD"], "workspaceId": 7}
told = call("POST", "/login", json=given)
if told.ok:
    session.headers["arena_session_id"] = told.json()["arenaSessionId"]
    seen = 0
    while seen < 80:
        page = call("GET", f"/items?offset={seen}&limit=20").json()
        seen += len(page.get("results", ())) or 80
    for number in range(12):
        call("POST", "/items", 201, json={"number": f"{RUN}-{number}", "name": "Bolt"})
    content = hashlib.sha256(RUN.encode()).digest() * 4096
    guid = call("POST", "/files", 201, files={"content": ("drawing.bin", content)}).headers.get("X-Arena-FileGuid")
    if call("GET", f"/files/{guid}/content").content != content:
        failures.append("the file came back as another one")
    refused = call("PUT", "/items/X/lifecycle", 400, json={})
    if refused.json()["errors"][0]["code"] != 4001:
        failures.append("the business error is another one")
    call("PUT", "/logout")
print(json.dumps({"calls": len(calls), "failures": failures, "session": session.headers.get("arena_session_id")}))
sys.exit(1 if failures else 0)
