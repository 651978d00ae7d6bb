"""A sync with Windchill as people write it: requests, a nonce, no retries. BASE_URL RUN, the password in PASSWORD."""

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
    url = path if path.startswith("http") else f"{BASE}/servlet/odata/{path}"
    answer = session.request(method, url, timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
    return answer


nonce = ""
told = call("GET", "PTC/GetCSRFToken()")
if told.ok:
    nonce = told.json()["NonceValue"]
    session.headers[told.json()["NonceKey"]] = nonce
    pages = [call("GET", f"ProdMgmt/Parts?$skip={start}&$top=25").json() for start in (0, 25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("value", ())) != 25]
    for number in range(12):
        call("POST", "ProdMgmt/Parts", 201, json={"Number": f"{RUN}-{number}", "Name": "Bolt"})
    refused = call("POST", "v6/ProdMgmt/Parts", 403, json={"Number": "forbidden", "Name": "Bolt"})
    if "permission" not in refused.text:
        failures.append("the business error is another one")
    content = hashlib.sha256(RUN.encode()).digest() * 4096
    document = f"DocMgmt/Documents('OR:{RUN}')"
    stage = call("POST", f"{document}/PTC.DocMgmt.UploadStage1Action", json={"NoOfFiles": 1}).json()
    if replica := stage.get("value"):
        files = {"1": ("drawing.bin", content)}
        info = call("POST", replica[0]["ReplicaUrl"], files=files).json()["contentInfos"][0]
        given = {
            "ContentInfo": [{"StreamId": info["streamId"], "EncodedInfo": info["encodedInfo"], "PrimaryContent": True}]
        }
        call("POST", f"{document}/PTC.DocMgmt.UploadStage3Action", json=given)
        if call("GET", f"{document}/PrimaryContent/$value").content != content:
            failures.append("the file came back as another one")
print(json.dumps({"calls": len(calls), "failures": failures, "session": nonce}))
sys.exit(1 if failures else 0)
