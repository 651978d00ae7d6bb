"""A sync with SAP Gateway as people write it: requests, a token, no retries. BASE_URL RUN, the password in PASSWORD."""

import hashlib
import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
session = requests.Session()
session.auth = ("script", os.environ["PASSWORD"])
failures = []
calls = []


def call(method, path, expected=200, **more):
    calls.append(path)
    answer = session.request(method, f"{BASE}/{path}", timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
    return answer


# With a read whose rows are wanted too, as many do.
told = call("GET", "API_PRODUCT_SRV/A_Product?$top=25", headers={"x-csrf-token": "fetch"})
token = told.headers.get("x-csrf-token", "")
if told.ok:
    if len(told.json()["d"]["results"]) != 25 or not session.cookies:
        failures.append("the rows or the cookies are missing")
    session.headers["x-csrf-token"] = token
    pages = [call("GET", f"API_PRODUCT_SRV/A_Product?$skip={start}&$top=25").json() for start in (25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("d", {}).get("results", ())) != 25]
    for number in range(12):
        call("POST", "API_PRODUCT_SRV/A_Product", 201, json={"Product": f"{RUN}-{number}"})
    refused = call("POST", "API_PRODUCT_SRV/A_Product", 403, json={"Product": "forbidden"})
    if "authorization" not in refused.text:
        failures.append("the business error is another one")
    content = hashlib.sha256(RUN.encode()).digest() * 4096
    call("POST", "API_CV_ATTACHMENT_SRV/AttachmentContentSet", 201, data=content, headers={"Slug": f"{RUN}.bin"})
    if call("GET", f"API_CV_ATTACHMENT_SRV/AttachmentContentSet('{RUN}.bin')/$value").content != content:
        failures.append("the file came back as another one")
print(json.dumps({"calls": len(calls), "failures": failures, "session": token}))
sys.exit(1 if failures else 0)
