"""A sync with Oracle Fusion as people write it: requests, no retries. BASE_URL RUN, the password in PASSWORD."""

import base64
import hashlib
import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
RESOURCES = "resources/11.13.18.05"
session = requests.Session()
failures = []
calls = []


def call(method, path, expected=200, **more):
    calls.append(path)
    answer = session.request(method, f"{BASE}/{path}", timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
    return answer


told = call("GET", "tokenrelay", auth=("script", os.environ["PASSWORD"]))
token = ""
if told.ok:
    token = told.json()["access_token"]
    if told.json()["expires_in"] < 1_000_000:
        failures.append("the life is not in milliseconds")
    session.headers["Authorization"] = f"Bearer {token}"
    pages = [call("GET", f"{RESOURCES}/itemsV2?offset={start}&limit=25").json() for start in (0, 25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("items", ())) != 25]
    for number in range(12):
        call("POST", f"{RESOURCES}/itemsV2", 201, json={"ItemNumber": f"{RUN}-{number}"})
    refused = call("POST", f"{RESOURCES}/productChangeOrders", 401, json={})
    if "scope" not in refused.text:
        failures.append("the business error is another one")
    content = hashlib.sha256(RUN.encode()).digest() * 4096
    given = {"FileName": f"{RUN}.bin", "FileContents": base64.b64encode(content).decode()}
    call("POST", f"{RESOURCES}/attachments", 201, json=given)
    if call("GET", f"{RESOURCES}/attachments/{RUN}.bin").content != content:
        failures.append("the file came back as another one")
print(json.dumps({"calls": len(calls), "failures": failures, "session": token}))
sys.exit(1 if failures else 0)
