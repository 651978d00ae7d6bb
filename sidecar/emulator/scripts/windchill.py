"""A nightly sync with Windchill as people write it: HTTP Basic, cookies, one nonce for all, and no retries.

python windchill.py http://plm.example.com/Windchill 20
"""

from base64 import b64encode

from sync import PASSWORD, call, sync

fields = {"Authorization": "Basic " + b64encode(f"old-script:{PASSWORD}".encode()).decode()}


def login(base: str) -> None:
    """Fetch the nonce that writes want."""
    told = call("GET", f"{base}/servlet/odata/PTC/GetCSRFToken()", None, fields)
    fields[str(told["NonceKey"])] = str(told["NonceValue"])


sync(
    login,
    read=lambda base, number: call("GET", f"{base}/servlet/odata/ProdMgmt/Parts?$skip={number}", None, fields),
    write=lambda base, name: call("POST", f"{base}/servlet/odata/ProdMgmt/Parts", {"Number": name}, fields),
)
