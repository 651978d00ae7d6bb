"""zeep: soap_calls.py URL"""

import sys

import zeep

client = zeep.Client(sys.argv[1] + "/soap?wsdl")
client.transport.session.auth = ("old", "stale")
for number in ("7", "8", "0", "9"):
    try:
        part = client.service.GetPart(number)
        print(part.name, part.call, part.page)
    except zeep.exceptions.Fault as fault:
        print("fault", fault.message)
