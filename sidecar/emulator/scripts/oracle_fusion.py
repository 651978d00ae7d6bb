"""A nightly sync with Oracle Fusion as people write it: a token of the token relay, no renewal, no retries.

python oracle_fusion.py http://plm.example.com/fscmRestApi 20
"""

from base64 import b64encode

from sync import PASSWORD, call, sync

ITEMS = "resources/11.13.18.05/itemsV2"
token = {}


def login(base: str) -> None:
    """Get a token for name and password."""
    basic = {"Authorization": "Basic " + b64encode(f"OLD_SCRIPT:{PASSWORD}".encode()).decode()}
    token["Authorization"] = f"Bearer {call('GET', f'{base}/tokenrelay', None, basic)['access_token']}"


sync(
    login,
    read=lambda base, number: call("GET", f"{base}/{ITEMS}?offset={number}", None, token),
    write=lambda base, name: call("POST", f"{base}/{ITEMS}", {"ItemNumber": name}, token),
)
