"""A sync with Aras Innovator as people write it: requests, no retries. BASE_URL RUN, the password in PASSWORD."""

import hashlib
import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
session = requests.Session()
failures = []
calls = []


def call(method, url, expected=200, **more):
    calls.append(url)
    answer = session.request(method, url if url.startswith("http") else f"{BASE}/{url}", timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {url}: {answer.status_code} {answer.text[:400]}")
    return answer


def login():
    oauth = call("GET", "Server/OAuthServerDiscovery.aspx").json()["locations"][0]["uri"]
    endpoint = call("GET", f"{oauth}.well-known/openid-configuration").json()["token_endpoint"]
    form = {
        "grant_type": "password",
        "scope": "Innovator",
        "client_id": "IOMApp",
        "username": "script",
        "password": hashlib.md5(os.environ["PASSWORD"].encode()).hexdigest(),
        "database": "InnovatorSolutions",
    }
    return call("POST", endpoint, data=form).json().get("access_token")


token = login()
if token:
    session.headers["Authorization"] = f"Bearer {token}"
    pages = [call("GET", f"Server/odata/Part?$skip={start}&$top=25").json() for start in (0, 25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("value", ())) != 25]
    for number in range(12):
        call("POST", "Server/odata/Part", 201, json={"item_number": f"{RUN}-{number}"})
    refused = call("POST", "Server/odata/Part", 400, json={"item_number": "locked"})
    if "ItemIsLocked" not in refused.text:
        failures.append("the business error is another one")
    content = hashlib.sha256(RUN.encode()).digest() * 4096
    begun = call("POST", "vault/odata/vault.BeginTransaction").json().get("transactionId")
    there = {"transactionid": begun}
    call("POST", f"vault/odata/vault.UploadFile?fileId={RUN}", data=content, headers=there)
    call("POST", "vault/odata/vault.CommitTransaction", data=RUN, headers=there)
    if call("GET", f"Server/odata/File('{RUN}')/$value").content != content:
        failures.append("the file came back as another one")
    call("POST", "Server/InnovatorServer.aspx", data="<logoff skip_unlock='0'/>", headers={"SOAPAction": "LogOff"})
print(json.dumps({"calls": len(calls), "failures": failures, "session": token}))
sys.exit(1 if failures else 0)
