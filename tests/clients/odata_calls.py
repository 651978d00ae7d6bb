"""pyodata with CSRF as SAP has it: odata_calls.py URL [paged]"""

import sys

import pyodata
import requests

base = sys.argv[1] + "/odata/"
session = requests.Session()
session.headers["Authorization"] = "Bearer stale"
shown = []

service = pyodata.Client(base, session, response_hook=shown.append)
parts = service.entity_sets.Parts.get_entities().execute()
print("page", [part.Number for part in parts])
if "paged" in sys.argv:
    parts = service.entity_sets.Parts.get_entities().next_url(parts.next_url).execute()
    print("page", [part.Number for part in parts])

session.headers["X-CSRF-Token"] = session.head(base, headers={"X-CSRF-Token": "Fetch"}).headers["X-CSRF-Token"]
created = service.entity_sets.Parts.create_entity().set(Number="9", Name="gear").execute()
place = shown[-1].headers["Location"]
print("created", created.Number, place)
print("there", session.get(place).json()["d"]["Name"])
service.entity_sets.Parts.update_entity("9").set(Name="wheel").execute()
print("changed", service.entity_sets.Parts.get_entity("9").execute().Name)
service.entity_sets.Parts.delete_entity("9").execute()
print("left", session.get(place).status_code)
