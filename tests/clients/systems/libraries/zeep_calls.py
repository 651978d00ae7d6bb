"""Accounts by zeep with a partner WSDL at hand: a login, then the session in a SOAP header. BASE_URL RUN."""

import json
import os
import sys
from pathlib import Path

import zeep

base, run = sys.argv[1:3]
failures = []
client = zeep.Client(str(Path(__file__).with_name("partner.wsdl")))
binding = "{urn:partner.soap.sforce.com}SoapBinding"
service = client.create_service(binding, f"{base}/services/Soap/u/59.0")
login = service.login(username="script", password=os.environ["PASSWORD"])
service = client.create_service(binding, login.serverUrl)
header = client.get_element("{urn:partner.soap.sforce.com}SessionHeader")(sessionId=login.sessionId)
for _ in range(4):
    found = service.query("SELECT Name FROM Account", _soapheaders=[header])
    if len(found.records) != 25:
        failures.append("a page is not whole")
for number in range(12):
    made = service.create({"type": "Account", "Name": f"{run}-{number}"}, _soapheaders=[header])
    if not made.success:
        failures.append(f"account {number} was not made")
service.logout(_soapheaders=[header])
print(json.dumps({"failures": failures}))
sys.exit(1 if failures else 0)
