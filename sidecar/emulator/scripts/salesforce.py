"""A nightly sync with Salesforce as people write it: one token, its instance_url, and no thought of the token's end.

LOGIN_URL=http://login.example.com python salesforce.py http://plant.example.com 20
"""

import json
import os
from base64 import b64encode
from urllib.parse import urlencode

from sync import PASSWORD, call, send, sync

session = {}


def login(base: str) -> None:
    """Get a token with the client's id and secret."""
    proof = {"Authorization": "Basic " + b64encode(f"old-script:{PASSWORD}".encode()).decode()}
    form = urlencode({"grant_type": "client_credentials"}).encode()
    told = json.loads(send("POST", os.environ["LOGIN_URL"] + "/services/oauth2/token", form, proof)[1])
    session["Authorization"] = f"Bearer {told['access_token']}"
    session["Instance"] = told["instance_url"]


def rest(base: str, method: str, path: str, given: object = None) -> None:
    """Call the REST API of the instance that the token is of."""
    call(method, f"{base}/services/data/v59.0/{path}", given, {"Authorization": session["Authorization"]})


sync(
    login,
    read=lambda base, number: rest(base, "GET", "query?q=SELECT+Id+FROM+Account"),
    write=lambda base, name: rest(base, "POST", "sobjects/Account", {"Name": name}),
)
