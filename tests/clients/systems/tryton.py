"""A night's work with Tryton as its users write it, with proteus. URL PASSWORD; a line on stdin begins a part."""

import json
import sys

from proteus import Model, config

URL, PASSWORD = sys.argv[1:3]
failures = []


def part(number):
    print(json.dumps({"part": number}), flush=True)
    return sys.stdin.readline().strip() != "end"


try:
    with config.set_xmlrpc_session(f"{URL}/rpc/", "script", PASSWORD):
        Language, Party = Model.get("ir.lang"), Model.get("party.party")
        number = 0
        while part(number):
            for each in range(4):
                party = Party()
                party.name = f"night-{number}-{each}"
                party.save()
                if Party(party.id).name != party.name:
                    failures.append(f"{party.name} came back as another one")
            if not Language.find([("code", "=", "en")]):
                failures.append("no language")
            number += 1
except Exception as error:  # noqa: BLE001  whatever a user would see
    failures.append(repr(error))
print(json.dumps({"failures": failures}))
