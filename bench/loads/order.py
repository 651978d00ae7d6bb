"""The loads in the order of a whole run."""

from bench.figures import DIRECT, STOCK
from bench.loads import bodies, idle, small, storm, upstreams, workers
from bench.plan import Load

LOADS = (
    Load(
        name="keepalive",
        title="Small answers, connections that stay",
        note="wrk, one thread; nginx with TLS as upstream.",
        reference=STOCK,
        run=small.keepalive,
    ),
    Load(
        name="connections",
        title="A new connection for each request",
        note="wrk with `Connection: close`; a script on urllib, one request after another.",
        reference=DIRECT,
        run=small.connections,
    ),
    Load(
        name="far",
        title="The same script, 30 ms away",
        note="500 requests. A relay before nginx delays each direction by 15 ms, and each handshake by 30 ms.",
        reference=DIRECT,
        run=small.far,
    ),
    Load(
        name="bodies",
        title="Big bodies",
        note="curl: 2 GiB; with a slow peer 256 MiB at 16 MiB a second. mitmdump streams.",
        reference=STOCK,
        run=bodies.bodies,
    ),
    Load(
        name="storm",
        title="All tokens revoked",
        note="200 clients that never pause, the emulator as upstream; its token endpoint takes 300 ms.",
        reference="",
        run=storm.storm,
    ),
    Load(
        name="idle",
        title="Nothing to do",
        note="From the start to the first connection taken, or to `ready`; then at rest; a tick is 10 ms.",
        reference=STOCK,
        run=idle.idle,
    ),
    Load(
        name="workers",
        title="Two workers",
        note="wrk on 16 connections; then 40 clients that never pause, and one worker is killed.",
        reference=workers.ONE,
        run=workers.workers,
    ),
    Load(
        name="upstreams",
        title="A thousand upstreams",
        note="From the start to `ready`, and to the last token; wrk on the proxy port; SIGTERM to the end.",
        reference=upstreams.ONE,
        run=upstreams.upstreams,
    ),
)
