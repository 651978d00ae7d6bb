"""Several instances of several credentials on one store, on virtual time: the real brokers, seals and decision.

Only time, the wire to the issuer, the upstream and the weather of the store are ours. A request is carried through as
the exchange does it.
"""

import asyncio
import copy
import math
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sidecar.auth.grant import Anew
from sidecar.errors import CredentialRejected, IssuerError, Refusal, StoreError
from sidecar.events import Event, Renewal
from sidecar.policy.attempt import Attempt, RetryPolicy
from sidecar.policy.decide import Pass, Past, Renew, after, decide
from sidecar.run.credentials import Shared, credentials, make_broker
from sidecar.secret import Secret
from sidecar.settings import Settings
from sidecar.tokens.broker import Broker
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.presenting import Stuck
from sidecar.tokens.record import Record
from sidecar.tokens.seal import KeyRing, Keys, new_key, parse_keys
from sidecar.tokens.store import Stored, TokenStore, store_key
from sidecar.tokens.token import Token
from tests.canary import canary
from tests.properties.issuers import Api, Authority, Issued, Outcome, Port
from tests.properties.virtual import VirtualClock, VirtualLoop

STORE_TIMEOUT = 0.1
POLICY = RetryPolicy()
WHOSE = {"plm": "alice", "erp": "alice", "crm": "bob"}
"""The upstreams, and whose credential each has; those of one user share a broker."""
_MEMORY = Path("/dev/shm")
_LOOKED = 6.0
"""Seconds in which all who live have looked at the store."""
_SURE = 0.5
"""Seconds in which what came from the store has reached those who asked for it."""


