"""Python requests: requests_calls.py URL"""

import hashlib
import os
import sys

import requests

base = sys.argv[1]
headers = {"Authorization": os.environ["AUTH"]} if "AUTH" in os.environ else {}


def show(call: str, response: requests.Response) -> None:
    print(f"> {call}")
    print(response.status_code, response.reason)
    for name, value in response.raw.headers.items():
        print(f"{name}: {value}")
    print(hashlib.sha256(response.content).hexdigest())


for path in ("/json?x=1&y=%2F", "/gzip", "/missing", "/moved", "/chunked", "/large"):
    show(f"GET {path}", requests.get(base + path, headers=headers, timeout=30))
show("HEAD /json", requests.head(base + "/json", headers=headers, timeout=30))
with requests.Session() as session:
    session.headers.update(headers)
    show("GET /json", session.get(base + "/json", timeout=30))
    show("POST /items", session.post(base + "/items", json={"name": "bolt"}, timeout=30))
