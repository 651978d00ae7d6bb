"""Python http.client, which knows no proxy by itself: http_client_calls.py URL"""

import hashlib
import http.client
import os
import sys
from urllib.parse import urlsplit

url = urlsplit(sys.argv[1])
connection = (http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection)(url.netloc)
headers = {"Authorization": os.environ["AUTH"]} if "AUTH" in os.environ else {}


def call(method: str, path: str, body: bytes | None = None) -> None:
    connection.request(method, url.path.rstrip("/") + path, body, headers)
    response = connection.getresponse()
    print(f"> {method} {path}")
    print(response.status, response.reason)
    for name, value in response.getheaders():
        print(f"{name}: {value}")
    print(hashlib.sha256(response.read()).hexdigest())


for name in ("/json?x=1&y=%2F", "/gzip", "/missing", "/moved", "/chunked", "/large"):
    call("GET", name)
call("HEAD", "/json")
call("POST", "/items", b'{"name": "bolt"}')