@dataclass
class Weather:
    """How a store does at the moment: none, down, silent (no answer), slow, half (done, but it says no), or frozen.

    *late*: what reached it while it was frozen, and is done when it goes on, although nobody waits for it any more.
    """

    fault: str = "none"
    latency: Callable[[], float] = lambda: 0.0
    late: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class View:
    """The store as one instance reaches it: the weather is for all, *cut* for this one; dead with its instance."""

    def __init__(self, world: "World", clock: VirtualClock) -> None:
        self._world = world
        self._clock = clock
        self.cut = False
        self.dead = False
        self.seen: dict[str, float] = {}
        """When it was seen here that a refresh token has a successor."""
        self.looked_at: dict[str, float] = {}
        """When the last look at a record began; a sign of life of who holds the lease is none."""
        self._leased: set[tuple[str, str]] = set()

    @property
    def offset(self) -> float:
        return -self._clock.skew

    async def _do(self, name: str, *arguments: Any, **options: Any) -> Any:
        await self._reach()
        weather = self._world.weather
        fault = "silent" if self.cut else weather.fault
        if fault == "down":
            raise StoreError("the store is down")
        if fault == "frozen":
            weather.late.append((name, arguments, options))
        if fault in ("silent", "frozen"):
            await asyncio.sleep(STORE_TIMEOUT)
            raise StoreError("the store gave no answer", silent=True)
        if fault == "slow":
            await asyncio.sleep(STORE_TIMEOUT * 0.8)
        result = await self._world.store_does(name, *arguments, **options)
        await self._reach()
        if fault == "half":
            await asyncio.sleep(STORE_TIMEOUT)
            raise StoreError("the store gave no answer", silent=True)
        return result

    async def _reach(self) -> None:
        if self.dead:
            raise StoreError("the store is closed")
        if (seconds := self._world.weather.latency()) > 0:
            await asyncio.sleep(seconds)
        if self.dead:
            raise StoreError("the store is closed")

    def _saw(self, key: str, stored: Stored, began: float = -math.inf) -> None:
        now = self._world.loop.time()
        record = self._world.opened(key, stored)
        self.looked_at[key] = max(began, self.looked_at.get(key, -math.inf))
        if record is not None and record.kept is not None:
            for spent in self._world.authority.ancestors(record.kept.reveal()):
                self.seen.setdefault(spent, now)

    async def read(self, key: str) -> Stored:
        began = self._world.loop.time()
        stored: Stored = await self._do("read", key)
        self._saw(key, stored, began)
        return stored

    async def take(self, key: str, owner: str, ttl: float) -> tuple[bool, Stored]:
        began = self._world.loop.time()
        held, stored = await self._do("take", key, owner, ttl)
        self._saw(key, stored, -math.inf if (key, owner) in self._leased else began)
        if held:
            self._leased.add((key, owner))
        return held, stored

    async def write(self, key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        written: bool = await self._do("write", key, sealed, generation, after=after, release=release)
        if written:
            self._saw(key, Stored(generation, sealed))
            self._leased.discard((key, release))
        return written

    async def release(self, key: str, owner: str) -> None:
        self._leased.discard((key, owner))
        await self._do("release", key, owner)

    async def announce(self, instance: str, sealed: bytes, ttl: float) -> None:
        await self._do("announce", instance, sealed, ttl)

    async def announced(self) -> dict[str, bytes]:
        found: dict[str, bytes] = await self._do("announced")
        return found

    async def aclose(self) -> None:
        self.dead = True


@dataclass
class Machine:
    """Where an instance lives: its state directory, and what may be known from it after a restart."""

    folder: Path
    seen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Part:
    """One broker of an instance; *signature*: what it was made of, so that it is kept while that is the same."""

    broker: Broker
    port: Port
    key: str
    signature: object


@dataclass
class Instance:
    """One running sidecar, as far as tokens are concerned. *parts* by upstream; *retired*: of earlier settings."""

    owner: str
    machine: Machine
    clock: VirtualClock
    view: View
    shared: Shared
    parts: dict[str, Part] = field(default_factory=dict)
    retired: list[Part] = field(default_factory=list)
    requests: set[asyncio.Task[Any]] = field(default_factory=set)
    number: int = 0

    @property
    def each(self) -> list[Part]:
        """Every part that serves, once."""
        return list({id(part): part for part in self.parts.values()}.values())

    @property
    def broker(self) -> Broker:
        """The broker of the first upstream."""
        return next(iter(self.parts.values())).broker


@dataclass(frozen=True)
class Done:
    """How a request of a client ended: a status, or a reason of ours; *waited* in seconds of virtual time."""

    status: int | None
    reason: str | None
    attempts: int
    absorbed: int
    waited: float


def fleet_settings(folder: Path, grants: dict[str, str], *, timeout: float = 10.0, **renew: float) -> Settings:
    """Return settings as a file gives them: *grants* by user, as `World` has them; *renew* are keys of `renew`."""

    def upstream(name: str, user: str) -> dict[str, object]:
        oauth2 = {
            "token_url": "https://issuer.example/token",
            "client_id": "sync",
            "client_secret": {"file": str(folder / "client-secret")},
            "grant": "refresh_token" if grants[user] == "refresh_token" else "password",
        }
        if grants[user] != "refresh_token":
            oauth2 |= {"username": user, "password": {"file": str(folder / f"{user}-password")}}
        else:
            oauth2 |= {"refresh_token": {"file": str(folder / f"{user}-first")}}
        return {"base_url": f"https://{name}.example", "oauth2": oauth2, "renew": {"timeout": timeout, **renew}}

    named = {name: upstream(name, user) for name, user in WHOSE.items() if user in grants}
    return Settings.model_validate({"upstreams": named})


class World:
    """Everything there is: the loop, the store, the issuer, the upstreams, the instances, and what must hold.

    *grants*: the grant of each user, password or refresh_token; or session: a login that ends the one before, of which
    the tokens are to know no more than that. *renew* are keys of `renew`.
    """

    def __init__(
        self,
        seed: int,
        grants: dict[str, str] | None = None,
        *,
        backend: Callable[[VirtualClock, Path], TokenStore] = lambda clock, _: MemoryStore(clock),
        eager: bool = True,
        rotates: str = "revokes",
        **renew: float,
    ) -> None:
        self.loop = VirtualLoop(eager=eager)
        self.chance = random.Random(seed)
        self.weather = Weather()
        self._folder = TemporaryDirectory(prefix="world-", dir=_MEMORY if _MEMORY.is_dir() else None)
        self.folder = Path(self._folder.name)
        self.store = backend(VirtualClock(self.loop, self.chance), self.folder)
        self.authority = Authority(self.loop.time, self._presenting, rotates=rotates)
        self.api = Api(self.authority)
        self.grants = grants or {"alice": "password"}
        self.authority.seats = {user for user, grant in self.grants.items() if grant == "session"}
        self.authority.evicting = self._evicting
        self.may_evict = False
        """Something asked for a login although there may be a session that lives."""
        self.users = tuple(self.grants)
        self.settings = fleet_settings(self.folder, self.grants, **renew)
        self.keys: list[str] = []
        self.instances: dict[str, Instance] = {}
        self.homeless: list[Machine] = []
        """Machines whose instance has ended, and that may start another one."""
        self.events: list[Event] = []
        self.made = 0
        self.numbers = 0
        self._opened: dict[Stored, Record] = {}
        self.now_stored: dict[str, Record] = {}
        """What was written last under a key, or came back with the store."""
        self.newest: dict[str, int] = {}
        """The highest generation there ever was of a key."""
        self.superseded: dict[str, float] = {}
        """When the successor of each refresh token was stored."""
        self.dropped: dict[str, tuple[float, float]] = {}
        """When an operator began to have a credential dropped, and when that was done, by its key."""
        self.was_dropped: set[str] = set()
        """Keys of credentials that an operator had dropped, or tried to."""
        self.lost_data = False
        self._lost_at = -math.inf
        self.insisted = False
        self.in_doubt: set[str] = set()
        """Keys whose refresh token was on its way when an instance ended, or whose newest record nobody has."""
        self.broken: list[str] = []
        """What did not hold; not raised, because much of what runs here survives any exception, on purpose."""
        for name in ("client-secret", *(f"{user}-password" for user in self.users)):
            self.edit(name)
        for user in self.users:
            self.log_in(user)
        self.add_key()

    def run[T](self, work: Any) -> T:
        """Do *work* on the loop, as long as it takes in virtual time."""
        result: T = self.loop.run_until_complete(work)
        return result

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.run(asyncio.sleep(seconds))

    # --- what an operator writes --------------------------------------------------------------------------------

    def edit(self, secret: str) -> None:
        """Write another value of *secret* into its file."""
        self.numbers += 1
        (self.folder / secret).write_text(canary(f"secret-{self.numbers}"))

    def log_in(self, user: str) -> None:
        """Write a new first refresh token of *user* into its file."""
        (self.folder / f"{user}-first").write_text(self.authority.log_in(user))

    def change_settings(self, what: str) -> None:
        """Let the client prove itself in another way, or ask for another scope, which a first refresh token decides."""
        self.numbers += 1
        other = (
            f"scope-{self.numbers}"
            if what == "scope"
            else ("client_secret_post", "client_secret_basic")[self.numbers % 2]
        )
        plain = {
            name: upstream.model_copy(update={"oauth2": upstream.oauth2.model_copy(update={what: other})})
            for name, upstream in self.settings.upstreams.items()
        }
        self.settings = self.settings.model_copy(update={"upstreams": plain})

    def add_key(self) -> None:
        """Make a new store key, the newest; who has it yet is another matter."""
        self.keys.insert(0, new_key())
        self._ring = KeyRing([Secret(key) for key in self.keys])

    def bring_keys(self, instance: Instance) -> None:
        """Write all keys into the key file of *instance*."""
        (instance.machine.folder / "keys").write_text("\n".join(self.keys))

    # --- instances ----------------------------------------------------------------------------------------------

    def start(self, machine: Machine | None = None, *, shared: bool = True, skew: float = 0.0) -> Instance:
        """Start one more instance, on a *machine* that had one before, or on a new one."""
        self.made += 1
        if machine is None:
            machine = Machine(self.folder / f"machine-{self.made}")
            machine.folder.mkdir()
        else:
            self.homeless.remove(machine)
        owner = f"node/{self.made}"
        clock = VirtualClock(self.loop, self.chance)
        clock.skew = skew
        view = View(self, clock)
        view.seen |= machine.seen
        ring = machine.folder / "keys"
        ring.write_text("\n".join(self.keys))
        shares = Shared(
            store=view,
            keys=Keys(lambda: parse_keys([Secret(ring.read_text())]), clock, [ring]),
            owner=owner,
            elsewhere=shared,
            clock=clock,
            emit=self.events.append,
            marks=machine.folder / "marks",
        )
        instance = Instance(owner, machine, clock, view, shares)
        self.instances[owner] = instance
        self.run(self._equip(instance))
        return instance

    def reload(self, instance: Instance) -> None:
        """Let *instance* read its configuration and its secrets again."""
        instance.number += 1
        self.run(self._equip(instance))

    async def _equip(self, instance: Instance) -> None:
        """Make the brokers of the settings as they are now; those that are as before are kept, others retire."""
        before, made = instance.parts, dict[str, Part]()
        owner = f"{instance.owner}.{instance.number}" if instance.number else instance.owner
        shared = replace(instance.shared, owner=owner)
        for credential in credentials(self.settings, instance.clock):
            name = credential.names[0]
            user = WHOSE[name]
            signature = self._signature(credential.names)
            if name in before and before[name].signature == signature:
                made |= {name: before[name] for name in credential.names}
                continue
            port = Port(self.settings.upstreams[name].oauth2, self.authority, owner, user, instance.clock)
            broker = make_broker(replace(credential, issuers=(port,)), self.settings, shared)
            if port.anew is Anew.EVICTS:
                broker = _of_session(name, port, self.settings, shared)
            key = store_key(credential.identity)
            part = Part(broker, port, key, signature)
            made |= dict.fromkeys(credential.names, part)
        started = [part for name, part in made.items() if before.get(name) is not part]
        for part in {id(part): part for part in started}.values():
            await part.broker.start()
        gone = [part for part in instance.each if part not in made.values()]
        instance.parts = made
        instance.retired += gone
        for part in gone:
            self.spawn(instance, self._retire(instance, part, set(instance.requests)))

    async def _retire(self, instance: Instance, part: Part, requests: set[asyncio.Task[Any]]) -> None:
        await _ended(requests)
        await part.broker.aclose()
        instance.retired.remove(part)
        self._forgotten(part)

    def _signature(self, names: tuple[str, ...]) -> object:
        user = WHOSE[names[0]]
        upstreams = [self.settings.upstreams[name] for name in names]
        secret = "first" if self.grants[user] == "refresh_token" else "password"
        return upstreams, [(self.folder / name).read_text() for name in ("client-secret", f"{user}-{secret}")]

    def spawn(self, instance: Instance, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do *work* in a task that ends with *instance*."""
        task = self.loop.create_task(work)
        instance.requests.add(task)
        task.add_done_callback(instance.requests.discard)
        return task

    def kill(self, instance: Instance) -> None:
        """End it as SIGKILL does: nothing is given back, nothing is written."""
        instance.view.dead = True

        async def end() -> None:
            for task in instance.requests:
                task.cancel()
            for part in (*instance.each, *instance.retired):
                await part.broker._tasks.aclose()
            await _ended(instance.requests)

        self.run(end())
        self._gone(instance)

    def stop(self, instance: Instance) -> None:
        """End it as SIGTERM does."""
        for part in (*instance.each, *instance.retired):
            self.run(part.broker.aclose())
        self.run(_ended(instance.requests))
        if any(part.broker._tasks._running for part in (*instance.each, *instance.retired)):
            self.broken.append(f"{instance.owner} left tasks behind")
        self._gone(instance)

    def _gone(self, instance: Instance) -> None:
        """Note what is known no more: what was on its way, or held in memory alone."""
        del self.instances[instance.owner]
        now = self.loop.time()
        for part in (*instance.each, *instance.retired):
            self._forgotten(part)
            if part.port.anew is Anew.ONCE:
                instance.machine.seen |= {spent: at for spent, at in instance.view.seen.items() if at < now - _SURE}
        self.homeless.append(instance.machine)

    def _forgotten(self, part: Part) -> None:
        """Note what is known no more with *part*: what was on its way, or held in memory alone."""
        holding, stored = part.broker._holding, self.now_stored.get(part.key)
        presented = [record.presented for record in (holding.record, stored) if record and record.presented]
        if holding.unsaved or any(each.by == part.broker._renewing._obtaining._owner for each in presented):
            self.in_doubt.add(part.key)
        self.note_what_nobody_knows()

    def end(self) -> None:
        """Kill what lives, and close the loop."""
        for instance in list(self.instances.values()):
            self.kill(instance)
        self.run(self.store.aclose())
        self.loop.close()
        self._folder.cleanup()

    # --- requests -----------------------------------------------------------------------------------------------

    def request(
        self, instance: Instance, method: str = "GET", patience: float = 60.0, upstream: str = "plm"
    ) -> asyncio.Task[Done]:
        """Begin a request; the task raises only what a bug raises."""
        self.numbers += 1
        return self.spawn(instance, self._request(instance, self.numbers, upstream, method, patience))

    async def _request(self, instance: Instance, number: int, upstream: str, method: str, patience: float) -> Done:
        part = instance.parts[upstream]
        began, broker = self.loop.time(), part.broker
        attempts = renewals = absorbed = 0
        rested, past = 0.0, Past()
        last: Outcome | None = None
        reason = None
        try:
            token = broker.current() or await broker.token(began + patience)
            while True:
                attempts += 1
                self.check_handed(instance, part, token)
                outcome = await self.api.attempt(number, WHOSE[upstream], token.values["access_token"].reveal())
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
                    if self.issued(newer).asked_at <= self.issued(token).asked_at:
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

    # --- the store and its troubles -----------------------------------------------------------------------------

    async def store_does(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Let the store do what it was told, whoever waits for that."""
        result = await getattr(self.store, name)(*arguments, **options)
        if name == "write" and result:
            self._wrote(*arguments)
        return result

    def set_weather(self, fault: str) -> None:
        """Change how the store does; when a frozen one goes on, it first does what it was told meanwhile."""
        late, self.weather.late, self.weather.fault = self.weather.late, [], fault

        async def catch_up() -> None:
            for name, arguments, options in late:
                await self.store_does(name, *arguments, **options)

        if fault == "frozen":
            self.weather.late = late
        else:
            self.run(catch_up())

    def opened(self, key: str, stored: Stored) -> Record | None:
        """Return the record, whichever key sealed it; None for none, and for what cannot be read."""
        if stored not in self._opened:
            try:
                self._opened[stored] = Record.decode(self._ring.open(key, stored.sealed))
            except StoreError:
                return None
        record = self._opened[stored]
        return record if record.generation == stored.generation else None

    def records(self) -> dict[str, Stored]:
        """Return the records of the store in memory, live."""
        records: dict[str, Stored] = self.store._records  # type: ignore[attr-defined]
        return records

    def wipe(self) -> None:
        """Let the store come back empty."""
        self.roll_back({})
        self.store._leases.clear()  # type: ignore[attr-defined]

    def snapshot(self) -> dict[str, Stored]:
        """Return what a backup would hold."""
        return copy.copy(self.records())

    def roll_back(self, snapshot: dict[str, Stored]) -> None:
        """Let the store come back as it was at a *snapshot*, as after a failover that lost writes."""
        live = self.records()
        live.clear()
        live.update(snapshot)
        self._lost()

    def damage(self, number: int) -> None:
        """Flip a bit of a record, or change the number beside it."""
        live = self.records()
        for key, stored in live.items():
            sealed, generation = stored.sealed, stored.generation
            live[key] = (
                Stored(generation, sealed[:-1] + bytes([sealed[-1] ^ 1]))
                if number == 0
                else Stored(generation + number, sealed)
            )
            if number:  # an older record may have been put under it
                self.in_doubt.add(key)
        self._lost()

    def seal_with_a_foreign_key(self) -> None:
        """Let somebody with a newer key, which our instances do not have yet, seal every record anew."""
        self.add_key()
        live = self.records()
        for key, stored in live.items():
            if (record := self.opened(key, stored)) is not None:
                live[key] = Stored(stored.generation, self._ring.seal(key, record.encode()))

    def _lost(self) -> None:
        self.lost_data = True
        self._lost_at = self.loop.time()
        self.superseded.clear()
        self.dropped.clear()
        found = {key: self.opened(key, stored) for key, stored in self.records().items()}
        self.now_stored = {key: record for key, record in found.items() if record is not None}
        self.note_what_nobody_knows()

    def note_what_nobody_knows(self) -> None:
        """Note the keys whose newest record is neither in the store nor with anybody who lives."""
        known: dict[str, int] = {key: record.generation for key, record in self.now_stored.items()}
        for instance in self.instances.values():
            for part in (*instance.each, *instance.retired):
                known[part.key] = max(known.get(part.key, 0), part.broker._holding.record.generation)
        self.in_doubt |= {key for key, newest in self.newest.items() if known.get(key, 0) < newest}

    # --- what must hold -----------------------------------------------------------------------------------------

    async def drop(self, part: Part) -> None:
        """Let an operator have a credential dropped."""
        began = self.loop.time()
        self.was_dropped.add(part.key)
        await part.broker.revoke()
        if began > self._lost_at + _LOOKED:  # else others may know a newer generation than the mark's, and publish it
            self.dropped[part.key] = (began, self.loop.time())

    def check_handed(self, instance: Instance, part: Part, token: Token) -> None:
        """Nobody hands out what was asked for before an operator dropped it, once it has looked at the store."""
        began, done = self.dropped.get(part.key, (math.inf, math.inf))
        asked_at = self.issued(token).asked_at
        looked_at = instance.view.looked_at.get(part.key, 0.0)
        if asked_at < began and looked_at > done and self.loop.time() > looked_at + _SURE:
            self.broken.append(f"{instance.owner} hands out a token that an operator had dropped")

    def issued(self, token: Token) -> Issued:
        """Return what the issuer knows of *token*: an emptied store counts its generations anew."""
        return self.authority.issued[token.values["access_token"].reveal()]

    def stuck(self) -> list[tuple[Instance, Part]]:
        """Return whom only a person can help, as they say."""
        parts = [(instance, part) for instance in self.instances.values() for part in instance.each]
        return [(instance, part) for instance, part in parts if isinstance(_refusal(part), Stuck)]

    def _wrote(self, key: str, sealed: bytes, generation: int) -> None:
        """I12: the generation in the store only grows; note which refresh token has a successor there."""
        record = self.opened(key, Stored(generation, sealed))
        if record is None:
            return  # a shared pause
        before = self.now_stored.get(key, Record())
        again = generation == before.generation and record.kept == before.kept and record.presented == before.presented
        if generation <= before.generation and not again:
            self.broken.append(f"I12: generation {generation} was written over {before.generation}")
        by = record.presented.by.partition(".")[0] if record.presented else ""
        if by and by not in self.instances:
            self.in_doubt.add(key)  # what it wrote came late
        self.now_stored[key] = record
        self.newest[key] = max(generation, self.newest.get(key, 0))
        for spent in self.authority.ancestors(record.kept.reveal()) if record.kept else ():
            self.superseded.setdefault(spent, self.loop.time())

    def _presenting(self, owner: str, token: str) -> None:
        """I5: where it was seen that a refresh token has a successor, it is not presented again."""
        instance = self.instances.get(owner.partition(".")[0])
        if instance is not None and self.loop.time() > instance.view.seen.get(token, math.inf) + _SURE:
            self.broken.append(f"I5: {owner} presented a refresh token after its successor had been seen there")

    def _evicting(self, owner: str, user: str) -> None:
        """Nobody logs in who has not the lease, nor while the session in the record lives."""
        name = owner.partition(".")[0]
        parts = [part for part in self.instances[name].each if part.port.user == user] if name in self.instances else []
        # What an earlier configuration has begun is another credential's, and goes by its own key.
        for part in (part for part in parts if part.port.owner == owner):
            if self.lost_data or part.port.anew is not Anew.EVICTS:
                continue
            over, holder = self.leases().get(part.key, (0.0, ""))
            if isinstance(self.store, MemoryStore) and (holder != owner or over <= self.loop.time()):
                self.broken.append(f"{owner} logged in without the lease, which is {holder or 'nobody'}'s")
            token = self.now_stored.get(part.key, Record()).token
            if token is not None and not self.may_evict and self.authority.takes(token.values["access_token"].reveal()):
                self.broken.append(f"{owner} logged in while the session in the record was alive")

    def leases(self) -> dict[str, tuple[float, str]]:
        """Return who has which lease of the store in memory, live, and until when."""
        leases: dict[str, tuple[float, str]] = getattr(self.store, "_leases", {})
        return leases

    def _check_executed(self, number: int) -> None:
        """I3: what is not idempotent is executed at most once."""
        if self.api.executed.get(number, 0) > 1:
            self.broken.append(f"I3: request {number} was executed {self.api.executed[number]} times")

    def renewals(self, result: str) -> list[Renewal]:
        return [event for event in self.events if isinstance(event, Renewal) and event.result == result]


def _of_session(name: str, port: Port, settings: Settings, shared: Shared) -> Broker:
    """Return the broker of a credential whose login ends the session before."""
    return Broker(
        name,
        port,
        shared.store,
        shared.keys,
        settings.upstreams[name].renew,
        owner=shared.owner,
        clock=shared.clock,
        emit=shared.emit,
        configured_lifetime=None,
        shared=shared.elsewhere,
        turns=shared.turns,
        session=True,
    )


def _refusal(part: Part) -> IssuerError | None:
    renewing = part.broker._renewing
    return renewing.failure if renewing.rejected and isinstance(renewing.failure, CredentialRejected) else None


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(set(tasks))
