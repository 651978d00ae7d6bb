"""A request on its way to its upstream: what travels together past the gates and through the rounds."""

from dataclasses import dataclass, replace

from sidecar.exchange.body import RequestBody
from sidecar.exchange.destination import Destination
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Request
from sidecar.policy.routing import Route
from sidecar.tokens.broker import Broker


@dataclass(slots=True)
class Errand:
    """One request for one upstream: a client's, or our *own*, which is no use of the credential.

    *bare*: it carries no credential, and nothing is looked for in its answers.
    """

    request: Request
    way: Route
    destination: Destination
    body: RequestBody
    tally: Tally
    own: bool = False
    bare: bool = False
    _asked: Request | None = None

    @property
    def broker(self) -> Broker:
        """The broker of the session in which it has a turn."""
        return self.destination.brokers[self.tally.turn or 0]

    @property
    def asked(self) -> Request:
        """The request with its target at the upstream, as a dialect looks at it."""
        if self._asked is None:
            self._asked = replace(self.request, target=self.way.target)
        return self._asked
