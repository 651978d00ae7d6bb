"""The exchange: one request of a client, from its head to the last byte of the answer, top to bottom.

route, then the rounds (admission -> token -> inject -> attempt -> classify -> decide), then the answer to the client.
"""

from collections import Counter
from collections.abc import Mapping

from sidecar.clock import Clock
from sidecar.errors import REASONS, Reason, Refusal, where
from sidecar.events import Emit, Trouble
from sidecar.exchange.answers import FAULT, send_own
from sidecar.exchange.attempt import Answer
from sidecar.exchange.body import ClientGone, RequestBody
from sidecar.exchange.passthrough import Passthrough
from sidecar.exchange.patience import Deadline
from sidecar.exchange.ports import Client, Destination
from sidecar.exchange.relay import relay
from sidecar.exchange.rounds import Rounds
from sidecar.exchange.tally import Tally, measured
from sidecar.policy import headers
from sidecar.policy.message import Request, value_of
from sidecar.policy.routing import Route, rewrite_location, route

_READ_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Exchange:
    """Carries requests to their upstreams, and those that are none of our business *beside* them.

    *identity* is our name in Via, unique to this process. `busy`: how many are under way; *in_flight*: by upstream.
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
    ) -> None:
        self._destinations = destinations
        self._beside = beside
        self.origins = {name: destination.pool.origin for name, destination in destinations.items()}
        self._via = f"1.1 auth-sidecar ({identity})".encode()
        self._clock = clock
        self._emit = emit
        self._rounds = Rounds(self._via, clock)
        self.busy = 0
        self._in_flight: Counter[str] = Counter() if in_flight is None else in_flight

    def stop(self) -> None:
        """Let no request wait to be tried again, or for the end of a pause: the sidecar is about to end."""
        self._rounds.stop()

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
        except ClientGone:
            tally.outcome = "client_gone"
        except Exception as error:  # noqa: BLE001  fail closed, whatever it is
            self._emit(Trouble(where="exchange", detail=f"bug: {type(error).__name__} at {where(error)}"))
            await self._refuse(Refusal(Reason.INTERNAL, FAULT), client, tally)
        except BaseException:
            tally.outcome = "client_gone"
            raise
        finally:
            self.busy -= 1
            if tally.upstream:
                self._in_flight[tally.upstream] -= 1
                if tally.in_turn:
                    self._destinations[tally.upstream].admission.leave(tally)
            body.discard()
            self._emit(tally.done(request, self._clock.monotonic()))

    async def _forward(self, request: Request, body: RequestBody, client: Client, tally: Tally) -> None:
        self._check_loop(request)
        if request.upstream is None and self._beside.takes(request.host):
            _check_method(request)
            await self._beside.forward(request, body, client, tally, self._via)
            return
        way = route(request, self.origins)
        tally.upstream = way.upstream
        self._in_flight[way.upstream] += 1
        destination = self._destinations[way.upstream]
        client.patience = destination.client_patience
        _check_method(request, read_only=destination.read_only)
        body.keep(destination.replay_memory, destination.replay_spool)
        deadline = Deadline(self._clock.monotonic() + destination.total_timeout)
        answer = await self._rounds.run(request, way, destination, body, deadline, tally)
        try:
            await self._pass_on(answer, request, way, client, tally)
        finally:
            answer.close()

    def _check_loop(self, request: Request) -> None:
        if any(self._via in value for name, value in request.fields if headers.normal_name(name) == b"via"):
            raise Refusal(Reason.NO_ROUTE, "this request has already passed through this sidecar: a loop")

    async def _pass_on(self, answer: Answer, request: Request, way: Route, client: Client, tally: Tally) -> None:
        fields = headers.incoming(answer.fields)
        if request.upstream is not None:
            base = b"http://" + (value_of(request.fields, b"host") or b"localhost")
            fields = tuple(
                (name, rewrite_location(value, way.origin, base) if name.lower() == b"location" else value)
                for name, value in fields
            )
        await relay(answer, fields, client, tally, self._emit, f"upstream {way.upstream}")

    async def _refuse(self, refusal: Refusal, client: Client, tally: Tally) -> None:
        tally.outcome = refusal.reason
        if tally.begun:
            await client.abort()
            return
        tally.status, tally.begun = refusal.status or REASONS[refusal.reason].status, True
        await send_own(client, refusal)


def _check_method(request: Request, *, read_only: bool = False) -> None:
    if read_only and request.method not in _READ_METHODS:
        raise Refusal(Reason.METHOD_REFUSED, "this upstream is configured read-only", allow="GET, HEAD, OPTIONS")
    if request.method.upper() in (b"TRACE", b"CONNECT"):
        # RFC 9110 section 9.3.8: TRACE must not carry credentials, because it sends them back.
        raise Refusal(
            Reason.METHOD_REFUSED, "this method is not forwarded", allow="GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"
        )
