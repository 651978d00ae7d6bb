"""A sync with 3DEXPERIENCE as people write it: requests, a login by CAS. BASE_URL RUN, PASSWORD, PASSPORT."""

import json
import os
import sys

import requests

BASE, RUN = sys.argv[1:3]
PASSPORT = os.environ["PASSPORT"]
ITEMS = f"{BASE}/resources/v1/modeler/dseng/dseng:EngItem"
session = requests.Session()
failures = []
calls = []


def call(method, url, expected=200, **more):
    calls.append(url)
    answer = session.request(method, url, timeout=120, **more)
    if answer.status_code != expected or answer.history:
        failures.append(f"{method} {url}: {answer.status_code} {answer.text[:400]}")
    return answer


xhr = {"Accept": "application/json", "X-Requested-With": "XMLHttpRequest"}
asked = session.get(f"{PASSPORT}/login", params={"action": "get_auth_params"}, headers=xhr, timeout=120)
if not asked.ok:
    sys.exit(f"{asked.status_code} {asked.text}")
form = {
    "lt": asked.json()["lt"],
    "username": "script",
    "password": os.environ["PASSWORD"],
    "rememberMe": "no",
}
service = {"service": f"{BASE}/resources/v1/application/CSRF"}
told = session.post(f"{PASSPORT}/login", params=service, data=form, timeout=120)
if told.ok and "csrf" in told.text:
    session.headers["SecurityContext"] = "VPLMProjectLeader.Script.Common"
    pages = [call("GET", f"{ITEMS}/search", params={"$skip": skip}).json() for skip in (0, 25, 50, 75)]
    failures += ["a page is not whole" for page in pages if len(page.get("member", ())) != 25]
    csrf = call("GET", f"{BASE}/resources/v1/application/CSRF").json()["csrf"]
    session.headers[csrf["name"]] = csrf["value"]
    for number in range(12):
        call("POST", ITEMS, json={"items": [{"attributes": {"title": f"{RUN}-{number}"}}]})
    for _ in range(10):
        refused = call("POST", ITEMS, 403, json={"items": [{"attributes": {"title": f"forbidden-{RUN}"}}]})
    if "no access" not in refused.text:
        failures.append("the business error is another one")
    session.get(f"{PASSPORT}/logout", timeout=120)
else:
    failures.append(f"login: {told.status_code} {told.text[:400]}")
print(json.dumps({"calls": len(calls), "failures": failures, "session": session.cookies.get_dict()}))
sys.exit(1 if failures else 0)
