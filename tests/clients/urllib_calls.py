"""Python urllib: urllib_calls.py URL"""

import hashlib
import os
import sys
import urllib.error
import urllib.request

base = sys.argv[1]


def call(method: str, path: str, body: bytes | None = None) -> None:
    request = urllib.request.Request(base + path, data=body, method=method)
    if "AUTH" in os.environ:
        request.add_header("Authorization", os.environ["AUTH"])
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        print(f"> {method} {path}")
        print(response.status, response.reason)
        for name, value in response.headers.items():
            print(f"{name}: {value}")
        print(hashlib.sha256(response.read()).hexdigest())


for name in ("/json?x=1&y=%2F", "/gzip", "/missing", "/moved", "/chunked", "/large"):
    call("GET", name)
call("HEAD", "/json")
call("POST", "/items", b'{"name": "bolt"}')
