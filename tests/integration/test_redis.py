"""The shared store against real Redis servers, and what they do to it: slow, frozen, dead, full, failed over."""

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, StoreError
from sidecar.secret import Secret
from sidecar.settings import SecretReference
from sidecar.tokens.redis.store import INSTANCES, RedisStore
from sidecar.tokens.store import KEEP, MAX_GENERATION, MAX_INSTANCES, MAX_RECORD, Stored, lease_key, store_key
from tests.canary import canary
from tests.redis_servers import (
    Cluster,
    Server,
    Watched,
    cluster,
    eventually,
    redis_of_session,
    redis_server,
    server,
    watched,
)
from tests.waiting import PATIENCE

__all__ = ["redis_of_session", "redis_server"]

TIMEOUT = 1.0
BOUND = 20 * TIMEOUT
"""What a call may take on a busy machine; on a quiet one it is a fraction of that."""

KEY = store_key("one")
LEASE = lease_key(KEY)
PASSWORD = canary("redis-password")

# What a user of Redis must be able to do for us, and nothing else; a cluster asks for two commands more.
ACL = (
    "resetkeys ~auth-sidecar:* resetchannels -@all +evalsha +eval +time +hget +hset +hdel +hlen +hkeys"
    " +hstrlen +get +set +del +pttl +pexpire"
)
ACL_CLUSTER = f"{ACL} +cluster|slots +asking"


@contextlib.asynccontextmanager
async def store(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    """Open a store that is patient, for tests that are not about time."""
    opened = RedisStore(url, **{"timeout": 10.0, **options})
    try:
        yield opened
    finally:
        await opened.aclose()


async def every_promise(opened: RedisStore) -> None:
    """Use all that a store does once."""
    for number in range(6):  # on every node of a cluster
        key = store_key(str(number))
        assert await opened.take(key, "a", 60) == (True, Stored())
        assert await opened.write(key, b"\x00one", 1, after=0, release="a")
        assert not await opened.write(key, b"late", 1, after=0)
        assert await opened.write(key, b"\xffone", 1, after=1)
        assert await opened.read(key) == Stored(1, b"\xffone")
        assert await opened.take(key, "b", 60) == (True, Stored(1, b"\xffone"))
        assert await opened.take(key, "a", 60) == (False, Stored(1, b"\xffone"))
        await opened.release(key, "b")
        assert await opened.take(key, "a", 60) == (True, Stored(1, b"\xffone"))
    await opened.announce("over", b"word", 0.001)
    await asyncio.sleep(0.01)
    await opened.announce("a", b"word", 60)
    assert await opened.announced() == {"a": b"word"}


@dataclass
class Timed:
    """How a call ended, and how long it took."""

    error: str
    seconds: float
    silent: bool


async def timed(call: Awaitable[object]) -> Timed:
    """Await *call*, which must end within BOUND, well or with a StoreError."""
    began, error, silent = time.perf_counter(), "", False
    try:
        await call
    except StoreError as caught:
        error, silent = str(caught), caught.silent
    seconds = time.perf_counter() - began
    assert seconds < BOUND, error
    assert PASSWORD not in error
    return Timed(error, seconds, silent)


async def until_well(opened: RedisStore, *, within: float = PATIENCE) -> None:
    """Wait until the store can be written."""
    async with asyncio.timeout(within):
        while (await timed(opened.write(store_key("well"), b"x", 1, after=0))).error:
            await asyncio.sleep(0.05)


Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Fake:
    """A server that says to every command what a test wants, and remembers what it was sent."""

    port: int = 0
    connections: int = 0
    sent: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def fake(*replies: bytes) -> AsyncIterator[Fake]:
    """Serve a Fake: its answers are *replies* in turn, the last for ever; an empty one closes the connection."""
    made = Fake()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                made.sent.append(data)
                reply = replies[min(len(made.sent), len(replies)) - 1]
                if not reply:
                    break
                writer.write(reply.replace(b"PORT", b"%d" % made.port))
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield made


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_lines(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The lines that give a server a certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return (
        f"tls-cert-file {folder}/cert.pem",
        f"tls-key-file {folder}/key.pem",
        f"tls-ca-cert-file {folder}/ca.pem",
        "tls-auth-clients no",
    )


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory, outputs: Path) -> Iterator[Watched]:
    with watched(
        tmp_path_factory.mktemp("watched"),
        outputs / "redis-watched.log",
        f"requirepass {PASSWORD}",
        f"masterauth {PASSWORD}",
        password=PASSWORD,
    ) as made:
        yield made


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, outputs: Path) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), outputs / "redis-cluster.log") as made:
        yield made


async def test_records_are_forgotten_when_nobody_wants_them(redis_server: Server) -> None:
    """Every write begins the 90 days anew, and the crowd of instances has an end too."""
    async with store(redis_server.url) as opened:
        for after in (0, 1):
            await opened.write(KEY, b"x", 1, after=after)
            assert KEEP - 60 < redis_server.command("TTL", KEY) <= KEEP
            redis_server.command("EXPIRE", KEY, 60)
        await opened.announce("a", b"x", 60)
        assert KEEP - 60 < redis_server.command("TTL", INSTANCES) <= KEEP
        await opened.take(KEY, "a", 10)
        assert redis_server.command("TTL", KEY) <= 60
        assert 9000 < redis_server.command("PTTL", LEASE) <= 10000


