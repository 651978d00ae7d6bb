"""Several instances of one credential on one store, on virtual time: the real broker, holding, seals and decision.

Only time, the issuer, the upstream and the weather of the store are ours. A request is carried through as the exchange
does it.
"""

import asyncio
import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sidecar.errors import Refusal, StoreError
from sidecar.events import Event, Renewal
from sidecar.policy.decide import Attempt, Pass, Past, Renew, RetryPolicy, after, decide
from sidecar.run.credentials import Shared, make_broker
from sidecar.secret import Secret
from sidecar.settings import Settings, Upstream
from sidecar.tokens.broker import Broker
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.seal import KeyRing, Keys, new_key
from sidecar.tokens.store import TokenStore, store_key
from sidecar.tokens.token import Token
from tests.properties.issuers import IDENTITY, Api, Authority, Outcome, Port
from tests.properties.virtual import VirtualClock, VirtualLoop

KEY = store_key(IDENTITY)
STORE_TIMEOUT = 0.1
POLICY = RetryPolicy()


@dataclass
class Weather:
    """How a store does at the moment: none, down, silent (no answer), slow, half (done, but it says no)."""

    fault: str = "none"
    latency: Callable[[], float] = lambda: 0.0


class View:
    """The store as one instance reaches it: *weather* is for all, *cut* for this one; dead with its instance."""

    def __init__(
        self, backend: TokenStore, clock: VirtualClock, weather: Weather, noted: Callable[[str, int, bytes], None]
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._weather = weather
        self._noted = noted
        self.cut = False
        self.dead = False
        self.read_at = -math.inf

    @property
    def offset(self) -> float:
        return -self._clock.skew

    async def _do(self, name: str, *arguments: Any) -> Any:
        await self._reach()
        fault = "silent" if self.cut else self._weather.fault
        if fault == "down":
            raise StoreError("the store is down")
        if fault == "silent":
            await asyncio.sleep(STORE_TIMEOUT)
            raise StoreError("the store gave no answer", silent=True)
        if fault == "slow":
            await asyncio.sleep(STORE_TIMEOUT * 0.8)
        result = await getattr(self._backend, name)(*arguments)
        if name == "write" and result:
            self._noted(*arguments)
        await self._reach()
        if fault == "half":
            await asyncio.sleep(STORE_TIMEOUT)
            raise StoreError("the store gave no answer", silent=True)
        return result

    async def _reach(self) -> None:
        if self.dead:
            raise StoreError("the store is closed")
        if (seconds := self._weather.latency()) > 0:
            await asyncio.sleep(seconds)
        if self.dead:
            raise StoreError("the store is closed")

    async def read(self, key: str) -> tuple[int, bytes] | None:
        began = asyncio.get_running_loop().time()
        found: tuple[int, bytes] | None = await self._do("read", key)
        if key == KEY:
            self.read_at = began
        return found

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        return bool(await self._do("write", key, generation, sealed))

    async def replace(self, key: str, generation: int, sealed: bytes) -> bool:
        return bool(await self._do("replace", key, generation, sealed))

    async def delete(self, key: str) -> None:
        await self._do("delete", key)

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        return bool(await self._do("acquire", key, owner, ttl))

    async def release(self, key: str, owner: str) -> None:
        await self._do("release", key, owner)

    async def announce(self, instance: str, sealed: bytes, ttl: float) -> None:
        await self._do("announce", instance, sealed, ttl)

    async def announced(self) -> dict[str, bytes]:
        found: dict[str, bytes] = await self._do("announced")
        return found

    async def aclose(self) -> None:
        self.dead = True


@dataclass
class Instance:
    """One running sidecar, as far as tokens are concerned."""

    owner: str
    clock: VirtualClock
    view: View
    port: Port
    broker: Broker
    requests: set[asyncio.Task[Any]] = field(default_factory=set)


@dataclass(frozen=True)
class Done:
    """How a request of a client ended: a status, or a reason of ours; *waited* in seconds of virtual time."""

    status: int | None
    reason: str | None
    attempts: int
    absorbed: int
    waited: float


def upstream_settings(timeout: float = 10.0, **renew: object) -> Upstream:
    """Return settings as a file gives them; *renew* are keys of `renew`."""
    oauth2 = {"token_url": "https://issuer.example/token", "client_id": "sync", "client_secret": {"env": "SECRET"}}
    plm = {"base_url": "https://plm.example", "oauth2": oauth2, "renew": {"timeout": timeout, **renew}}
    return Settings.model_validate({"upstreams": {"plm": plm}}).upstreams["plm"]


class World:
    """Everything there is: the loop, the store, the issuer, the upstream, the instances, and what must hold."""

    def __init__(
        self,
        seed: int,
        settings: Upstream,
        *,
        backend: Callable[[VirtualClock], TokenStore] = MemoryStore,
        eager: bool = True,
    ) -> None:
        self.loop = VirtualLoop(eager=eager)
        self.chance = random.Random(seed)
        self.settings = settings
        self.weather = Weather()
        self.store = backend(VirtualClock(self.loop, self.chance))
        self.ring = KeyRing([Secret(new_key())])
        self.authority = Authority(self.loop.time, timeout=settings.renew.timeout, presenting=self._presenting)
        self.api = Api(self.authority)
        self.instances: dict[str, Instance] = {}
        self.events: list[Event] = []
        self.made = 0
        self.numbers = 0
        self.highest = 0
        self.superseded: dict[str, float] = {}
        """When the successor of each refresh token was stored."""
        self.store_lost_data = False
        self.broken: list[str] = []
        """What did not hold; not raised, because much of what runs here survives any exception, on purpose."""

    def run[T](self, work: Any) -> T:
        """Do *work* on the loop, as long as it takes in virtual time."""
        result: T = self.loop.run_until_complete(work)
        return result

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.run(asyncio.sleep(seconds))

    # --- instances ----------------------------------------------------------------------------------------------

    def start(self, *, shared: bool = True, skew: float = 0.0) -> Instance:
        """Start one more instance."""
        self.made += 1
        owner = f"node/{self.made}"
        clock = VirtualClock(self.loop, self.chance)
        clock.skew = skew
        view = View(self.store, clock, self.weather, self._wrote)
        port = Port(self.authority, owner, clock)
        keys = Keys(lambda: self.ring, clock)
        parts = Shared(store=view, keys=keys, owner=owner, elsewhere=shared, clock=clock, emit=self.events.append)
        broker = make_broker("plm", self.settings, port, parts)  # type: ignore[arg-type]
        instance = Instance(owner, clock, view, port, broker)
        self.instances[owner] = instance
        self.run(broker.start())
        return instance

    def kill(self, instance: Instance) -> None:
        """End it as SIGKILL does: nothing is given back, nothing is written."""
        del self.instances[instance.owner]
        instance.view.dead = True

        async def end() -> None:
            for task in instance.requests:
                task.cancel()
            await instance.broker._tasks.aclose()
            await _ended(instance.requests)

        self.run(end())

    def stop(self, instance: Instance) -> None:
        """End it as SIGTERM does."""
        del self.instances[instance.owner]
        self.run(instance.broker.aclose())
        self.run(_ended(instance.requests))
        if instance.broker._tasks._running:
            self.broken.append(f"{instance.owner} left tasks behind")

    def end(self) -> None:
        """Kill what lives, and close the loop."""
        for instance in list(self.instances.values()):
            self.kill(instance)
        self.run(self.store.aclose())
        self.loop.close()

    # --- requests -----------------------------------------------------------------------------------------------

    def request(self, instance: Instance, method: str = "GET", patience: float = 60.0) -> asyncio.Task[Done]:
        """Begin a request; the task raises only what a bug raises."""
        self.numbers += 1
        task = self.loop.create_task(self._request(instance, self.numbers, method, patience))
        instance.requests.add(task)
        task.add_done_callback(instance.requests.discard)
        return task

    async def _request(self, instance: Instance, number: int, method: str, patience: float) -> Done:
        began, broker = self.loop.time(), instance.broker
        attempts = renewals = absorbed = 0
        rested, past = 0.0, Past()
        last: Outcome | None = None
        reason = None
        try:
            token = broker.current() or await broker.token(began + patience)
            while True:
                attempts += 1
                outcome = await self.api.attempt(number, token.access_token.reveal())
                self._tell(broker, token, outcome, renewals)
                last = outcome
                attempt = Attempt(
                    method=method,
                    status=outcome.status,
                    sign=outcome.sign,
                    sent=outcome.sent,
                    retry_after=outcome.retry_after,
                    attempts=attempts - renewals,
                    renewals=renewals,
                )
                decision = decide(attempt, past, POLICY, self.chance.random())
                past = after(past, attempt)
                if isinstance(decision, Pass):
                    break
                if isinstance(decision, Renew):
                    newer = await broker.after(token, self.loop.time() + patience)
                    if newer is None:
                        break
                    if newer.generation <= token.generation:
                        self.broken.append("a token that is not newer was given for a refused one")
                    token, renewals, absorbed = newer, renewals + 1, absorbed + 1
                else:
                    await asyncio.sleep(decision.delay)
                    rested += decision.delay
                    token = broker.current() or await broker.token(self.loop.time() + patience)
        except Refusal as refusal:
            reason = None if last is not None and last.status is not None else refusal.reason.value
        if method == "POST":
            self._check_executed(number)
        waited = self.loop.time() - began
        if waited - rested > (attempts + 1) * (patience + 1.0):  # a wait for a token before each, and one in vain
            self.broken.append(f"I6: a request with {patience} s for a token took {waited} s for {attempts} attempts")
        return Done(last.status if last and reason is None else None, reason, attempts, absorbed, waited)

    def _tell(self, broker: Broker, token: Token, outcome: Outcome, renewals: int) -> None:
        if outcome.status is not None:
            broker.heard(token, outcome.sign, again=renewals > 0)

    # --- the store's troubles -----------------------------------------------------------------------------------

    def records(self) -> dict[str, tuple[int, bytes]]:
        """Return the records of the store in memory, live."""
        records: dict[str, tuple[int, bytes]] = self.store._records  # type: ignore[attr-defined]
        return records

    def wipe(self) -> None:
        """Let the store come back empty."""
        self._lose({})
        self.store._leases.clear()  # type: ignore[attr-defined]

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """Return what a backup would hold."""
        return copy.copy(self.records())

    def roll_back(self, snapshot: dict[str, tuple[int, bytes]]) -> None:
        """Let the store come back as it was at a *snapshot*, as after a failover that lost writes."""
        self._lose(snapshot)

    def _lose(self, records: dict[str, tuple[int, bytes]]) -> None:
        live = self.records()
        live.clear()
        live.update(records)
        self.highest = live[KEY][0] if KEY in live else 0
        self.superseded.clear()
        self.store_lost_data = True

    def damage(self) -> None:
        """Flip a bit of the record."""
        live = self.records()
        if KEY in live:
            generation, sealed = live[KEY]
            live[KEY] = (generation, sealed[:-1] + bytes([sealed[-1] ^ 1]))
            self.superseded.clear()
            self.store_lost_data = True

    def stored(self) -> Token | None:
        """Return the token in the store in memory."""
        record = self.records().get(KEY)
        if record is None:
            return None
        try:
            found = Token.decode(self.ring.open(KEY, record[1]))
        except StoreError:
            return None
        return found if isinstance(found, Token) else None

    # --- what must hold -----------------------------------------------------------------------------------------

    def _wrote(self, key: str, generation: int, sealed: bytes) -> None:
        """I12: the generation in the store only grows; note which refresh token has a successor there."""
        if key != KEY:
            return
        if generation <= self.highest:
            self.broken.append(f"I12: generation {generation} was written over {self.highest}")
        self.highest = generation
        found = Token.decode(self.ring.open(KEY, sealed))
        refresh = found.refresh_token.reveal() if isinstance(found, Token) and found.refresh_token else None
        parent = self.authority.parents.get(refresh) if refresh else None
        if parent is not None:
            self.superseded.setdefault(parent, self.loop.time())

    def _presenting(self, owner: str, token: str) -> None:
        """I5: who has seen the store since a successor was stored does not present the old refresh token."""
        instance = self.instances.get(owner)
        if instance is not None and instance.view.read_at > self.superseded.get(token, math.inf):
            self.broken.append(f"I5: {owner} presented a refresh token after it had seen its successor")

    def _check_executed(self, number: int) -> None:
        """I3: what is not idempotent is executed at most once."""
        if self.api.executed.get(number, 0) > 1:
            self.broken.append(f"I3: request {number} was executed {self.api.executed[number]} times")

    def renewals(self, result: str) -> list[Renewal]:
        return [event for event in self.events if isinstance(event, Renewal) and event.result == result]


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(set(tasks))
