"""Python httpx, one client and so one cookie jar: httpx_calls.py URL"""

import hashlib
import os
import sys

import httpx

headers = {"Authorization": os.environ["AUTH"]} if "AUTH" in os.environ else {}

with httpx.Client(base_url=sys.argv[1], headers=headers, follow_redirects=True) as client:

    def call(method: str, path: str, json: object = None) -> None:
        response = client.request(method, path, json=json)
        print(f"> {method} {path}")
        print(response.status_code, response.reason_phrase)
        for name, value in response.headers.raw:
            print(f"{name.decode()}: {value.decode()}")
        print(hashlib.sha256(response.content).hexdigest())

    for name in ("/json?x=1&y=%2F", "/gzip", "/missing", "/moved", "/chunked", "/large"):
        call("GET", name)
    call("HEAD", "/json")
    call("POST", "/items", {"name": "bolt"})
