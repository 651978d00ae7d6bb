"""A nightly sync with Fusion Manage as people write it: one token for two legs, and no thought of its end.

TOKEN_URL=http://developer.example.com/authentication/v2/token python autodesk.py http://plant.example.com 20
"""

import json
import os
from base64 import b64encode
from urllib.parse import urlencode

from sync import PASSWORD, call, send, sync

headers = {"X-user-id": "script@plant.example"}


def login(base: str) -> None:
    """Get a token with the app's id and secret."""
    proof = {"Authorization": "Basic " + b64encode(f"old-script:{PASSWORD}".encode()).decode()}
    form = urlencode({"grant_type": "client_credentials", "scope": "data:read data:write"}).encode()
    told = json.loads(send("POST", os.environ["TOKEN_URL"], form, proof)[1])
    headers["Authorization"] = f"Bearer {told['access_token']}"


sync(
    login,
    read=lambda base, number: call("GET", f"{base}/api/v3/workspaces/57/items?offset={number}", None, headers),
    write=lambda base, name: call("POST", f"{base}/api/v3/workspaces/57/items", {"title": name}, headers),
)