@pytest.mark.parametrize("sealed", [bytes(MAX_RECORD + 1), b"x" * (100 << 20), None])
async def test_a_planted_record_is_no_record_but_counts(redis_server: Server, sealed: bytes | None) -> None:
    """A huge value stays inside Redis, a missing one is empty; who writes over it must know its generation."""
    redis_server.command("HSET", KEY, "generation", 5, *(() if sealed is None else ("sealed", sealed)))
    async with store(redis_server.url) as opened:
        before = redis_server.info("stats")["total_net_output_bytes"]
        assert await opened.read(KEY) == Stored(5, b"")
        assert await opened.take(KEY, "a", 10) == (True, Stored(5, b""))
        assert redis_server.info("stats")["total_net_output_bytes"] - before < 20000
        assert await opened.write(KEY, b"data", 6, after=0) is False
        assert await opened.write(KEY, b"data", 6, after=5) is True
        assert await opened.read(KEY) == Stored(6, b"data")


@pytest.mark.parametrize(
    "generation", ["many", "", "2.5", "0", "-1", "07", " 7", "7x", "1e3", str(MAX_GENERATION + 1), "9" * 400, b"7\x00"]
)
async def test_a_planted_generation_does_not_count(redis_server: Server, generation: str | bytes) -> None:
    """A number no credential can reach would lock everybody out: such a record is a miss and is written over."""
    redis_server.command("HSET", KEY, "generation", generation, "sealed", "data")
    async with store(redis_server.url) as opened:
        assert await opened.take(KEY, "a", 10) == (True, Stored())
        assert await opened.read(KEY) == Stored()
        for after in (1, 7, MAX_GENERATION + 1):
            assert await opened.write(KEY, b"anew", 8, after=after) is False
        assert await opened.write(KEY, b"new", 1, after=0) is True
        assert await opened.read(KEY) == Stored(1, b"new")


async def test_a_lease_without_an_end_locks_nobody_out(redis_server: Server) -> None:
    """None of our calls leaves such a one."""
    redis_server.command("SET", LEASE, "x")
    async with store(redis_server.url) as opened:
        assert (await opened.take(KEY, "a", 10))[0]


async def test_planted_words_are_not_handed_on(redis_server: Server) -> None:
    """What is no word of ours is left out and swept away; a crowd is not even looked through."""
    later = int(time.time() * 1000) + 60000
    for name, word in {
        "large": b"%d:%s" % (later, bytes(MAX_RECORD + 1)),
        "huge": b"x" * (10 << 20),
        "no time": b"word",
        "over": b"1:word",
        "n" * 300: b"%d:word" % later,
    }.items():
        redis_server.command("HSET", INSTANCES, name, word)
    async with store(redis_server.url) as opened:
        assert await opened.announced() == {}
        await opened.announce("a", b"word", 60)
        assert redis_server.command("HKEYS", INSTANCES) == [b"a"]
        for start in range(0, 2 * MAX_INSTANCES, 100):
            fields = (item for number in range(start, start + 100) for item in (f"x{number}", b"%d:word" % later))
            redis_server.command("HSET", INSTANCES, *fields)
        assert await opened.announced() == {}
        with pytest.raises(StoreError, match="1000 instances"):
            await opened.announce("b", b"word", 60)


async def test_values_of_another_type_are_left_alone(redis_server: Server) -> None:
    """Nothing is overwritten or deleted that is not ours to read, and the error says which key it is."""
    for key in (KEY, INSTANCES, lease_key(store_key("two"))):
        redis_server.command("LPUSH", key, "foreign")
    two = store_key("two")
    async with store(redis_server.url) as opened:
        assert await opened.write(two, b"x", 1, after=0)
        for key, call in (
            (KEY, opened.read(KEY)),
            (KEY, opened.take(KEY, "a", 10)),
            (KEY, opened.write(KEY, b"x", 1, after=0, release="a")),
            (f"{two} or {lease_key(two)}", opened.take(two, "a", 10)),
            (f"{two} or {lease_key(two)}", opened.write(two, b"y", 2, after=1, release="a")),
            (lease_key(two), opened.release(two, "a")),
            (INSTANCES, opened.announce("a", b"x", 10)),
            (INSTANCES, opened.announced()),
        ):
            with pytest.raises(StoreError) as caught:
                await call
            assert f"{key} is of another type" in str(caught.value).replace(f" or {LEASE}", "")
        assert await opened.read(two) == Stored(1, b"x")
    for key in (KEY, INSTANCES, lease_key(two)):
        assert redis_server.command("LRANGE", key, 0, -1) == [b"foreign"]
    assert not redis_server.command("EXISTS", LEASE)


