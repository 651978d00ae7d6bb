"""A nightly sync with Aras Innovator as people write it: the token of its password, no renewal, no retries.

python aras.py http://plm.example.com/InnovatorServer 20
"""

import json
from hashlib import md5
from urllib.parse import urlencode

from sync import PASSWORD, call, send, sync

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
LOGOFF = {"SOAPAction": "LogOff", "Content-Type": "text/xml"}
token = {}


def login(base: str) -> None:
    """Find the token endpoint, and show it the hash of the password."""
    oauth = call("GET", f"{base}/Server/OAuthServerDiscovery.aspx")["locations"][0]["uri"]
    endpoint = str(call("GET", f"{oauth}.well-known/openid-configuration")["token_endpoint"])
    hashed = md5(PASSWORD.encode(), usedforsecurity=False).hexdigest()
    form = {"grant_type": "password", "scope": "Innovator", "client_id": "IOMApp", "database": "InnovatorSolutions"}
    form |= {"username": "old-script", "password": hashed}
    token["Authorization"] = f"Bearer {call_form(endpoint, form)['access_token']}"


def call_form(url: str, form: dict) -> dict:
    """Send a form, and return the JSON of the answer."""
    return json.loads(send("POST", url, urlencode(form).encode(), FORM)[1])


sync(
    login,
    read=lambda base, number: call("GET", f"{base}/Server/odata/Part?$skip={number}", None, token),
    write=lambda base, name: call("POST", f"{base}/Server/odata/Part", {"item_number": name}, token),
    logout=lambda base: send("POST", f"{base}/Server/InnovatorServer.aspx", b"<logoff/>", LOGOFF | token),
)
