"""Real clients trust what we issue, and refuse whatever else the keys on disk can sign.

Every forged chain has a twin from an authority without constraints, which the same clients trust. The twin is
accepted where the client looks at such a name at all, so a refusal of the other is due to the constraints.
"""

import base64
import contextlib
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from sidecar.ca.bundle import TRUSTSTORE_PASSWORD, certificates, java_truststore
from sidecar.ca.trust import Trust
from sidecar.clock import SystemClock

NAME, ADDRESS, ADDRESS6 = "evil.example.net", "203.0.113.7", "2001:db8::7"
HOSTS = {
    "names": frozenset({"localhost", "plm.example.com"}),
    "address": frozenset({"127.0.0.1"}),
    "address6": frozenset({"::1"}),
    "both": frozenset({"localhost", "127.0.0.1", "::1"}),
    "neither": frozenset({"plm.example.com"}),
}
CLIENTS = ("python", "curl", "node", "java")

NODE = """
const fs = require("fs"), net = require("net"), tls = require("tls");
const [file, ca] = process.argv.slice(1);
const cases = JSON.parse(fs.readFileSync(file)), results = {};
const next = () => {
    const one = cases.shift();
    if (!one) return console.log(JSON.stringify(results));
    const options = {host: one.host, ca: fs.readFileSync(ca), timeout: 10000};
    if (!net.isIP(one.host)) options.servername = one.host;
    options.socket = net.connect(one.port, "127.0.0.1");
    const done = (result) => { results[one.name] ??= result; socket.destroy(); };
    const socket = tls.connect(options, () => done("ok"));
    socket.on("error", (error) => done(error.code + " " + error.message));
    socket.on("timeout", () => done("timeout"));
    socket.on("close", () => { done("closed"); next(); });
};
next();
"""

JAVA = """
import java.net.Socket;
import java.nio.file.*;
import javax.net.ssl.*;

class Client {
    public static void main(String[] arguments) throws Exception {
        SSLSocketFactory factory = (SSLSocketFactory) SSLSocketFactory.getDefault();
        for (String line : Files.readAllLines(Path.of(arguments[0]))) {
            String[] parts = line.split("\\t");
            String result = "ok";
            Socket plain = new Socket("127.0.0.1", Integer.parseInt(parts[2]));
            plain.setSoTimeout(10000);
            try (SSLSocket socket = (SSLSocket) factory.createSocket(plain, parts[1], 443, true)) {
                SSLParameters parameters = socket.getSSLParameters();
                parameters.setEndpointIdentificationAlgorithm("HTTPS");
                socket.setSSLParameters(parameters);
                socket.startHandshake();
            } catch (Exception error) {
                Throwable cause = error;
                while (cause.getCause() != null) cause = cause.getCause();
                result = cause.toString().replace('\\n', ' ');
            }
            System.out.println(parts[0] + "\\t" + result);
        }
    }
}
"""