async def test_a_renewal_is_two_commands(redis_server: Server) -> None:
    """The lease with the record, and the new record with the end of the lease: each is one trip to the server."""
    async with store(redis_server.url) as opened:

        async def renewal(generation: int) -> None:
            await opened.take(KEY, "a", 60)
            await opened.write(KEY, b"x", generation, after=generation - 1, release="a")

        await renewal(1)
        with redis_server.client() as client, client.monitor() as seen:
            await renewal(2)
            redis_server.command("ECHO", "end")
            commands = []
            while not (command := seen.next_command())["command"].startswith("ECHO"):
                if command["client_type"] != "lua":
                    commands.append(command["command"].split()[0])
    assert commands == ["EVALSHA"] * 2


async def test_instances_of_the_release_before_keep_to_the_lease(redis_server: Server) -> None:
    """It is a plain key with the owner and an end, and a record is two fields: all of it read and written as ever."""
    async with store(redis_server.url) as opened:
        await opened.take(KEY, "a", 10)
        assert LEASE == KEY.replace("token", "lease")
        assert redis_server.command("GET", LEASE) == b"a"
        redis_server.command("SET", LEASE, "b", "PX", 60000)
        assert await opened.take(KEY, "a", 10) == (False, Stored())
        await opened.write(KEY, b"x", 7, after=0, release="b")
        assert not redis_server.command("EXISTS", LEASE)
        assert redis_server.command("HGETALL", KEY) == {b"generation": b"7", b"sealed": b"x"}


async def test_forgotten_scripts_are_sent_again(redis_server: Server) -> None:
    """A server that was told to forget them, or never knew them, is told once."""
    async with store(redis_server.url) as opened:
        await opened.write(KEY, b"x", 1, after=0)
        redis_server.command("SCRIPT", "FLUSH")
        assert await opened.write(KEY, b"x", 2, after=1)
        assert await opened.read(KEY) == Stored(2, b"x")
        redis_server.command("CONFIG", "RESETSTAT")
        assert await opened.read(KEY) == Stored(2, b"x")
        assert "cmdstat_eval" not in redis_server.info("commandstats")


async def test_nothing_but_the_command_is_sent() -> None:
    """No greeting, no name, no question after health: a user needs no more permissions than for what is asked."""
    answer = b"*5\r\n$1\r\n1\r\n$1\r\n2\r\n$%d\r\n%s\r\n$1\r\n0\r\n$0\r\n\r\n" % (len(KEY), KEY.encode())
    async with (
        fake(b"+OK\r\n", answer) as one,
        store(one.url, username="u", password=lambda: Secret(PASSWORD)) as opened,
    ):
        assert await opened.read(KEY) == Stored()
        assert await opened.read(KEY) == Stored()
        assert one.connections == 1
        assert [sent.split(b"\r\n")[2] for sent in one.sent] == [b"AUTH", b"EVALSHA", b"EVALSHA"]


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (b"-OOM command not allowed\r\n", "maxmemory"),
        (b"-ERR Error running script (call to f_0): @user_script:1: -OOM command not allowed\r\n", "maxmemory"),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "cannot save"),
        (b"-NOREPLICAS Not enough good replicas\r\n", "too few replicas"),
        (b"-READONLY You can't write against a read only replica.\r\n", "read-only replica"),
        (b"-ERR Error running script: @user_script: 1: -READONLY You can't write\r\n", "read-only replica"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading its data"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "without its master"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "cluster is down"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", r"redis\+cluster"),
        (b"-ASK 3999 127.0.0.1:6381\r\n", r"redis\+cluster"),
        (b"-NOAUTH Authentication required.\r\n", "user or password"),
        (b"-NOPERM this user has no permissions\r\n", "ACL"),
        (b"-ERR max number of clients reached\r\n", "maxclients"),
        (b"-ERR unknown command 'EVALSHA'\r\n", "Redis 6 or newer"),
        (b"-ERR CANARY-echo\x1b[31m\r\n", "Redis 6 or newer"),
        (b"HTTP/1.1 400 Bad Request CANARY-echo\r\n\r\n", "Redis would not"),
        (b"\x15\x03\x01\x00\x02\x02F\r\n", "Redis would not"),
        (b"$abc\r\n", "Redis would not"),
        (b"$-7\r\n", "Redis would not"),
        (b":1\r\n", "Redis would not"),
        (b"*0\r\n", "Redis would not"),
        (b"*3\r\n:1\r\n:2\r\n$3\r\nkey\r\n", "Redis would not"),
        (b"*1\r\n" * 3000, "Redis would not"),
        (b"", "broke off"),
        (b"*3\r\n$5", "store.timeout"),
    ],
)
async def test_every_trouble_has_its_sentence(reply: bytes, what: str) -> None:
    """An answer that is none is a StoreError which says what to do, and repeats nothing that the server said."""
    async with fake(reply) as one, store(one.url, timeout=TIMEOUT) as opened:
        with pytest.raises(StoreError, match=what) as caught:
            await opened.read(KEY)
        assert str(caught.value).startswith(f"Redis at 127.0.0.1:{one.port}: ")
        assert "CANARY" not in str(caught.value)
        assert len(one.sent) == 1


