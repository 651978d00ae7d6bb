"""A nightly sync with Teamcenter as people write it: it logs in by itself, keeps its cookies, and retries nothing.

python teamcenter.py http://plm.example.com 20
"""

from sync import PASSWORD, Failed, call, jar, send, sync

LOGIN = {"user": "old-script", "password": PASSWORD, "group": "", "role": "", "locale": "", "descrimator": "x"}


def service(base: str, name: str, body: object) -> None:
    """Call an operation; an exception that its answer tells of is a failure."""
    xsrf = next((cookie.value for cookie in jar if cookie.name == "XSRF-TOKEN"), "") or ""
    given = {"header": {"state": {}, "policy": {}}, "body": body}
    told = call("POST", f"{base}/tc/JsonRestServices/{name}", given, {"X-XSRF-TOKEN": xsrf})
    if "Exceptions." in str(told.get(".QName")):
        raise Failed(str(told.get("message")))


def login(base: str) -> None:
    """Get the gateway's cookie, then log in."""
    send("GET", f"{base}/getSessionVars")
    service(base, "Core-2011-06-Session/login", {"credentials": LOGIN})


sync(
    login,
    read=lambda base, number: service(base, "Core-2006-03-DataManagement/getProperties", {"start": number}),
    write=lambda base, name: service(base, "Core-2006-03-DataManagement/createItems", {"items": [{"id": name}]}),
    logout=lambda base: service(base, "Core-2006-03-Session/logout", {}),
)
