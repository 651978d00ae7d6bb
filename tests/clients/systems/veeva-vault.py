"""A sync with Veeva Vault as people write it: requests, responseStatus, no retries. BASE_URL RUN, PASSWORD."""

import hashlib
import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
session = requests.Session()
session.headers["Accept"] = "application/json"
failures = []
calls = []


def vault(method, path, expected="SUCCESS", **more):
    calls.append(path)
    answer = session.request(method, f"{BASE}/api/v24.1/{path}", timeout=120, **more)
    try:
        told = answer.json()
    except ValueError:
        told = {}
    found = told.get("errors", [{}])[0].get("type") or told.get("responseStatus")
    if found != expected:
        failures.append(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
    return told


told = vault("POST", "auth", data={"username": "script", "password": os.environ["PASSWORD"]})
if not failures:
    session.headers["Authorization"] = told["sessionId"]
    pages = [vault("GET", f"objects/documents?start={start}") for start in (0, 25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("documents", ())) != 25]
    for number in range(12):
        made = vault("POST", "objects/documents", data={"name__v": f"{RUN}-{number}"})
    content = hashlib.sha256(RUN.encode()).digest() * 4096
    kind = {"Content-Type": "application/octet-stream"}
    vault("PUT", f"objects/documents/{made.get('id')}/file", data=content, headers=kind)
    calls.append("file")
    got = session.get(f"{BASE}/api/v24.1/objects/documents/{made.get('id')}/file", timeout=120)
    if got.content != content:
        failures.append("the file came back as another one")
    for _ in range(10):
        vault("POST", "objects/documents", "INSUFFICIENT_ACCESS", data={"name__v": f"forbidden-{RUN}"})
    vault("DELETE", "session")
print(json.dumps({"calls": len(calls), "failures": failures, "session": session.headers.get("Authorization")}))
sys.exit(1 if failures else 0)
