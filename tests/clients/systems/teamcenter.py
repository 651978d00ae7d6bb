"""A sync with Teamcenter as people write it: requests, cookies, no retries. BASE_URL RUN, the password in PASSWORD."""

import hashlib
import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
session = requests.Session()
failures = []
calls = []


def call(service, body, expected=""):
    calls.append(service)
    headers = {"X-XSRF-TOKEN": session.cookies.get("XSRF-TOKEN", "")}
    given = {"header": {"state": {}, "policy": {}}, "body": body}
    answer = session.post(f"{BASE}/tc/JsonRestServices/{service}", json=given, headers=headers, timeout=120)
    try:
        told = answer.json()
    except ValueError:
        failures.append(f"{service}: {answer.status_code} {answer.text[:100]}")
        return {}
    if not told.get(".QName", "").endswith(expected) or (not expected and "Exceptions." in told.get(".QName", "x")):
        failures.append(f"{service}: {answer.status_code} {answer.text[:300]}")
    return told


session.get(f"{BASE}/getSessionVars", timeout=60)
given = {
    "user": "script",
    "password": os.environ["PASSWORD"],
    "group": "",
    "role": "",
    "locale": "",
    "descrimator": "x",
}
told = call("Core-2011-06-Session/login", {"credentials": given}, "Session.LoginResponse")
if not failures:
    call("Internal-AWS2-2019-12-DataManagement/getTCSessionAnalyticsInfo", {"extraInfoIn": {}})
    pages = [call("Core-2006-03-DataManagement/getProperties", {"start": start}) for start in (0, 25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("rows", ())) != 25]
    for number in range(12):
        made = call("Core-2006-03-DataManagement/createItems", {"items": [{"id": f"{RUN}-{number}"}]})
        if len(made.get("output", ())) != 1:
            failures.append(f"item {number} was not made")
    partial = call("Core-2006-03-DataManagement/createItems", {"items": [{"id": f"bad-{RUN}"}]})
    if not partial.get("ServiceData", {}).get("partialErrors"):
        failures.append("a partial error is missing")
    call("Core-2007-09-Release/setReleaseStatus", {}, "Exceptions.ServiceException")
    content = hashlib.sha256(RUN.encode()).digest() * 4096
    headers = {"X-XSRF-TOKEN": session.cookies.get("XSRF-TOKEN", "")}
    files = {"fmsFile": (f"{RUN}.bin", content)}
    calls.extend(["fmsupload", "fmsdownload"])
    sent = session.post(f"{BASE}/fms/fmsupload", files=files, data={"fmsTicket": "t"}, headers=headers, timeout=120)
    if sent.status_code != 200:
        failures.append(f"fmsupload: {sent.status_code}")
    ticket = call("Core-2006-03-FileManagement/getFileReadTickets", {"file": f"{RUN}.bin"}).get("ticket")
    got = session.get(f"{BASE}/fms/fmsdownload/x", params={"ticket": ticket}, timeout=120)
    if got.content != content:
        failures.append("the file came back as another one")
    call("Core-2006-03-Session/logout", {}, "Session.LogoutResponse")
print(json.dumps({"calls": len(calls), "failures": failures, "session": session.cookies.get("JSESSIONID")}))
sys.exit(1 if failures else 0)