@pytest.mark.parametrize(
    ("reply", "connections"), [(b"-OOM no memory\r\n", 1), (b"-READONLY a replica\r\n", 2), (b"-LOADING data\r\n", 2)]
)
async def test_after_trouble_that_another_server_may_not_have_one_connects_anew(reply: bytes, connections: int) -> None:
    """The name may lead to the new master by now; a server that only says no keeps its connection."""
    async with fake(reply) as one, store(one.url) as opened:
        for _ in range(2):
            with pytest.raises(StoreError):
                await opened.read(KEY)
        assert one.connections == connections


async def test_no_call_is_tried_again() -> None:
    """Not by the client either: whether a lease was taken is for the caller to find out."""
    slots = b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:PORT\r\n$1\r\nx\r\n"
    for scheme, replies, sent in (
        ("redis:", (b"",), [b"EVALSHA"]),
        ("redis+cluster:", (slots, b""), [b"CLUSTER", b"EVALSHA"]),
    ):
        async with fake(*replies) as one, store(one.url.replace("redis:", scheme)) as opened:
            with pytest.raises(StoreError, match="broke off"):
                await opened.take(KEY, "a", 10)
            assert [data.split(b"\r\n")[2] for data in one.sent] == sent


async def test_what_fails_after_its_caller_left_troubles_nobody() -> None:
    """No task complains that nobody asked how it ended."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    async with fake(b"*3\r\n$5") as one, store(one.url, timeout=TIMEOUT) as opened:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(opened.read(KEY), 0.02)
    gc.collect()
    assert complaints == []


async def test_a_late_answer_is_nobodys() -> None:
    """What comes after a time-out, or twice, is not taken for the answer to the next call."""

    def answer(generation: int) -> bytes:
        return b"*5\r\n:1\r\n:2\r\n$%d\r\n%s\r\n:%d\r\n$1\r\nx\r\n" % (len(KEY), KEY.encode(), generation)

    async with fake(answer(1) + answer(2), answer(3)) as one, store(one.url) as opened:
        assert await opened.read(KEY) == Stored(1, b"x")
        with contextlib.suppress(StoreError):
            assert await opened.read(KEY) == Stored(3, b"x")
        assert await opened.read(KEY) == Stored(3, b"x")
        assert one.connections == 2


async def test_cancelled_calls_do_not_mix_answers(redis_server: Server) -> None:
    """A thousand calls cut off at any point, and a thousand that run out of time, never give another key's value."""
    keys = [store_key(name) for name in "ab"]
    chance = random.Random(7)
    async with store(redis_server.url) as opened:
        for number, key in enumerate(keys, start=1):
            await opened.write(key, key.encode(), number, after=0)
        began = time.perf_counter()
        for _ in range(50):
            await opened.read(keys[0])
        usual = (time.perf_counter() - began) / 50

        async def some(reader: RedisStore, count: int) -> int:
            done = 0
            for _ in range(count):
                number = chance.randrange(2)
                try:
                    async with asyncio.timeout(chance.random() * 20 * usual):
                        found = await reader.read(keys[number])
                except (TimeoutError, StoreError):
                    continue
                assert found == Stored(number + 1, keys[number].encode())
                done += 1
            return done

        done = await asyncio.gather(*(some(opened, 100) for _ in range(10)))
        assert 0 < sum(done) < 1000
        assert await opened.read(keys[0]) == Stored(1, keys[0].encode())
        hasty = [RedisStore(redis_server.url, timeout=usual * factor) for factor in (1, 2, 4, 8, 16)]
        for one in hasty:
            one._outage.failed = lambda ticket: None  # type: ignore[method-assign]
        await asyncio.gather(*(some(one, 200) for one in hasty))
        for one in hasty:
            await one.aclose()
        assert redis_server.command("CLIENT", "LIST").count(b"cmd=evalsha") <= 8


async def test_connections_are_few(redis_server: Server) -> None:
    """However many call at once, a store has eight connections at most; all are served."""
    async with store(redis_server.url) as opened:
        await opened.write(KEY, b"x", 1, after=0)
        assert await asyncio.gather(*(opened.read(KEY) for _ in range(500))) == [Stored(1, b"x")] * 500
        assert redis_server.info("clients")["connected_clients"] <= 8 + 1


async def test_fifty_start_at_once(redis_server: Server) -> None:
    """Of fifty instances one gets the lease and writes; all the others then find its record."""
    stores = [RedisStore(redis_server.url, timeout=20.0) for _ in range(50)]

    async def start(number: int) -> bool:
        opened = stores[number]
        await opened.announce(f"i{number}", b"x", 60)
        if (await opened.take(KEY, f"i{number}", 60))[0]:
            return await opened.write(KEY, b"x", 1, after=0)
        while not (await opened.read(KEY)).generation:
            await asyncio.sleep(0.01)
        return False

    assert (await asyncio.gather(*(start(number) for number in range(50)))).count(True) == 1
    assert len(await stores[0].announced()) == 50
    await asyncio.gather(*(opened.aclose() for opened in stores))


async def test_a_closed_store_leaves_nothing_behind(redis_server: Server) -> None:
    """No connection and no task, even if it is closed while calls are under way; they end well or as closed."""
    before = asyncio.all_tasks()
    opened = RedisStore(redis_server.url, timeout=20.0)
    await opened.write(KEY, b"x", 1, after=0)
    calls = [asyncio.create_task(opened.read(KEY)) for _ in range(50)]
    await asyncio.sleep(0)
    await opened.aclose()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(end == Stored(1, b"x") or "closed" in str(end) for end in ends)
    assert asyncio.all_tasks() == before
    gc.collect()
    eventually(lambda: redis_server.info("clients")["connected_clients"] == 1, "close")


