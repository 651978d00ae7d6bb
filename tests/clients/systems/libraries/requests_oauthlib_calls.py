"""Items of Fusion Manage by requests-oauthlib, which has a clock of its own for its token. BASE_URL RUN, TOKEN_URL."""

import json
import os
import sys
import time

from oauthlib.oauth2 import BackendApplicationClient, TokenExpiredError
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

base, run = sys.argv[1:3]
items = f"{base}/api/v3/workspaces/57/items"
failures = []
fetched = []
client = OAuth2Session(client=BackendApplicationClient(client_id="script", scope=["data:read", "data:write"]))
client.headers["X-user-id"] = "script@plant.example"


def fetch():
    fetched.append(client.fetch_token(os.environ["TOKEN_URL"], auth=HTTPBasicAuth("script", os.environ["PASSWORD"])))


def call(method, url, expected, **more):
    time.sleep(0.2)
    try:
        answer = client.request(method, url, timeout=120, **more)
    except TokenExpiredError:
        fetch()
        answer = client.request(method, url, timeout=120, **more)
    if answer.status_code != expected:
        failures.append(f"{method} {url}: {answer.status_code} {answer.text[:300]}")
    return answer


fetch()
pages = [call("GET", f"{items}?offset={offset}", 200).json() for offset in (0, 25, 50, 75)]
failures += ["a page is not whole" for page in pages if len(page.get("items", ())) != 25]
for number in range(12):
    call("POST", items, 201, json={"title": f"{run}-{number}"})
print(json.dumps({"failures": failures, "fetched": len(fetched)}))
sys.exit(1 if failures else 0)
