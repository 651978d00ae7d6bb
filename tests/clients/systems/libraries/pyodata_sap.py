"""SAP's products by pyodata, as its documents have it: a session with Basic, the token fetched first. BASE_URL RUN."""

import json
import os
import sys

import pyodata
import requests

base, run = sys.argv[1:3]
failures = []
session = requests.Session()
session.auth = ("script", os.environ["PASSWORD"])
root = f"{base}/API_PRODUCT_SRV/"
fetched = session.head(root, headers={"X-CSRF-Token": "fetch"}, timeout=120)
session.headers["X-CSRF-Token"] = fetched.headers.get("x-csrf-token", "")
service = pyodata.Client(root, session)
for start in (0, 25, 50, 75):
    page = service.entity_sets.A_Product.get_entities().skip(start).execute()
    if len(page) != 25:
        failures.append("a page is not whole")
for number in range(12):
    try:
        made = service.entity_sets.A_Product.create_entity().set(Product=f"{run}-{number}").execute()
        if made.Product != f"{run}-{number}":
            failures.append(f"another product: {made.Product}")
    except pyodata.exceptions.PyODataException as error:
        failures.append(repr(error))
try:
    service.entity_sets.A_Product.create_entity().set(Product=f"forbidden-{run}").execute()
    failures.append("what is forbidden was done")
except pyodata.exceptions.HttpError as error:
    if error.response.status_code != 403 or b"No authorization" not in error.response.content:
        failures.append(f"forbidden: {error.response.status_code} {error.response.content!r}")
print(json.dumps({"failures": failures}))
sys.exit(1 if failures else 0)