@pytest.mark.parametrize("layout", ["single", "cluster"])
async def test_a_loop_that_is_held_up_while_a_store_closes(layout: str, request: pytest.FixtureRequest) -> None:
    """Longer than the time-out, at any moment: every connection is closed all the same, none is left to the garbage."""
    url = request.getfixturevalue("redis_server" if layout == "single" else "nodes").url
    for moment in range(8):
        opened = RedisStore(url, timeout=0.2)
        await until_well(opened)
        closing = asyncio.create_task(opened.aclose())
        for _ in range(moment):
            await asyncio.sleep(0)
        time.sleep(0.25)
        await closing
        del opened, closing
        gc.collect()


async def test_a_line_that_nobody_used_for_long_is_made_anew(redis_server: Server) -> None:
    """A firewall forgets a silent connection without a word; one in use is kept."""

    class Later(SystemClock):
        ahead = 0.0

        def monotonic(self) -> float:
            return super().monotonic() + self.ahead

    clock = Later()
    async with store(redis_server.url, clock=clock) as opened:
        for ahead, connections in ((0, 1), (29, 1), (58, 1), (90, 2)):
            clock.ahead = ahead
            redis_server.command("CONFIG", "RESETSTAT")
            await opened.read(KEY)
            assert redis_server.info("stats")["total_connections_received"] == 1 + (ahead in {0, 90}), connections


@pytest.mark.parametrize(("wrong", "offset"), [(0.5, 0.0), (-0.5, 0.0), (5.0, -5.0), (-3600.0, 3600.0)])
async def test_the_servers_time_counts(redis_server: Server, wrong: float, offset: float) -> None:
    """An instance whose clock is wrong by more than a second learns by how much, and when that is over."""

    class Wrong(SystemClock):
        by = wrong

        def now(self) -> float:
            return super().now() + self.by

    clock = Wrong()
    async with store(redis_server.url, clock=clock) as opened:
        assert opened.offset == 0.0
        await opened.read(KEY)
        first = opened.offset
        assert first == pytest.approx(offset, abs=0.3)
        clock.by += 0.5
        await opened.read(KEY)
        assert opened.offset == first
        clock.by = 0.2
        await opened.read(KEY)
        assert opened.offset == 0.0


async def bounded_trouble(opened: RedisStore) -> list[float]:
    """Meet a server that is silent: a few calls wait for the time-out, then none does; return how long each took."""
    waited = [(await timed(opened.take(KEY, "a", 10))).seconds for _ in range(2)]
    refused = [
        await timed(call) for call in (opened.read(KEY), opened.write(KEY, b"x", 9, after=0), opened.release(KEY, "a"))
    ]
    assert all("not asked again for" in call.error for call in refused), refused
    assert min(call.seconds for call in refused) < TIMEOUT / 2
    return waited


async def test_a_slow_server_costs_little(redis_server: Server) -> None:
    """A pause of the server is over for us after two time-outs, and it is used again when it answers."""
    async with store(redis_server.url, timeout=TIMEOUT) as opened:
        await opened.write(KEY, b"x", 1, after=0)
        redis_server.command("CLIENT", "PAUSE", 5000)
        waited = await bounded_trouble(opened)
        assert min(waited) > TIMEOUT * 0.8
        await until_well(opened)
        assert await opened.read(KEY) == Stored(1, b"x")


@pytest.mark.parametrize("at_once", [1, 20])
async def test_a_frozen_server_costs_little(redis_server: Server, at_once: int) -> None:
    """A server that vanished from the network, with its connections open, is found again when it is back."""
    async with store(redis_server.url, timeout=TIMEOUT) as opened:
        await asyncio.gather(*(opened.write(store_key(str(number)), b"x", 1, after=0) for number in range(at_once)))
        redis_server.freeze()
        try:
            began = time.perf_counter()
            calls = [await asyncio.gather(*(timed(opened.read(KEY)) for _ in range(at_once))) for _ in range(4)]
            assert time.perf_counter() - began < 4 * BOUND
            assert all(call.error and call.silent for row in calls for call in row)
            assert all("not asked again" in call.error for call in calls[-1])
            assert min(call.seconds for call in calls[-1]) < TIMEOUT / 2
        finally:
            redis_server.thaw()
        await until_well(opened)
        assert await opened.read(store_key("0")) == Stored(1, b"x")


async def test_a_dead_server_that_comes_back_empty_is_used(redis_server: Server) -> None:
    """It refuses connections meanwhile, at no cost; then records and scripts are there anew."""
    async with store(redis_server.url, timeout=TIMEOUT) as opened:
        await opened.write(KEY, b"x", 5, after=0)
        redis_server.kill()
        for _ in range(4):
            assert (await timed(opened.read(KEY))).error
        refused = await timed(opened.read(KEY))
        assert "refused the connection; is it up?; not asked again for" in refused.error
        assert not refused.silent
        redis_server.start()
        await until_well(opened)
        assert await opened.read(KEY) == Stored()
        assert await opened.write(KEY, b"anew", 1, after=0)


