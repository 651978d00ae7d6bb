"""A nightly sync with Arena as people write it: it logs in by itself, uses one session, and retries nothing.

python arena.py http://api.example.com/v1 20
"""

from sync import PASSWORD, call, sync

session = {}


def login(base: str) -> None:
    """Log in with e-mail and password."""
    given = {"email": "old-script@plant.example", "password": PASSWORD, "workspaceId": 7}
    session["arena_session_id"] = str(call("POST", f"{base}/login", given)["arenaSessionId"])


sync(
    login,
    read=lambda base, number: call("GET", f"{base}/items?limit=20&offset={number % 100}", None, session),
    write=lambda base, name: call("POST", f"{base}/items", {"number": name, "name": "Bolt"}, session),
    logout=lambda base: call("PUT", f"{base}/logout", None, session),
)
