"""Accounts by simple-salesforce, as its documents have it: a login at login.salesforce.com. BASE_URL RUN."""

import json
import os
import sys

from simple_salesforce import Salesforce
from simple_salesforce.exceptions import SalesforceError

run = sys.argv[2]
failures = []
org = Salesforce(username="script", password=os.environ["PASSWORD"], security_token="")
pages = [org.query("SELECT Id FROM Account")["records"] for _ in range(4)]
failures += ["a page is not whole" for page in pages if len(page) != 25]
for number in range(12):
    try:
        if not org.Account.create({"Name": f"{run}-{number}"})["success"]:
            failures.append(f"account {number} was not made")
    except SalesforceError as error:
        failures.append(repr(error))
try:
    org.Account.create({"Name": f"forbidden-{run}"})
    failures.append("what is forbidden was done")
except SalesforceError as error:
    if error.content[0]["errorCode"] != "INSUFFICIENT_ACCESS_OR_READONLY":
        failures.append(repr(error))
print(json.dumps({"failures": failures}))
sys.exit(1 if failures else 0)