async def test_a_server_that_restarts_between_two_calls_is_not_noticed(redis_server: Server) -> None:
    """A connection that was closed meanwhile is not used for the next call."""
    async with store(redis_server.url, timeout=TIMEOUT) as opened:
        await opened.write(KEY, b"x", 5, after=0)
        redis_server.kill()
        await asyncio.sleep(0.05)
        redis_server.start()
        assert await opened.write(KEY, b"x", 1, after=0)


async def test_a_replica_is_read_and_not_written(redis_server: Server) -> None:
    """It says so at once, and goes on to be asked; when it is the master, it is used."""
    async with store(redis_server.url) as opened:
        await opened.write(KEY, b"x", 1, after=0)
        redis_server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            for _ in range(2):
                for call in (
                    opened.write(KEY, b"x", 2, after=1),
                    opened.take(KEY, "a", 10),
                    opened.announce("a", b"x", 10),
                ):
                    with pytest.raises(StoreError, match="read-only replica; the master is wanted"):
                        await call
                assert await opened.read(KEY) == Stored(1, b"x")
        finally:
            redis_server.command("REPLICAOF", "NO", "ONE")
        assert await opened.write(KEY, b"x", 2, after=1)


async def test_a_full_server_is_read_and_says_so(redis_server: Server) -> None:
    """Without memory nothing is written, whoever holds a lease can give it back, and records can be read."""
    async with store(redis_server.url) as opened:
        await opened.write(KEY, b"x", 1, after=0)
        await opened.take(KEY, "a", 60)
        redis_server.command("CONFIG", "SET", "maxmemory", 1)
        try:
            for _ in range(3):
                for call in (opened.write(KEY, b"x", 2, after=1), opened.take(store_key("b"), "a", 10)):
                    with pytest.raises(StoreError, match="raise its maxmemory, with the policy noeviction"):
                        await call
            assert await opened.read(KEY) == Stored(1, b"x")
            await opened.release(KEY, "a")
        finally:
            redis_server.command("CONFIG", "SET", "maxmemory", 0)
        assert await opened.write(KEY, b"x", 2, after=1)


async def test_a_user_with_the_documented_permissions_can_do_all(redis_server: Server) -> None:
    """One that is limited to our keys and commands; with one permission less it is told what is wrong."""
    redis_server.command("ACL", "SETUSER", "auth-sidecar", "reset", "on", f">{PASSWORD}", *ACL.split())
    url = redis_server.url.replace("//", f"//auth-sidecar:{PASSWORD}@")
    try:
        async with store(url) as opened:
            await every_promise(opened)
        for word in ACL.split():
            if word.startswith("+") and word not in {"+eval", "+evalsha"}:
                redis_server.command("FLUSHALL")
                redis_server.command("ACL", "SETUSER", "auth-sidecar", word.replace("+", "-"))
                async with store(url) as opened:
                    with pytest.raises(StoreError, match="does not permit this to the user; see its ACL"):
                        await every_promise(opened)
                redis_server.command("ACL", "SETUSER", "auth-sidecar", word)
        async with store(redis_server.url, username="auth-sidecar", password=lambda: Secret(PASSWORD)) as opened:
            with pytest.raises(StoreError, match="does not permit"):
                await opened.read("other:key")
    finally:
        redis_server.command("ACL", "DELUSER", "auth-sidecar")


@pytest.mark.parametrize("server_first", [True, False])
async def test_a_password_that_was_rotated_is_read_again(
    redis_server: Server, tmp_path: Path, server_first: bool
) -> None:
    """Whichever changes first, server or file: the store is back as soon as both have, without a restart."""
    file, later = tmp_path / "password", PASSWORD + "-2"
    reference = SecretReference(file=file)

    def at_the_server() -> None:
        redis_server.command("CONFIG", "SET", "requirepass", later)
        redis_server.admin["password"] = later
        redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    steps = [at_the_server, lambda: file.write_text(later)]
    file.write_text(PASSWORD)
    redis_server.command("CONFIG", "SET", "requirepass", PASSWORD)
    redis_server.admin["password"] = PASSWORD
    try:
        async with store(redis_server.url, password=reference.read) as opened:
            assert await opened.write(KEY, b"x", 1, after=0)
            for step in steps if server_first else steps[::-1]:
                step()
                with contextlib.suppress(StoreError):
                    await opened.read(KEY)
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(StoreError):
                        assert await opened.read(KEY) == Stored(1, b"x")
                        break
                    await asyncio.sleep(0.05)
    finally:
        redis_server.command("CONFIG", "SET", "requirepass", "")
        redis_server.admin.clear()


