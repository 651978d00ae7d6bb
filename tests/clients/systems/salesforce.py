"""A sync with Salesforce as people write it: requests, one token, its instance. BASE_URL RUN, PASSWORD, LOGIN_URL."""

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
    answer = session.request(method, f"{instance}/services/data/v59.0/{path}", timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
    return answer


told = requests.post(
    os.environ["LOGIN_URL"] + "/services/oauth2/token",
    data={"grant_type": "client_credentials"},
    auth=("script", os.environ["PASSWORD"]),
    timeout=120,
)
if told.ok:
    session.headers["Authorization"] = f"Bearer {told.json()['access_token']}"
    instance = told.json()["instance_url"]
    pages = [call("GET", "query?q=SELECT+Id+FROM+Account", 200).json() for _ in range(4)]
    failures += ["a page is not whole" for page in pages if len(page.get("records", ())) != 25]
    for number in range(12):
        call("POST", "sobjects/Account", 201, json={"Name": f"{RUN}-{number}"})
    for _ in range(10):
        refused = call("POST", "sobjects/Account", 403, json={"Name": f"forbidden-{RUN}"})
    if refused.json()[0]["errorCode"] != "INSUFFICIENT_ACCESS_OR_READONLY":
        failures.append("the business error is another one")
    token = told.json()["access_token"]
    revoked = requests.post(f"{instance}/services/oauth2/revoke", data={"token": token}, timeout=120)
    if not revoked.ok:
        failures.append(f"revoke: {revoked.status_code}")
else:
    failures.append(f"token: {told.status_code} {told.text[:400]}")
print(json.dumps({"calls": len(calls), "failures": failures, "session": session.headers.get("Authorization")}))
sys.exit(1 if failures else 0)
