"""A nightly sync with SAP Gateway as people write it: HTTP Basic, cookies, one token for all, and no retries.

python sap_odata.py http://s4.example.com/sap/opu/odata/sap 20
"""

from base64 import b64encode

from sync import PASSWORD, call, send, sync

basic = {"Authorization": "Basic " + b64encode(f"OLD_SCRIPT:{PASSWORD}".encode()).decode()}
token = {}


def login(base: str) -> None:
    """Fetch the token that writes want."""
    told, _ = send("GET", f"{base}/API_PRODUCT_SRV/", None, basic | {"X-CSRF-Token": "Fetch"})
    token["X-CSRF-Token"] = told["X-CSRF-Token"]


sync(
    login,
    read=lambda base, number: call("GET", f"{base}/API_PRODUCT_SRV/A_Product?$skip={number}", None, basic),
    write=lambda base, name: call("POST", f"{base}/API_PRODUCT_SRV/A_Product", {"Product": name}, basic | token),
)