async def test_a_password_that_cannot_be_read_for_a_moment_changes_nothing(
    redis_server: Server, tmp_path: Path
) -> None:
    """A file that is being replaced: new connections use the last one; the first must be there."""
    file = tmp_path / "password"
    reference = SecretReference(file=file)
    with pytest.raises(ConfigurationError):
        RedisStore(redis_server.url, timeout=TIMEOUT, password=reference.read)
    file.write_text(PASSWORD)
    redis_server.command("CONFIG", "SET", "requirepass", PASSWORD)
    redis_server.admin["password"] = PASSWORD
    try:
        async with store(redis_server.url, password=reference.read) as opened:
            assert await opened.write(KEY, b"x", 1, after=0)
            file.unlink()
            redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with contextlib.suppress(StoreError):
                await opened.read(KEY)
            assert await opened.read(KEY) == Stored(1, b"x")
    finally:
        redis_server.command("CONFIG", "SET", "requirepass", "")
        redis_server.admin.clear()


@pytest.mark.parametrize("user", ["", "nobody"])
async def test_a_wrong_password_is_said_and_not_shown(redis_server: Server, user: str) -> None:
    """Nor is the server asked over and over."""
    redis_server.command("CONFIG", "SET", "requirepass", PASSWORD)
    redis_server.admin["password"] = PASSWORD
    try:
        async with store(redis_server.url.replace("//", f"//{user}:{PASSWORD}-not@")) as opened:
            for _ in range(3):
                call = await timed(opened.read(KEY))
                assert "refused the user or password" in call.error
            assert "not asked again for" in (await timed(opened.read(KEY))).error
            assert PASSWORD not in repr(opened) + str(opened)
        async with store(redis_server.url) as opened:
            assert "refused the user or password, or wants one" in (await timed(opened.read(KEY))).error
        async with store(redis_server.url, password=lambda: Secret(PASSWORD)) as opened:
            assert await opened.write(KEY, b"x", 1, after=0)
    finally:
        redis_server.command("CONFIG", "SET", "requirepass", "")
        redis_server.admin.clear()


@pytest.fixture(scope="module")
def tls_server(tls_lines: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, outputs: Path) -> Iterator[Server]:
    with tls_of(tls_lines, tmp_path_factory.mktemp("tls-server"), outputs / "redis-tls.log") as made:
        yield made


@contextlib.contextmanager
def tls_of(lines: tuple[str, ...], folder: Path, log: Path) -> Iterator[Server]:
    with server(folder, log, *lines, tls=True) as made:
        yield made


async def test_tls_is_verified(
    tls_server: Server, redis_server: Server, ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its CA all works; without it, for another name, or where there is no TLS, nothing is sent."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    url = tls_server.url.replace("redis:", "rediss:")
    async with store(url, ca=ca) as opened:
        await every_promise(opened)
    assert not (tmp_path / "keys").exists()
    for wrong, trusted, what in (
        (url, None, r"its certificate is not trusted \(.*\); see store.ca"),
        (url.replace("127.0.0.1", "localhost"), ca, "not trusted .*mismatch.*'localhost'"),
        (redis_server.url.replace("redis:", "rediss:"), ca, "TLS failed|store.timeout|broke off"),
        (tls_server.url, None, "broke off|Redis would not|store.timeout"),
    ):
        async with store(wrong, ca=trusted, timeout=0.5) as opened:
            with pytest.raises(StoreError, match=what):
                await opened.read(KEY)


async def test_a_frozen_server_with_tls_costs_little(tls_server: Server, ca: Path) -> None:
    """No time is spent on parting from it politely, not even at the end."""
    opened = RedisStore(tls_server.url.replace("redis:", "rediss:"), timeout=TIMEOUT, ca=ca)
    await until_well(opened)
    tls_server.freeze()
    try:
        await bounded_trouble(opened)
        await timed(opened.aclose())
    finally:
        tls_server.thaw()


async def test_a_ca_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    """It is said at once, before any connection."""
    with pytest.raises(ConfigurationError, match=r"store\.ca"):
        RedisStore("rediss://127.0.0.1", timeout=1, ca=tmp_path / "none.pem")


async def test_sentinels_lead_to_the_master(sentinels: Watched) -> None:
    """Sentinels without a password are asked without, and their servers with it."""
    async with store(sentinels.url.replace("//", f"//:{PASSWORD}@")) as opened:
        await every_promise(opened)
    async with store(sentinels.url) as opened:
        with pytest.raises(StoreError, match=r"Redis Sentinel at 127.*refused the user or password, or wants one"):
            await opened.read(KEY)
    async with store(sentinels.url.replace("/main", "/other"), password=lambda: Secret(PASSWORD)) as opened:
        with pytest.raises(StoreError, match="no Sentinel knows a master of this service"):
            await opened.read(KEY)


async def test_a_silent_sentinel_is_passed_over(sentinels: Watched) -> None:
    """One that does not answer takes up the first call, not every call."""

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(never, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = sentinels.url.replace("//", f"//:{PASSWORD}@127.0.0.1:{port},")
    async with store(url, timeout=TIMEOUT) as opened:
        assert "store.timeout" in (await timed(opened.read(KEY))).error
        for _ in range(3):
            assert not (await timed(opened.read(KEY))).error
    silent.close()


async def test_after_a_failover_the_new_master_is_found(sentinels: Watched) -> None:
    """Whether the old one steps back or dies: bounded trouble meanwhile, and then its successor has the scripts."""
    async with store(sentinels.url, password=lambda: Secret(PASSWORD), timeout=TIMEOUT) as opened:
        for kill in (False, True):
            key = store_key(f"failover {kill}")
            assert await opened.write(key, b"x", 1, after=0)
            eventually(lambda key=key: all(one.command("EXISTS", key) for one in sentinels.servers), "replication")
            new = await asyncio.to_thread(sentinels.fail_over, kill=kill)
            # One that steps back still takes writes for a while.
            async with asyncio.timeout(PATIENCE):
                while new.command("HGET", key, "generation") == b"1":
                    with contextlib.suppress(StoreError):
                        after = (await opened.read(key)).generation
                        await opened.write(key, b"y", after + 1, after=after)
                    await asyncio.sleep(0.05)
            assert (await opened.read(key)).sealed == b"y"
            if not kill:
                old = next(one for one in sentinels.servers if one is not new)
                eventually(lambda old=old: old.info("replication").get("master_link_status") == "up", "resync")


async def test_a_cluster_is_one_store(nodes: Cluster) -> None:
    """All promises hold on every node, for a user with two permissions more; one known node leads to the others."""
    for node in nodes.nodes:
        node.command("ACL", "SETUSER", "auth-sidecar", "reset", "on", f">{PASSWORD}", *ACL_CLUSTER.split())
    first = nodes.url.split(",")[0].replace("//", f"//auth-sidecar:{PASSWORD}@")
    async with store(first) as opened:
        await every_promise(opened)
    async with store(nodes.nodes[0].url) as opened:
        ends = [await timed(opened.read(store_key(str(number)))) for number in range(20)]
        assert any("is part of a cluster; use redis+cluster://" in end.error for end in ends)


async def test_slots_that_move_are_followed(nodes: Cluster) -> None:
    """While a slot moves, and after it, its record is found where it is."""
    slot = nodes.nodes[0].command("CLUSTER", "KEYSLOT", KEY)
    names = {node.port: node.command("CLUSTER", "MYID").decode() for node in nodes.nodes}
    owner = next(node for node in nodes.nodes if not _moved(node, KEY))
    other = next(node for node in nodes.nodes if node is not owner)
    async with store(nodes.url) as opened:
        assert await opened.write(KEY, b"x", 1, after=0)
        other.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[owner.port])
        owner.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[other.port])
        owner.command("MIGRATE", "127.0.0.1", other.port, KEY, 0, 5000)
        assert await opened.read(KEY) == Stored(1, b"x")
        for node in (other, owner):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", names[other.port])
        assert await opened.read(KEY) == Stored(1, b"x")
        assert await opened.write(KEY, b"y", 2, after=1)


