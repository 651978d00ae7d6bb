"""The PLM and QMS systems of the demo and the tests: a real server with short-lived tokens and switchable faults."""

from sidecar.emulator.faults import Counters, Switches
from sidecar.emulator.issuer import ACCESS_PREFIX, REFRESH_PREFIX, Account
from sidecar.emulator.server import Emulator
from sidecar.emulator.streams import sha256_of_bytes

__all__ = ["ACCESS_PREFIX", "REFRESH_PREFIX", "Account", "Counters", "Emulator", "Switches", "sha256_of_bytes"]
