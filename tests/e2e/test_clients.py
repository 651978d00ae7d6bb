"""Every client, unmodified, under `auth-sidecar exec`: it sends and sees the same as without, but for the closed list.

Each script of tests/clients runs directly first, with the right token, and then under `exec` with none or a stale one.
What the upstream got and what the script printed must be the same, but for what docs/how-it-works.md says we change.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12Certificate, serialize_java_truststore

from tests import tls_upstream
from tests.canary import leaks
from tests.clients.packages import AXIOS, OLD_AXIOS, modern_node, node_modules, program
from tests.process import start_sidecar
from tests.rig import Seen, configuration
from tests.tls_upstream import TOKEN, Upstream

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/clients"
REVERSE = '"$AUTH_SIDECAR_URL_PLM"'
STALE = "stale-since-monday"
PASSWORD = "changeit"

# What these clients say to the next hop only; and the credential, which is replaced.
GONE = {
    b"authorization",
    b"connection",
    b"http2-settings",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"transfer-encoding",
    b"upgrade",
}
HOP = re.compile(rb"Auth-Sidecar-Hop: [0-9a-f]+")
NEXT_HOP_LINE = re.compile(r"(?i)(connection|keep-alive|proxy-connection|transfer-encoding):")
# curl shows the proxy's answer to CONNECT among the heads, as with any proxy.
ANSWER_TO_CONNECT = re.compile(r"HTTP/1\.1 200 Connection established\n+", re.IGNORECASE)


@dataclass(frozen=True)
class Client:
    """A script and how it is started: *command*, URL, *arguments*; AUTH is made of *auth* and a token.

    *requests*: how many it makes. *reverse*: it knows no proxy, so that this is its URL, of the reverse port.
    *respells_host*: towards a proxy it writes that field in another way.
    """

    command: str
    requests: int = 9
    arguments: tuple[str, ...] = ()
    host: str = "localhost"
    reverse: str = ""
    respells_host: bool = False
    environ: dict[str, str] = field(default_factory=dict)
    auth: str = "Bearer {}"


CLIENTS = {
    "curl": Client("sh curl.sh", 10),
    "curl with a configuration file": Client("sh curl_config.sh", 2),
    "wget": Client("sh wget.sh"),
    "git": Client("sh git.sh", 2),
    "pip": Client("sh pip.sh", 2, auth="__token__:{}@"),
    "Python requests": Client("{python} requests_calls.py", 10),
    "Python urllib": Client("{python} urllib_calls.py"),
    "Python httpx": Client("{python} httpx_calls.py"),
    "Python aiohttp with trust_env": Client("{python} aiohttp_calls.py", arguments=("trust_env",)),
    # aiohttp keeps no cookies of a host that is an IP address.
    "Python aiohttp": Client("{python} aiohttp_calls.py", reverse=f"$(echo {REVERSE} | sed s/127.0.0.1/localhost/)"),
    "Python http.client": Client("{python} http_client_calls.py", 8, reverse=REVERSE),
    # Perl writes the fields of HTTP::Tiny in the order of its hashes, which is another in each process.
    "Perl HTTP::Tiny": Client("perl http_tiny.pl", environ={"PERL_HASH_SEED": "0", "PERL_PERTURB_KEYS": "0"}),
    "Perl LWP": Client("perl lwp.pl"),
    # Ruby never sends a name to a proxy that stands for a loopback address.
    "Ruby Net::HTTP": Client("ruby net_http.rb", 8, host="plm.test"),
    "PHP curl": Client("php curl.php"),
    "PHP streams": Client("php streams.php", reverse=REVERSE),
    "Java HttpURLConnection": Client("java -cp {classes} UrlConnection"),
    "Java HttpClient": Client("java -cp {classes} NetHttp"),
    "Node axios": Client("node axios.cjs", respells_host=True, environ={"NODE_PATH": "{axios}"}),
    "Node axios, old": Client("node axios.cjs", respells_host=True, environ={"NODE_PATH": "{old_axios}"}),
    "Node 24 axios": Client("{modern_node} axios.cjs", respells_host=True, environ={"NODE_PATH": "{axios}"}),
    "Node 24 axios, old": Client(
        "env -u NODE_USE_ENV_PROXY {modern_node} axios.cjs", respells_host=True, environ={"NODE_PATH": "{old_axios}"}
    ),
    "Node 24 fetch": Client("{modern_node} fetch.mjs"),
    "Node 24 http and https": Client("{modern_node} core.mjs", 8),
    "Node fetch": Client("node fetch.mjs", reverse=REVERSE),
    "Node http and https": Client("node core.mjs", 8, reverse=REVERSE),
}
RUNS = [
    (name, scheme, stale)
    for name, client in CLIENTS.items()
    for scheme in (("http",) if client.reverse else ("https", "http"))
    for stale in (False, True)
]


@dataclass
class Run:
    """What a script printed and what the upstream got of it."""

    stdout: str
    stderr: str
    seen: list[Seen]


@dataclass
class Stage:
    """The upstream, the sidecar that `exec` joins, and what scripts start with."""

    upstream: Upstream
    folder: Path
    directly: dict[tuple[str, str], Run] = field(default_factory=dict)

    @cached_property
    def environ(self) -> dict[str, str]:
        """What every script starts with, like somebody's shell; PATH is the machine's."""
        (self.folder / ".wgetrc").write_text("header = X-From: wgetrc\n")
        (self.folder / ".curlrc").write_text('header = "X-Also-From: curlrc"\n')
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHON": sys.executable}

    @cached_property
    def trust(self) -> dict[str, str]:
        """What makes every client trust the upstream's own CA, without the sidecar."""
        ca = self.folder / "ca.pem"
        certificate = PKCS12Certificate(x509.load_pem_x509_certificate(ca.read_bytes()), b"upstream")
        store = serialize_java_truststore([certificate], BestAvailableEncryption(PASSWORD.encode()))
        (self.folder / "trust.p12").write_bytes(store)
        (self.folder / "wgetrc").write_text(f"ca_certificate = {ca}\n")
        (self.folder / "php").mkdir()
        (self.folder / "php/ca.ini").write_text(f"curl.cainfo = {ca}\n")
        names = ("CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "PERL_LWP_SSL_CA_FILE", "PIP_CERT")
        options = f"-Djavax.net.ssl.trustStore={self.folder}/trust.p12 -Djavax.net.ssl.trustStorePassword={PASSWORD}"
        return dict.fromkeys((*names, "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(ca)) | {
            "JAVA_TOOL_OPTIONS": options,
            "PHP_INI_SCAN_DIR": f":{self.folder}/php",
            "SYSTEM_WGETRC": f"{self.folder}/wgetrc",
        }

    @cached_property
    def classes(self) -> Path:
        """The Java programs, compiled once."""
        folder = self.folder / "classes"
        command = [program("javac"), "-d", str(folder), *map(str, SCRIPTS.glob("*.java"))]
        subprocess.run(command, check=True, capture_output=True, timeout=100)
        return folder

    @property
    def exec_command(self) -> tuple[str, ...]:
        """What stands in front of a command."""
        return (sys.executable, "-m", "sidecar", "exec", "-c", str(self.folder / "config.yaml"), "--")

    def filled(self, text: str) -> str:
        """Return *text* with the places of tools put in; one is installed when the first client needs it."""
        tools: dict[str, Callable[[], object]] = {
            "python": lambda: sys.executable,
            "classes": lambda: self.classes,
            "modern_node": modern_node,
            "axios": lambda: node_modules("axios", AXIOS),
            "old_axios": lambda: node_modules("axios", OLD_AXIOS),
        }
        return re.sub(r"\{(\w+)\}", lambda match: str(tools[match[1]]()), text)

    def run(self, client: Client, environ: dict[str, str], prefix: Sequence[str], arguments: Sequence[str]) -> Run:
        """Run the script of *client* behind *prefix*, to a good end."""
        command = [self.filled(part) for part in client.command.split()]
        more = {name: self.filled(value) for name, value in client.environ.items()}
        self.upstream.seen.clear()
        done = subprocess.run(
            [*prefix, program(command[0]), *command[1:], *arguments],
            cwd=SCRIPTS,
            env=self.environ | more | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Run(done.stdout, done.stderr, list(self.upstream.seen))

    def direct(self, name: str, scheme: str) -> Run:
        """Return what a client does without a sidecar, with the right token; it runs once."""
        if (name, scheme) not in self.directly:
            client = CLIENTS[name]
            environ = self.trust | {"AUTH": client.auth.format(TOKEN)}
            port = self.upstream.port if scheme == "https" else self.upstream.plain_port
            url = f"{scheme}://localhost:{port}"
            self.directly[name, scheme] = self.run(client, environ, (), (url, *client.arguments))
        return self.directly[name, scheme]

    def under_exec(self, name: str, scheme: str, environ: dict[str, str], folder: Path) -> Run:
        """Return what a client does under `exec`; *folder* gets its environment and all that was said."""
        client = CLIENTS[name]
        url = client.reverse or f"{scheme}://{client.host}:{self.upstream.port}"
        script = f'env >"$0"; exec "$@" {" ".join((url, *client.arguments))}'
        run = self.run(
            client,
            environ | {"PYTHONPATH": str(ROOT)},
            (*self.exec_command, "sh", "-c", script, str(folder / "environment")),
            (),
        )
        (folder / "stdout").write_text(run.stdout)
        (folder / "stderr").write_text(run.stderr)
        return run


@contextlib.contextmanager
def loop_beside() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run an event loop in a thread; what is given out runs a coroutine there and returns its result."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(100)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, outputs: Path) -> Iterator[Stage]:
    """Run the upstream and one sidecar for all tests here."""
    folder = tmp_path_factory.mktemp("clients")
    with contextlib.ExitStack() as cleanup:
        run = cleanup.enter_context(loop_beside())

        def enter(context: contextlib.AbstractAsyncContextManager[Any]) -> Any:
            value = run(context.__aenter__())
            cleanup.callback(lambda: run(context.__aexit__(None, None, None)))
            return value

        upstream = enter(tls_upstream.serving(folder / "ca.pem"))
        patch = cleanup.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PYTHONPATH", str(SCRIPTS / "names"), prepend=os.pathsep)
        enter(start_sidecar(settings(upstream.port, folder), folder, outputs / "clients.log"))
        yield Stage(upstream, folder)
        assert upstream.tokens_issued == 1, (
            "exec started a sidecar of its own, or renewed, or two names have two tokens"
        )


def settings(port: int, folder: Path) -> dict[str, Any]:
    """Return a configuration with the upstream under both of its names, each with its own reverse port."""
    oauth2 = {
        "token_url": f"https://localhost:{port}/token",
        "client_id": tls_upstream.CLIENT_ID,
        "client_secret": {"value": tls_upstream.CLIENT_SECRET},
    }
    tls = {"ca": str(folder / "ca.pem")}
    data = configuration(f"https://localhost:{port}", oauth2["token_url"], folder / "state", oauth2=oauth2, tls=tls)
    named = {"base_url": f"https://plm.test:{port}", "oauth2": oauth2, "tls": tls}
    return data | {"upstreams": data["upstreams"] | {"named": named}}


def shown(text: str) -> list[str]:
    """Return what a script printed, without lines that concern one connection and white space at the end of others."""
    lines = ANSWER_TO_CONNECT.sub("", text).splitlines()
    return [line.rstrip() for line in lines if not NEXT_HOP_LINE.match(line)]


def sent_on(seen: Seen, host: str) -> list[bytes]:
    """Return the head that the sidecar must make of what a client sends directly: the closed list, applied."""
    pairs = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in seen.fields)]
    nominated = {option.strip().lower() for value in seen.values(b"Connection") for option in value.split(b",")}
    kept = [(name, value) for name, value in pairs if name.lower() not in GONE | nominated]
    lines = [name + b": " + (host.encode() if name.lower() == b"host" else value) for name, value in kept]
    chunked = [b"Transfer-Encoding: chunked"] if seen.values(b"Transfer-Encoding") else []
    return [seen.line, *lines, *chunked, b"Auth-Sidecar-Hop: ID", b"Authorization: Bearer " + TOKEN.encode()]


def compared(head: list[bytes], client: Client) -> list[bytes]:
    """Return a head as it is compared: the sidecar's random id made plain, and what only *client* itself changes."""
    lines = [HOP.sub(b"Auth-Sidecar-Hop: ID", line) for line in head]
    return [re.sub(b"^Host:", b"host:", line) for line in lines] if client.respells_host else lines


@pytest.mark.parametrize(("name", "scheme", "stale"), RUNS)
def test_client_sends_and_sees_the_same_as_without(
    stage: Stage, outputs: Path, name: str, scheme: str, stale: bool
) -> None:
    """Request and answer are equal to a direct authenticated call but for the closed list; no client gets a token."""
    client = CLIENTS[name]
    environ = {"AUTH": client.auth.format(STALE)} if stale else {}
    folder = outputs / "clients" / f"{name}-{scheme}-{'stale' if stale else 'none'}"
    folder.mkdir(parents=True)

    direct = stage.direct(name, scheme)
    run = stage.under_exec(name, scheme, environ, folder)

    assert len(direct.seen) == client.requests
    host = f"{client.host}:{stage.upstream.port}"
    expected = [compared(sent_on(seen, host), client) for seen in direct.seen]
    assert [compared([seen.line, *seen.fields], client) for seen in run.seen] == expected
    assert [seen.body for seen in run.seen] == [seen.body for seen in direct.seen]
    assert shown(run.stdout) == shown(direct.stdout)
    assert leaks(folder) == []


HABITS = {
    "a netrc file": "curl --netrc-file {folder}/netrc {url}/json",
    "a netrc file of requests": "NETRC={folder}/netrc python -c 'import requests; requests.get(\"{url}/json\")'",
    "user and password": "curl --user old:stale {url}/json",
    "a password in the URL": "curl https://old:stale@localhost:{port}/json",
    "a token in the query": "curl '{url}/json?access_token=stale'",
    "an API key": "curl --header 'X-Api-Key: stale' {url}/json",
    "no check of certificates": "curl --insecure {url}/json",
    "no check, requests": "python -W ignore -c 'import requests; requests.get(\"{url}/json\", verify=False)'",
    "a NO_PROXY that hides the upstream": "curl {url}/json",
}


def test_habits_of_old_scripts_do_no_harm(stage: Stage, outputs: Path) -> None:
    """Whatever credential a script finds by itself, the upstream gets one, ours; certificates may go unchecked."""
    (stage.folder / "netrc").write_text("machine localhost login old password stale\n")
    port = stage.upstream.port
    places = {"folder": stage.folder, "url": f"https://localhost:{port}", "port": port}
    lines = [command.format(**places) + " >/dev/null 2>&1 || exit" for command in HABITS.values()]
    stage.upstream.seen.clear()

    done = subprocess.run(
        [*stage.exec_command, "sh", "-c", "\n".join(lines)],
        env=stage.environ
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "NO_PROXY": "*"},
        capture_output=True,
        timeout=100,
        check=False,
    )

    heads = [seen.head for seen in stage.upstream.seen]
    assert done.returncode == 0, list(HABITS)[len(heads)]
    assert len(heads) == len(HABITS)
    assert [head for head in heads if b"stale" in head] == []
    assert [seen.values(b"Authorization") for seen in stage.upstream.seen] == [[b"Bearer " + TOKEN.encode()]] * len(
        heads
    )
