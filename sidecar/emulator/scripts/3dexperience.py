"""A nightly sync with 3DEXPERIENCE as people write it: it logs in at 3DPassport and keeps its cookies.

PASSPORT=http://passport.example.com/3dpassport python 3dexperience.py http://plant.example.com/3dspace 20
"""

import json
import os
from urllib.parse import quote, urlencode

from sync import PASSWORD, call, send, sync

headers = {"SecurityContext": "VPLMAdmin.Plant.Common"}


def login(base: str) -> None:
    """Log in by CAS, and get the nonce."""
    passport = os.environ["PASSPORT"]
    asked = send("GET", f"{passport}/login?action=get_auth_params", None, {"Accept": "application/json"})[1]
    form = {"lt": json.loads(asked)["lt"], "username": "old-script", "password": PASSWORD}
    service = quote(f"{base}/resources/v1/application/CSRF", safe="")
    told = json.loads(send("POST", f"{passport}/login?service={service}", urlencode(form).encode())[1])
    headers[told["csrf"]["name"]] = told["csrf"]["value"]


ITEMS = "resources/v1/modeler/dseng/dseng:EngItem"
sync(
    login,
    read=lambda base, number: call("GET", f"{base}/{ITEMS}/search?$skip={number}", None, headers),
    write=lambda base, name: call("POST", f"{base}/{ITEMS}", {"items": [{"attributes": {"title": name}}]}, headers),
    logout=lambda base: send("GET", os.environ["PASSPORT"] + "/logout"),
)
