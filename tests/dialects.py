"""Dialects for tests: of an upstream that says in its bodies what became of the credential."""

import re
from dataclasses import replace
from typing import Any

from sidecar.auth.dialect import Dialect
from sidecar.policy.message import Fields, Request, value_of
from sidecar.policy.reading import Reading, Sign
from tests.rig import Rig

LIMIT = 4096
CODES = {b"401": Sign.EXPIRED, b"403": Sign.SCOPE, b"429": Sign.THROTTLED, b"509": Sign.EXHAUSTED}


def looking(dialect: Dialect, **changes: Any) -> Dialect:
    """Return *dialect* as one that also takes `{"code": 401}` at the beginning of JSON for a sign."""

    def hold_back(_r: Request, _: int, fields: Fields) -> int:
        return LIMIT if b"json" in (value_of(fields, b"content-type") or b"") else 0

    def read(request: Request, status: int, fields: Fields, body: bytes | None, now: float) -> Reading:
        found = re.match(rb'\s*{"code": (\d+)', body or b"")
        sign = CODES.get(found[1]) if found else None
        return Reading(sign) if sign else dialect.read(request, status, fields, body, now)

    return replace(dialect, **{"hold_back": hold_back, "read": read} | changes)


def speak(rig: Rig, **changes: Any) -> None:
    """Let the upstream of *rig* be spoken with like that, from the next request on."""
    destinations = rig.app._assembly.destinations
    plain = destinations["plm"]
    destinations["plm"] = replace(plain, dialect=looking(plain.dialect, **changes))
