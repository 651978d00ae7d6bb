"""A nightly sync with Veeva Vault as people write it: it logs in by itself, and looks at responseStatus.

python veeva_vault.py http://vault.example.com 20
"""

import json
from urllib.parse import urlencode

from sync import PASSWORD, Failed, send, sync

session = {"Accept": "application/json"}


def vault(base: str, method: str, path: str, **form: str) -> dict[str, object]:
    """Call the API; what its answer tells of is a failure."""
    told = json.loads(send(method, f"{base}/api/v24.1/{path}", urlencode(form).encode() or None, session)[1])
    if told["responseStatus"] != "SUCCESS":
        raise Failed(told["errors"][0]["type"])
    return told


def login(base: str) -> None:
    """Log in with user name and password."""
    session["Authorization"] = vault(base, "POST", "auth", username="old-script", password=PASSWORD)["sessionId"]


sync(
    login,
    read=lambda base, number: vault(base, "GET", f"objects/documents?start={number}"),
    write=lambda base, name: vault(base, "POST", "objects/documents", name__v=name),
    logout=lambda base: vault(base, "DELETE", "session"),
)