@dataclass(frozen=True)
class Signer:
    """A key that can sign, and the certificates that go with it: its own first, the root not among them."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]


@dataclass
class Case:
    """A server on loopback that a client connects to by the name of *host*."""

    name: str
    host: str
    context: SSL.Context
    port: int = 0


@dataclass(frozen=True)
class Forgery:
    """What a leaf claims: alternative names, common name; whether a CA of its own stands between."""

    host: str
    names: tuple[x509.GeneralName, ...] = ()
    common: str | None = None
    between: str | None = None
    convinces: frozenset[str] = frozenset(CLIENTS)
    """The clients that accept it from an authority without constraints."""


def address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


def name(text: str) -> x509.DNSName:
    return x509.DNSName(text)


FORGERIES = {
    "name": Forgery(NAME, (name(NAME),)),
    "name-and-subject": Forgery(NAME, (name(NAME),), common=NAME),
    "wildcard": Forgery(NAME, (name("*.example.net"),)),
    "common-name": Forgery(NAME, common=NAME),
    "common-name-wildcard": Forgery(NAME, common="*.example.net"),
    "common-name-beside-mail": Forgery(NAME, (x509.RFC822Name("a@example.com"),), common=NAME),
    "address": Forgery(ADDRESS, (address(ADDRESS),)),
    "address6": Forgery(ADDRESS6, (address(ADDRESS6),)),
    "address-as-common-name": Forgery(ADDRESS, common=ADDRESS, convinces=frozenset({"curl"})),
    "address-as-name": Forgery(ADDRESS, (name(ADDRESS),), convinces=frozenset()),
    "authority-between": Forgery(NAME, (name(NAME),), between="fresh"),
    "authority-between-for-an-address": Forgery(ADDRESS, (address(ADDRESS),), between="fresh"),
    "authority-between-common-name": Forgery(NAME, common=NAME, between="fresh"),
    "authority-between-for-a-host-of-ours": Forgery("plm.example.com", (name("plm.example.com"),), between="fresh"),
    "authority-between-of-the-same-name": Forgery(NAME, (name(NAME),), between="same"),
    "authority-between-of-the-same-name-common-name": Forgery(NAME, common=NAME, between="same"),
}


def sign(
    signer: Signer,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    names: tuple[x509.GeneralName, ...] = (),
    *,
    signs: bool = False,
) -> x509.Certificate:
    """Return a certificate that is right in everything but, perhaps, its names."""
    now = datetime.fromtimestamp(SystemClock().now(), UTC)
    usage = x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False)
    issuer = signer.chain[0].subject if signer.chain else subject
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=signs, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
    )
    if not signs:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not list(subject))
    return builder.sign(signer.key, hashes.SHA256())


def subject_of(common: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def serving(key: ec.EllipticCurvePrivateKey, chain: tuple[x509.Certificate, ...]) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(chain[0])
    context.use_privatekey(key)
    for certificate in chain[1:]:
        context.add_extra_chain_cert(certificate)
    return context


def forge(forgery: Forgery, signer: Signer) -> SSL.Context:
    """Return a server with what *signer* can sign for the forgery."""
    if forgery.between:
        between = new_key()
        subject = signer.chain[0].subject if forgery.between == "same" else subject_of("an authority between")
        signer = Signer(between, (sign(signer, subject, between, signs=True), *signer.chain))
    key = new_key()
    return serving(key, (sign(signer, subject_of(forgery.common), key, forgery.names), *signer.chain))


def unconstrained() -> tuple[bytes, Signer]:
    """Return the root, as PEM, and the intermediate of an authority that may sign anything."""
    root_key, key = new_key(), new_key()
    root = sign(Signer(root_key, ()), subject_of("a root of the test"), root_key, signs=True)
    intermediate = sign(Signer(root_key, (root,)), subject_of("an intermediate of the test"), key, signs=True)
    return root.public_bytes(serialization.Encoding.PEM), Signer(key, (intermediate,))


def signers(directory: Path) -> list[Signer]:
    """Return every private key in any file under *directory*, with the certificates found there that it fits."""
    content = b"\n".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())
    keys = re.findall(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----", content, re.DOTALL)
    known = [x509.load_pem_x509_certificate(pem) for pem in certificates(content) if b"auth-sidecar" in _der(pem)]
    found = []
    for key in (serialization.load_pem_private_key(pem, None) for pem in keys):
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        fitting = [each for each in known if each.public_key() == key.public_key()]
        found += [Signer(key, (each,)) for each in fitting]
        assert fitting, "a key that belongs to nothing"
        assert all(each.subject != each.issuer for each in fitting), "the key of a root was kept"
    return found


def _der(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.split(b"\n")[1:-2]))


def _answer(connection: socket.socket, context: SSL.Context) -> None:
    with connection:
        connection.settimeout(10)
        # pyOpenSSL does not wait on a socket that has a time limit: the bytes go through memory.
        tls = SSL.Connection(context)
        tls.set_accept_state()
        answered = False
        with contextlib.suppress(SSL.Error, OSError):
            while True:
                with contextlib.suppress(SSL.WantReadError):
                    if not answered:
                        tls.do_handshake()
                        if tls.recv(1 << 14):
                            tls.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                            tls.shutdown()
                            answered = True
                with contextlib.suppress(SSL.WantReadError):
                    connection.sendall(tls.bio_read(1 << 16))
                if answered or not (data := connection.recv(1 << 14)):
                    return
                tls.bio_write(data)


@contextlib.contextmanager
def servers(cases: list[Case]) -> Iterator[None]:
    """Serve every case on a port of its own while the context is open."""
    with contextlib.ExitStack() as stack:
        threads = []
        for case in cases:
            listener = socket.create_server(("127.0.0.1", 0))
            case.port = listener.getsockname()[1]

            def accept(listener: socket.socket = listener, context: SSL.Context = case.context) -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    _answer(connection, context)

            threads.append(threading.Thread(target=accept))
            stack.callback(listener.close)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stack.close()
            for thread in threads:
                thread.join(20)


@dataclass
class Anchors:
    """What a client is told to trust, in the two forms."""

    pem: Path
    store: Path
    folder: Path = field(kw_only=True)


Results = dict[str, str]
"""By the name of a case: `ok`, or why the client refused."""


def ask_python(cases: list[Case], anchors: Anchors) -> Results:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(anchors.pem)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    results = {}
    for case in cases:
        with socket.create_connection(("127.0.0.1", case.port), timeout=10) as plain:
            try:
                context.wrap_socket(plain, server_hostname=case.host).close()
                results[case.name] = "ok"
            except ssl.SSLCertVerificationError as error:
                results[case.name] = error.verify_message
    return results


def ask_curl(cases: list[Case], anchors: Anchors) -> Results:
    results = {}
    for case in cases:
        host = f"[{case.host}]" if ":" in case.host else case.host
        command = ["curl", "-qsS", "-m", "10", "--noproxy", "*", "--cacert", str(anchors.pem), "--connect-to"]
        command += [f"{host}:443:127.0.0.1:{case.port}", f"https://{host}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        results[case.name] = done.stdout or done.stderr.strip()
    return results


def ask_node(cases: list[Case], anchors: Anchors) -> Results:
    file = anchors.folder / "cases.json"
    file.write_text(json.dumps([{"name": case.name, "host": case.host, "port": case.port} for case in cases]))
    done = subprocess.run(
        ["node", "-e", NODE, str(file), str(anchors.pem)], capture_output=True, text=True, timeout=60, check=True
    )
    results: Results = json.loads(done.stdout)
    return results


def ask_java(cases: list[Case], anchors: Anchors) -> Results:
    program, file = anchors.folder / "Client.java", anchors.folder / "cases.tsv"
    program.write_text(JAVA)
    file.write_text("".join(f"{case.name}\t{case.host}\t{case.port}\n" for case in cases))
    store = [f"-Djavax.net.ssl.trustStore={anchors.store}"]
    store += [f"-Djavax.net.ssl.trustStorePassword={TRUSTSTORE_PASSWORD}", "-Djavax.net.ssl.trustStoreType=PKCS12"]
    command = ["java", "-XX:TieredStopAtLevel=1", "-Xshare:auto", *store, str(program), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


ASK: dict[str, Callable[[list[Case], Anchors], Results]] = {
    "python": ask_python,
    "curl": ask_curl,
    "node": ask_node,
    "java": ask_java,
}


def need(program: str) -> None:
    if program not in ("python", "node") and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@dataclass
class Forged:
    """All cases: `good/...` of ours, `forged/...` of keys found on disk, `twin/...` without constraints."""

    cases: list[Case]
    anchors: Anchors


def old_and_new(directory: Path, hosts: frozenset[str]) -> Trust:
    """Return a trust that has two authorities on disk: one near its end, and its successor."""

    class Earlier(SystemClock):
        def now(self) -> float:
            return super().now() - 310 * 86400

    Trust(directory, hosts, Earlier(), print).prepare()
    trust = Trust(directory, hosts, SystemClock(), print)
    trust.prepare()
    return trust


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forged]:
    folder = tmp_path_factory.mktemp("forged")
    root, twin = unconstrained()
    roots, cases = [root], []
    for kind, hosts in HOSTS.items():
        trust = old_and_new(folder / kind, hosts)
        roots.append(trust.roots.read_bytes())
        cases += [Case(f"good/{kind}/{host}", host, trust.context(host)) for host in sorted(hosts)]
        keys = signers(folder / kind)
        assert len(keys) == 2
        for number, signer in enumerate(keys):
            prefix = f"forged/{kind}/{number}"
            cases += [Case(f"{prefix}/{what}", each.host, forge(each, signer)) for what, each in FORGERIES.items()]
            # Its own name too, in the form of a host: it is no common name, so nobody compares it.
            own = serving(signer.key, signer.chain)
            shown = [NAME, ADDRESS, *sorted(hosts), signer.chain[0].subject.rfc4514_string()[2:].replace(" ", "-")]
            cases += [Case(f"{prefix}/the-intermediate-as-{host}", host, own) for host in shown]
            if kind == "both":
                beside = Forgery(NAME, (address("127.0.0.1"),), common=NAME)
                cases.append(Case(f"{prefix}/common-name-beside-address", NAME, forge(beside, signer)))
    cases += [Case(f"twin/{what}", each.host, forge(each, twin)) for what, each in FORGERIES.items()]
    pem, store = folder / "anchors.pem", folder / "anchors.p12"
    pem.write_bytes(b"".join(roots))
    store.write_bytes(java_truststore(certificates(b"".join(roots))))
    with servers(cases):
        yield Forged(cases, Anchors(pem, store, folder=folder))


@pytest.mark.parametrize("client", CLIENTS)
def test_what_the_keys_on_disk_sign_for_others_is_refused(client: str, forged: Forged) -> None:
    """Whoever steals the directory can speak for the upstreams, as anybody who has the credential, and for no other."""
    need(client)
    results = ASK[client](forged.cases, forged.anchors)
    assert results.keys() == {case.name for case in forged.cases}
    good = {name: result for name, result in results.items() if name.startswith("good/")}
    assert set(good.values()) == {"ok"}, good
    accepted = {name.split("/")[1] for name, result in results.items() if name.startswith("twin/") and result == "ok"}
    assert accepted == {what for what, forgery in FORGERIES.items() if client in forgery.convinces}
    assert [name for name, result in results.items() if name.startswith("forged/") and result == "ok"] == []


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forged]:
    """Serve hosts of ours, for clients that get the files as they lie on disk."""
    trust = old_and_new(tmp_path_factory.mktemp("trusting") / "ca", HOSTS["both"])
    cases = [Case(f"good/{host}", host, trust.context(host)) for host in sorted(HOSTS["both"])]
    with servers(cases):
        yield Forged(cases, Anchors(trust.bundle, trust.truststore, folder=tmp_path_factory.mktemp("client")))


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_trust_by_the_files_on_disk(client: str, trusting: Forged) -> None:
    """The bundle and the store for Java serve as they are; names, IPv4 and IPv6 addresses."""
    need(client)
    assert ASK[client](trusting.cases, trusting.anchors) == {case.name: "ok" for case in trusting.cases}


@pytest.mark.parametrize("client", ["python", "java"])
def test_the_files_trust_no_stranger(client: str, trusting: Forged, tmp_path: Path) -> None:
    """A root that is in neither is refused, by a client that accepts the same chain when told to."""
    need(client)
    pem, twin = unconstrained()
    case = Case("stranger", "localhost", forge(Forgery("localhost", (name("localhost"),)), twin))
    with servers([case]):
        assert ASK[client]([case], trusting.anchors)["stranger"] != "ok"
        for path in (tmp_path / "pem", tmp_path / "store"):
            path.write_bytes(pem)
        (tmp_path / "store").write_bytes(java_truststore([pem]))
        alone = Anchors(tmp_path / "pem", tmp_path / "store", folder=tmp_path)
        assert ASK[client]([case], alone) == {"stranger": "ok"}


COMMANDS = {
    "wget": ["wget", "-q", "-T10", "-t1", "-O-", "--no-config", "--ca-certificate={pem}", "{url}"],
    "node": ["node", "-e", "fetch(process.argv[1]).then((r) => r.text()).then(console.log)", "{url}"],
    "perl": [
        "perl",
        "-MLWP::UserAgent",
        "-e",
        "print LWP::UserAgent->new(timeout => 10)->get($ARGV[0])->content",
        "{url}",
    ],
    "ruby": ["ruby", "-ropen-uri", "-e", "print URI.open(ARGV[0], read_timeout: 10).read", "{url}"],
    "php": ["php", "-d", "openssl.cafile={pem}", "-r", "echo file_get_contents($argv[1]);", "{url}"],
}
"""Clients that connect by the name they are given; each prints the body."""


@pytest.mark.parametrize("client", COMMANDS)
def test_clients_that_cannot_be_sent_elsewhere_refuse_too(client: str, tmp_path: Path) -> None:
    """To an authority that is not for it, this machine itself is a foreign host."""
    need(client)
    root, twin = unconstrained()
    ours = old_and_new(tmp_path / "ours", HOSTS["both"])
    foreign = old_and_new(tmp_path / "foreign", HOSTS["neither"])
    forgeries = {
        "name": Forgery("localhost", (name("localhost"),)),
        "address": Forgery("127.0.0.1", (address("127.0.0.1"),)),
        "common-name": Forgery("localhost", common="localhost"),
        "common-name-beside-mail": Forgery("localhost", (x509.RFC822Name("a@example.com"),), common="localhost"),
        "authority-between": Forgery("localhost", (name("localhost"),), between="same"),
    }
    signer = signers(tmp_path / "foreign")[-1]
    cases = [Case(f"good/{host}", host, ours.context(host)) for host in ("localhost", "127.0.0.1")]
    cases += [Case(f"twin/{what}", each.host, forge(each, twin)) for what, each in forgeries.items()]
    cases += [Case(f"forged/{what}", each.host, forge(each, signer)) for what, each in forgeries.items()]
    pem = tmp_path / "anchors.pem"
    pem.write_bytes(ours.roots.read_bytes() + foreign.roots.read_bytes() + root)
    environment = dict.fromkeys(("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PERL_LWP_SSL_CA_FILE"), str(pem))
    results = {}
    with servers(cases):
        for case in cases:
            url = f"https://{case.host}:{case.port}/"
            command = [part.format(pem=pem, url=url) if part[-1] == "}" else part for part in COMMANDS[client]]
            done = subprocess.run(
                command, env=os.environ | environment, capture_output=True, text=True, timeout=30, check=False
            )
            results[case.name] = done.stdout.strip()
    accepted = {case for case, result in results.items() if result == "ok"}
    # Not every client reads a common name.
    assert {case for case in accepted if "common-name" not in case} == {
        *("good/localhost", "good/127.0.0.1", "twin/name", "twin/address", "twin/authority-between")
    }
    assert [case for case in accepted if case.startswith("forged/")] == []
