"""Python requests with a session: requests_session.py URL KIND..."""

import sys

import requests

base, *kinds = sys.argv[1:]
for kind in kinds:
    session = requests.Session()
    print(kind, session.get(f"{base}/login/{kind}").text, session.get(f"{base}/me").text)
