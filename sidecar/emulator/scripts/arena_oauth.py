"""A nightly sync with Arena's OAuth client of a machine user, as people write it: one token, and no thought of its end.

TOKEN_URL=http://oauth.example.com/oauth2/token python arena_oauth.py http://api.example.com/v1 20
"""

import json
import os
from urllib.parse import urlencode

from sync import PASSWORD, call, send, sync

session = {}


def login(base: str) -> None:
    """Get a token."""
    form = {"grant_type": "client_credentials", "client_id": "old", "client_secret": PASSWORD, "workspace_id": "7"}
    told = send("POST", os.environ["TOKEN_URL"], urlencode(form).encode())[1]
    session["Authorization"] = f"Bearer {json.loads(told)['access_token']}"


sync(
    login,
    read=lambda base, number: call("GET", f"{base}/items?limit=20&offset={number % 100}", None, session),
    write=lambda base, name: call("POST", f"{base}/items", {"number": name, "name": "Bolt"}, session),
)
