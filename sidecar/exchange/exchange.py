"""The exchange: one request of a client, from its head to the last byte of the answer, top to bottom.

route, then the rounds (admission -> token -> inject -> attempt -> read -> decide), then the answer to the client.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from sidecar.clock import Clock
from sidecar.errors import REASONS, Reason, Refusal, where
from sidecar.events import Emit, Trouble
from sidecar.exchange import shim
from sidecar.exchange.answer import Answer
from sidecar.exchange.body import ClientGone, ClientStalled, RequestBody
from sidecar.exchange.destination import Client, Destination
from sidecar.exchange.errand import Errand
from sidecar.exchange.own_answers import FAULT, send_own
from sidecar.exchange.passthrough import Passthrough
from sidecar.exchange.relay import relay
from sidecar.exchange.rounds import Rounds
from sidecar.exchange.tally import Tally, measured
from sidecar.policy import headers
from sidecar.policy.breaker import endpoint_of
from sidecar.policy.decide import SAFE
from sidecar.policy.headers import StripSet
from sidecar.policy.hosts import normal_host
from sidecar.policy.message import Fields, Request
from sidecar.policy.methods import check_method
from sidecar.policy.mirror import Mirror, mirror
from sidecar.policy.routing import Origin, Route, Routes

Watch = Callable[[Route, Request, RequestBody, Client], Awaitable[Client]]
"""Looks at a request and its body before it goes its way; the client that it returns gets the answer."""


class Exchange:
    """Carries requests to their upstreams, and those that are none of our business *beside* them.

    *identity* is our value of Auth-Sidecar-Hop, unique to this process. `rounds`: the way to upstreams. `busy`: how
    many are under way; *in_flight*: by upstream. *watch* None: nobody looks at what goes to upstreams.
    """

    def __init__(
        self,
        destinations: Mapping[str, Destination],
        *,
        beside: Passthrough,
        identity: str,
        clock: Clock,
        emit: Emit,
        in_flight: Counter[str] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self._destinations = destinations
        self._beside = beside
        self._hop = identity.encode()
        self.routes = Routes(
            {name: destination.pool.origin for name, destination in destinations.items()},
            {name: destination.dialect.lends for name, destination in destinations.items()},
        )
        self._clock = clock
        self._emit = emit
        self.rounds = Rounds(self._hop, clock)
        self.busy = 0
        self._in_flight: Counter[str] = Counter() if in_flight is None else in_flight

    def stop(self) -> None:
        """Let no request wait to be tried again, or for the end of a pause: the sidecar is about to end."""
        self.rounds.stop()

    async def run(self, request: Request, body: RequestBody, client: Client) -> None:
        """Answer *request*; returns when the client has the whole answer.

        An exception that is a bug becomes 500 `internal` if nothing was answered yet; nothing of it reaches
        the client. Cancelled when the client leaves: the attempt under way is given up, a renewal is not.
        """
        tally = Tally(self._clock.monotonic())
        self.busy += 1
        try:
            await measured(self._forward(request, body, client, tally), tally, self._clock.monotonic)
        except Refusal as refusal:
            await self._refuse(refusal, client, tally)
        except ClientStalled as stalled:
            await self._refuse(Refusal(Reason.REQUEST_TIMEOUT, str(stalled)), client, tally)
        except ClientGone:
            tally.outcome = "client_gone"
        except Exception as error:  # noqa: BLE001  fail closed, whatever it is
            self._emit(Trouble(where="exchange", detail=f"bug: {type(error).__name__} at {where(error)}"))
            unknown = tally.attempts > 0 and request.method.decode("latin-1") not in SAFE
            await self._refuse(Refusal(Reason.INTERNAL, FAULT, unknown=unknown), client, tally)
        except BaseException:
            tally.outcome = "client_gone"
            raise
        finally:
            self.busy -= 1
            if tally.upstream:
                self._in_flight[tally.upstream] -= 1
                if tally.turn is not None:
                    self._destinations[tally.upstream].admission.leave(tally)
            body.discard()
            self._emit(tally.done(request, self._clock.monotonic()))

    async def _forward(self, request: Request, body: RequestBody, client: Client, tally: Tally) -> None:
        if headers.passed_before(request.fields, self._hop):
            raise Refusal(Reason.NO_ROUTE, "this request has already passed through this sidecar: a loop")
        if request.upstream is None and (lent := self.routes.lent(request.host, request.port)):
            if await self._shimmed(request, body, client, tally, lent):
                return
            if not self._beside.takes(request.host) and not self.routes.serves(normal_host(request.host), request.port):
                raise Refusal(Reason.NO_ROUTE, "only logins of an upstream's clients are answered for this host")
        if request.upstream is None and self._beside.takes(request.host):
            check_method(request)
            await self._beside.forward(request, body, client, tally, self._hop)
            return
        way = self.routes.find(request)
        destination = self._enter(way.upstream, tally)
        dialect = destination.dialect
        beside: Callable[[], Fields] = tuple
        body.keep(destination.replay_memory, destination.replay_spool)
        body.patience = client.patience = destination.idle_timeout
        if self._watch is not None:
            client = await self._watch(way, request, body, client)
        if dialect.shim is not None:
            check_method(request)
            if found := await shim.find(dialect.shim, request, way.origin, way.target, body):
                if not found[0].onward:
                    await shim.answer(request, *found, client, destination, tally, self._clock.monotonic)
                    return
                beside = partial(shim.beside, request, *found, destination)
        check_method(request, read_only=destination.read_only)
        tally.endpoint = endpoint_of(way.target)
        if (names := mirror(request, way.origin, destination.links)) is not None:
            request = names.outward()
        errand = Errand(request, way, destination, body, tally)
        errand.bare = dialect.excludes is not None and dialect.excludes(way.target)
        answer = await self.rounds.run(errand)
        try:
            await self._pass_on(answer, dialect.ours, names, beside(), client, tally)
        finally:
            answer.close()

    async def _shimmed(
        self,
        request: Request,
        body: RequestBody,
        client: Client,
        tally: Tally,
        lent: Sequence[tuple[str, Origin]],
    ) -> bool:
        """Answer a login at an origin that upstreams lend; False when it is none of any of them."""
        check_method(request)
        for name, origin in lent:
            destination = self._destinations[name]
            body.patience = client.patience = destination.idle_timeout
            look = destination.dialect.shim
            if look and (found := await shim.find(look, request, origin, request.target, body)):
                self._enter(name, tally)
                await shim.answer(request, *found, client, destination, tally, self._clock.monotonic)
                return True
        return False

    def _enter(self, upstream: str, tally: Tally) -> Destination:
        """Note that the request of *tally* is one for *upstream*, once."""
        tally.upstream = upstream
        self._in_flight[upstream] += 1
        return self._destinations[upstream]

    async def _pass_on(
        self,
        answer: Answer,
        ours: StripSet | None,
        names: Mirror | None,
        beside: Fields,
        client: Client,
        tally: Tally,
    ) -> None:
        fields, rewriter = headers.incoming(answer.fields, ours), None
        if names is not None:
            fields, rewriter = names.inward(answer.status, fields)
        if beside:
            fields = (*fields, *beside)
        await relay(answer, fields, client, tally, self._emit, f"upstream {tally.upstream}", rewriter)

    async def _refuse(self, refusal: Refusal, client: Client, tally: Tally) -> None:
        tally.outcome = refusal.reason
        tally.applied = "unknown" if refusal.unknown else ""
        if tally.begun:
            await client.abort()
            return
        tally.status, tally.begun = refusal.status or REASONS[refusal.reason].status, True
        await send_own(client, refusal)