def _moved(node: Server, key: str) -> bool:
    try:
        node.command("TYPE", key)
    except redis.exceptions.MovedError:
        return True
    return False


async def test_a_frozen_node_costs_little(nodes: Cluster) -> None:
    """Its keys are in trouble for a bounded time; when it is back, so are they."""
    async with store(nodes.url, timeout=TIMEOUT) as opened:
        keys = [store_key(f"frozen {number}") for number in range(12)]
        for key in keys:
            await opened.write(key, b"x", 1, after=0)
        nodes.nodes[1].freeze()
        try:
            for key in keys:
                await timed(opened.read(key))
        finally:
            nodes.nodes[1].thaw()
        eventually(
            lambda: all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node in nodes.nodes), "cluster"
        )
        await until_well(opened)
        for key in keys:
            assert await opened.read(key) == Stored(1, b"x")


async def test_a_cluster_with_tls_is_verified(
    tls_lines: tuple[str, ...], ca: Path, tmp_path: Path, outputs: Path
) -> None:
    """Every node, not only those in the URL."""
    with cluster(tmp_path, outputs / "redis-tls-cluster.log", *tls_lines, "tls-cluster yes", tls=True) as made:
        url = made.url.replace("redis+", "rediss+").split(",")[0]
        async with store(url, ca=ca) as opened:
            await every_promise(opened)
        async with store(url) as opened:
            with pytest.raises(StoreError, match="its certificate is not trusted"):
                await opened.read(KEY)


async def test_sentinels_with_tls_and_a_password_are_verified(
    tls_lines: tuple[str, ...], ca: Path, tmp_path: Path, outputs: Path
) -> None:
    """Sentinels that want the password get it; both they and the master show their certificates."""
    lines = (*tls_lines, "tls-replication yes", f"requirepass {PASSWORD}")
    with watched(
        tmp_path,
        outputs / "redis-tls-watched.log",
        *lines,
        f"masterauth {PASSWORD}",
        sentinels=1,
        sentinel_lines=lines,
        tls=True,
        password=PASSWORD,
    ) as made:
        url = made.url.replace("redis+", "rediss+")
        async with store(url, ca=ca, password=lambda: Secret(PASSWORD)) as opened:
            await every_promise(opened)
        async with store(url, password=lambda: Secret(PASSWORD)) as opened:
            with pytest.raises(StoreError, match="its certificate is not trusted"):
                await opened.read(KEY)
        async with store(url, ca=ca, password=lambda: Secret(PASSWORD + "-not")) as opened:
            with pytest.raises(StoreError, match="refused the user or password"):
                await opened.read(KEY)
