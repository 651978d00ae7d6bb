"""A request on its way to its upstream: what travels together past the gates and through the rounds."""

from dataclasses import dataclass

from sidecar.exchange.body import RequestBody
from sidecar.exchange.destination import Destination
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Request
from sidecar.policy.routing import Route


@dataclass(slots=True)
class Errand:
    """One request for one upstream: a client's, or our *own*, which is no use of the credential."""

    request: Request
    way: Route
    destination: Destination
    body: RequestBody
    tally: Tally
    own: bool = False
