"""A night's work with Kiwi TCMS as its users write it, with tcms-api. URL PASSWORD; a line on stdin begins a part."""

import json
import sys

from tcms_api import TCMS

URL, PASSWORD = sys.argv[1:3]
failures = []


def part(number):
    print(json.dumps({"part": number}), flush=True)
    return sys.stdin.readline().strip() != "end"


try:
    rpc = TCMS(f"{URL}/xml-rpc/", "script", PASSWORD).exec
    rpc.Auth.login("script", PASSWORD)
    kind = rpc.Classification.create({"name": "night"})["id"]
    number = 0
    while part(number):
        for each in range(4):
            name = f"night-{number}-{each}"
            made = rpc.Product.create({"name": name, "classification": kind})
            if [row["id"] for row in rpc.Product.filter({"name": name})] != [made["id"]]:
                failures.append(f"{name} came back as another one")
        number += 1
    rpc.Auth.logout()
except Exception as error:  # noqa: BLE001  whatever a user would see
    failures.append(repr(error))
print(json.dumps({"failures": failures}))
