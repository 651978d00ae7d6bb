"""Real Redis servers on loopback: alone, with replica and Sentinels, as a cluster; ended by their process id."""

import contextlib
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.waiting import PATIENCE

SLOTS = 16384
_QUIET = ("save ''", "appendonly no", "protected-mode no", "bind 127.0.0.1", "daemonize no")


def free_port() -> int:
    """Return a port that is free on loopback, and 10000 above it too: there a cluster's nodes talk.

    Not one that the system gives to whoever connects or asks for any: it would be taken before it is used.
    """
    while True:
        port = random.randrange(10240, 22000)
        with socket.socket() as low, socket.socket() as high, contextlib.suppress(OSError):
            low.bind(("127.0.0.1", port))
            high.bind(("127.0.0.1", port + 10000))
            return port


@dataclass
class Server:
    """One redis-server or redis-sentinel; *lines* are its configuration, *admin* how the tests talk to it."""

    program: str
    port: int
    folder: Path
    log: Path
    lines: tuple[str, ...]
    admin: dict[str, Any] = field(default_factory=dict)
    tls: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        # A folder for each: a Sentinel rewrites its file, a cluster's node its nodes.conf.
        place = self.folder / f"{self.program}-{self.port}"
        place.mkdir(mode=0o700, exist_ok=True)
        file = place / "redis.conf"
        if not file.exists():
            port = f"port 0\ntls-port {self.port}" if self.tls else f"port {self.port}"
            file.write_text("\n".join((*_QUIET, f"dir {place}", port, *self.lines)) + "\n")
            file.chmod(0o600)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([self.program, str(file)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        eventually(lambda: self.command("PING"), "start")

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """Give a plain client, which waits."""
        made = redis.Redis(
            host="127.0.0.1",
            port=self.port,
            socket_timeout=PATIENCE,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            **self.admin,
            ssl=self.tls,
            ssl_cert_reqs="none",
            ssl_check_hostname=False,
        )
        try:
            yield made
        finally:
            made.close()

    def command(self, *args: Any) -> Any:
        """Return its answer to one command; errors of the server are raised."""
        with self.client() as client:
            return client.execute_command(*args)

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of its INFO."""
        with self.client() as client:
            return dict(client.info(section))

    def freeze(self) -> None:
        """Stop it without a word, as a broken network does: connections stay, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; twice does no harm."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def eventually[T](attempt: Callable[[], T], what: str, *, within: float = PATIENCE) -> T:
    """Return the first true answer of *attempt*, which may raise what Redis raises until then."""
    end = time.monotonic() + within
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            if answer := attempt():
                return answer
        except (redis.RedisError, OSError) as error:
            last = error
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {within} s; last: {last!r}")


@contextlib.contextmanager
def server(
    folder: Path, log: Path, *lines: str, program: str = "redis-server", tls: bool = False, **admin: Any
) -> Iterator[Server]:
    """Run one server, configured by *lines* beside a free port on loopback and no persistence."""
    made = Server(program, free_port(), folder, log, lines, admin, tls)
    with contextlib.ExitStack() as stack:
        stack.callback(made.kill)
        made.start()
        yield made


@dataclass
class Watched:
    """A master, its replica, and the Sentinels that watch them under the name `main`."""

    servers: list[Server]
    sentinels: list[Server]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/main"

    def master(self) -> Server:
        """Return the one that the first Sentinel which answers takes for the master."""
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError):
                port = int(sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])
                return next(one for one in self.servers if one.port == port)
        raise AssertionError("no Sentinel answers")

    def fail_over(self, *, kill: bool) -> Server:
        """Make the replica the master, with the old one killed or told to step back; return the new one."""
        old = self.master()
        if kill:
            old.kill()
        else:
            self.sentinels[0].command("SENTINEL", "FAILOVER", "main")
        new = next(one for one in self.servers if one is not old)
        eventually(lambda: self.master() is new and new.command("ROLE")[0] == b"master", "failover")
        return new


@contextlib.contextmanager
def watched(
    folder: Path,
    log: Path,
    *lines: str,
    sentinels: int = 3,
    sentinel_lines: tuple[str, ...] = (),
    tls: bool = False,
    **admin: Any,
) -> Iterator[Watched]:
    """Run a master, a replica and Sentinels that fail over within about a second of silence."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(server(folder, log, *lines, tls=tls, **admin))
        replicates = f"replicaof 127.0.0.1 {master.port}"
        replica = stack.enter_context(
            server(folder, log, *lines, replicates, "repl-diskless-sync-delay 0", tls=tls, **admin)
        )
        watch = (
            f"sentinel monitor main 127.0.0.1 {master.port} {sentinels // 2 + 1}",
            *(f"sentinel auth-pass main {admin['password']}" for _ in range("password" in admin)),
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 2000",
            *sentinel_lines,
        )
        watchers = [
            stack.enter_context(
                server(
                    folder,
                    log,
                    *watch,
                    program="redis-sentinel",
                    tls=tls,
                    **(admin if any("requirepass" in line for line in sentinel_lines) else {}),
                )
            )
            for _ in range(sentinels)
        ]
        made = Watched([master, replica], watchers)

        def settled() -> bool:
            linked = replica.info("replication")["master_link_status"] == "up"
            return linked and all(_sees(one, others=sentinels - 1) for one in watchers)

        eventually(settled, "Sentinels")
        yield made


@dataclass
class Cluster:
    """Nodes that share the slots."""

    nodes: list[Server]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{one.port}' for one in self.nodes)}"


@contextlib.contextmanager
def cluster(folder: Path, log: Path, *lines: str, nodes: int = 3, tls: bool = False, **admin: Any) -> Iterator[Cluster]:
    """Run a cluster of masters with the slots spread over them."""
    settings = ("cluster-enabled yes", "cluster-node-timeout 1000", *lines)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(server(folder, log, *settings, tls=tls, **admin)) for _ in range(nodes)]
        for number, node in enumerate(made):
            first, end = SLOTS * number // nodes, SLOTS * (number + 1) // nodes
            node.command("CLUSTER", "ADDSLOTS", *range(first, end))
            made[0].command("CLUSTER", "MEET", "127.0.0.1", node.port)
        eventually(lambda: all(_in_cluster(node, nodes) for node in made), "cluster")
        yield Cluster(made)


def _sees(sentinel: Server, *, others: int) -> bool:
    with sentinel.client() as client:
        master = client.sentinel_masters()["main"]
    return bool(master["num-slaves"] == 1 and master["num-other-sentinels"] == others and not master["is_sdown"])


def _in_cluster(node: Server, nodes: int) -> bool:
    state: bytes = node.command("CLUSTER", "INFO")
    return b"cluster_state:ok" in state and b"cluster_known_nodes:%d\r" % nodes in state


@pytest.fixture(scope="session")
def redis_of_session(tmp_path_factory: pytest.TempPathFactory, outputs: Path) -> Iterator[Server]:
    """One server for all tests of a module; take `redis_server`."""
    with server(tmp_path_factory.mktemp("redis"), outputs / "redis.log") as made:
        yield made


@pytest.fixture
def redis_server(redis_of_session: Server) -> Server:
    """A running server without anything in it; started anew if a test has ended it."""
    if redis_of_session.process is None or redis_of_session.process.poll() is not None:
        redis_of_session.start()
    redis_of_session.command("FLUSHALL")
    redis_of_session.command("SCRIPT", "FLUSH")
    return redis_of_session
