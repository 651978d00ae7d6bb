"""The local certificate authority: what its certificates say, what it issues, and what it refuses to."""

import base64
import datetime as dt
import ipaddress
import re
import ssl
import subprocess
import time
import warnings
from pathlib import Path

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from sidecar.ca.authority import (
    Authority,
    decode,
    encode,
    new_authority,
    server_context,
    server_pem,
)
from sidecar.ca.bundle import TRUSTSTORE_PASSWORD, certificates, java_truststore
from sidecar.clock import SystemClock

NOW = float(int(SystemClock().now()))
DAY = 86400
HOSTS = frozenset({"plm.example.com", "127.0.0.1", "2001:db8::1"})
EVERY_ADDRESS = {"0.0.0.0/0", "::/0"}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority(HOSTS, NOW)


def extension[T: x509.ExtensionType](certificate: x509.Certificate, kind: type[T]) -> tuple[bool, T]:
    found = certificate.extensions.get_extension_for_class(kind)
    return found.critical, found.value


def constraints(hosts: frozenset[str]) -> tuple[set[str], set[str]]:
    """Return what an authority for *hosts* permits and what it excludes; an empty subject shows as `<Name()>`."""
    critical, value = extension(new_authority(hosts, NOW).intermediate, x509.NameConstraints)
    assert critical
    permitted, excluded = value.permitted_subtrees or (), value.excluded_subtrees or ()
    assert str(excluded[-1].value) == "<Name()>", "GnuTLS reads no further than an empty name"
    return {str(name.value) for name in permitted}, {str(name.value) for name in excluded}


class Connected:
    """A TLS connection in memory, after its handshake: the client is Python's own, with strict checks."""

    def __init__(
        self,
        context: SSL.Context,
        host: str,
        root: bytes,
        *,
        protocols: tuple[str, ...] = (),
        maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
        ciphers: str = "DEFAULT",
    ) -> None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT
        trusting.load_verify_locations(cadata=root.decode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            trusting.minimum_version = ssl.TLSVersion.TLSv1
            trusting.maximum_version = maximum
        trusting.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        if protocols:
            trusting.set_alpn_protocols(list(protocols))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trusting.wrap_bio(incoming, outgoing, server_hostname=host)
        self.server = SSL.Connection(context)
        self.server.set_accept_state()
        for _ in range(8):
            done = self._step(self.client.do_handshake, ssl.SSLWantReadError)
            if data := outgoing.read():
                self.server.bio_write(data)
            done = self._step(self.server.do_handshake, SSL.WantReadError) and done
            try:
                incoming.write(self.server.bio_read(1 << 16))
            except SSL.WantReadError:
                if done:
                    return
        raise AssertionError("no handshake")

    @staticmethod
    def _step(handshake: object, waiting: type[Exception]) -> bool:
        assert callable(handshake)
        try:
            handshake()
        except waiting:
            return False
        return True

    @property
    def chain(self) -> list[x509.Certificate]:
        """What the server sent, the leaf first."""
        leaf = self.server.get_certificate(as_cryptography=True)
        assert leaf is not None
        ders = self.client._sslobj.get_unverified_chain()
        sent = [x509.load_der_x509_certificate(each.public_bytes(2)) for each in ders]  # 2: DER
        assert sent[0] == leaf
        return sent


@pytest.mark.parametrize("life", [0, 1800, 365 * DAY - 3700])
def test_root_and_intermediate_live_for_a_year_from_an_hour_ago(life: int) -> None:
    """A client whose clock is a little behind accepts them at once."""
    authority = new_authority(HOSTS, NOW + life)
    assert authority.begins_at == int(NOW + life) - 3600
    assert authority.expires_at == authority.begins_at + 365 * DAY
    assert authority.root.not_valid_before_utc == authority.intermediate.not_valid_before_utc
    assert authority.root.not_valid_after_utc == authority.intermediate.not_valid_after_utc


def test_the_root_says_what_it_is() -> None:
    """Whoever meets it in a list of certificates can tell whose it is and when it was made; no two have one name."""
    names = {new_authority(HOSTS, 1795000000.5).root.subject.rfc4514_string() for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("CN=auth-sidecar local root 2026-11-18 ") for name in names)


def test_the_root_has_what_strict_clients_ask_for(authority: Authority) -> None:
    """Python 3.13 refuses an authority without key usage and key identifiers."""
    root = authority.root
    assert extension(root, x509.BasicConstraints) == (True, x509.BasicConstraints(ca=True, path_length=1))
    critical, usage = extension(root, x509.KeyUsage)
    assert (critical, usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, True, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    assert extension(root, x509.SubjectKeyIdentifier) == (False, identifier)


def test_the_intermediate_signs_leaves_of_servers_only(authority: Authority) -> None:
    """It can make no other authority, and no certificate for mail or code."""
    intermediate = authority.intermediate
    assert extension(intermediate, x509.BasicConstraints) == (True, x509.BasicConstraints(ca=True, path_length=0))
    critical, usage = extension(intermediate, x509.KeyUsage)
    assert (critical, usage.key_cert_sign, usage.digital_signature) == (True, True, False)
    assert list(extension(intermediate, x509.ExtendedKeyUsage)[1]) == [ExtendedKeyUsageOID.SERVER_AUTH]
    identifier = extension(intermediate, x509.AuthorityKeyIdentifier)[1].key_identifier
    assert identifier == extension(authority.root, x509.SubjectKeyIdentifier)[1].digest
    intermediate.verify_directly_issued_by(authority.root)


def test_the_intermediate_has_no_common_name(authority: Authority) -> None:
    """Shown as a leaf it speaks for no name."""
    assert authority.intermediate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME) == []
    assert authority.intermediate.subject.rfc4514_string().startswith("O=auth-sidecar local intermediate ")


def test_the_key_of_the_root_is_gone(authority: Authority) -> None:
    """What is kept cannot make another intermediate: its key is not the root's."""
    pem = encode(authority)
    assert pem.count(b"PRIVATE KEY-----") == 2
    key = serialization.load_pem_private_key(pem, None)
    assert key.public_key() == authority.intermediate.public_key()
    assert key.public_key() != authority.root.public_key()


@pytest.mark.parametrize(
    ("hosts", "permitted", "excluded"),
    [
        ({"a.example", "b.example"}, {"a.example", "b.example"}, EVERY_ADDRESS),
        ({"10.0.0.1"}, {"nobody.invalid", "10.0.0.1/32", "100::/128"}, set()),
        ({"2001:db8::1"}, {"nobody.invalid", "192.0.2.0/32", "2001:db8::1/128"}, set()),
        ({"10.0.0.1", "::1"}, {"nobody.invalid", "10.0.0.1/32", "::1/128"}, set()),
        ({"a.example", "10.0.0.1"}, {"a.example", "10.0.0.1/32", "100::/128"}, set()),
        (set(), {"nobody.invalid"}, EVERY_ADDRESS),
    ],
)
def test_each_kind_of_name_is_constrained(hosts: set[str], permitted: set[str], excluded: set[str]) -> None:
    """Of each kind the hosts are permitted; of a kind without a host, nobody. Subjects that say anything never are."""
    assert constraints(frozenset(hosts)) == (permitted, excluded | {"<Name()>"})


@pytest.mark.parametrize("host", ["Plm.Example.com", "a.example.", "*.example.com", "a b", "", "[::1]", "10.0.0.0/8"])
def test_a_host_has_its_normal_form(host: str) -> None:
    """Two spellings of one host would be two hosts; a pattern or a range would be many."""
    with pytest.raises(ValueError, match=r"host|hex digits"):
        new_authority(frozenset({host}), NOW)


def test_an_authority_covers_its_hosts_and_no_others(authority: Authority) -> None:
    """One that may speak for more is as unfit as one that may for less."""
    assert authority.hosts == HOSTS
    assert authority.covers(HOSTS)
    assert not authority.covers(HOSTS - {"127.0.0.1"})
    assert not authority.covers(HOSTS | {"other.example.com"})
    assert new_authority(frozenset(), NOW).covers(frozenset())


def test_an_authority_is_read_back_whole(authority: Authority) -> None:
    """What comes from a file issues as the one that was written."""
    again = decode(encode(authority))
    assert (again.root, again.intermediate) == (authority.root, authority.intermediate)
    assert encode(again) == encode(authority)
    Connected(server_context(again, "127.0.0.1", NOW), "127.0.0.1", authority.root_pem)


def blocks(pem: bytes) -> list[bytes]:
    return re.findall(rb"-----BEGIN.+?-----END [A-Z ]+-----\n", pem, re.DOTALL)


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> bytes:
    none = serialization.NoEncryption()
    how = serialization.BestAvailableEncryption(password) if password else none
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def foreign(
    constraints: x509.NameConstraints | None, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None
) -> bytes:
    """Return key, intermediate and root of somebody else's authority, with the given constraints."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    key = key or ec.generate_private_key(ec.SECP256R1())
    names = [x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)]) for name in ("root", "next")]
    begins = dt.datetime.fromtimestamp(NOW, dt.UTC)
    pems = []
    for name, each in zip(names, (root_key, key), strict=True):
        builder = (
            x509.CertificateBuilder(names[0], name, each.public_key(), x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + dt.timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        )
        if each is key and constraints:
            builder = builder.add_extension(constraints, critical=True)
        pems.append(builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return pem_of(key) + pems[1] + pems[0]


EVERY_SUBJECT = x509.DirectoryName(x509.Name([]))
OURS = x509.NameConstraints(
    [x509.DNSName("a.example")],
    [*(x509.IPAddress(ipaddress.ip_network(every)) for every in ("0.0.0.0/0", "::/0")), EVERY_SUBJECT],
)


def damaged() -> dict[str, bytes]:
    authority = new_authority(HOSTS, NOW)
    pem = encode(authority)
    key, intermediate, root = blocks(pem)
    other = blocks(encode(new_authority(HOSTS, NOW)))
    rsa_key = rsa.generate_private_key(65537, 2048)
    name = x509.DNSName("a.example")
    network = x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))
    curve = base64.b64encode(base64.b64decode(b"".join(key.splitlines()[1:-1])).replace(CURVE, CURVE[:-1] + b"\x7f"))
    signature = root.splitlines(keepends=True)[-2]
    return {
        "nothing": b"",
        "noise": b"\xff\x00" * 50,
        "cut": pem[: len(pem) // 2],
        "no-root": key + intermediate,
        "no-key": intermediate + root,
        "turned-round": key + root + intermediate,
        "one-more": pem + root,
        "another-key": other[0] + intermediate + root,
        "another-root": key + intermediate + other[2],
        "rsa-key": pem_of(rsa_key) + intermediate + root,
        "rsa-authority": foreign(OURS, rsa_key),
        "encrypted-key": pem_of(authority.key, b"password") + intermediate + root,
        "key-of-an-unknown-curve": b"-----BEGIN PRIVATE KEY-----\n" + curve + b"\n-----END PRIVATE KEY-----\n" + root,
        "a-character-of-the-key": pem.replace(key[60:64], b"****", 1),
        "a-character-of-the-intermediate": pem.replace(intermediate[300:304], b"AAAA", 1),
        "a-character-of-the-signature": pem.replace(signature, b"AAAA" + signature[4:], 1),
        "without-constraints": foreign(None),
        "excludes-nothing": foreign(x509.NameConstraints([name], None)),
        "permits-a-network": foreign(x509.NameConstraints([name, network], [EVERY_SUBJECT])),
        "permits-a-mailbox": foreign(x509.NameConstraints([x509.RFC822Name("a.example")], None)),
    }


CURVE = bytes.fromhex("2a8648ce3d030107")  # the identifier of P-256


def test_what_is_refused_below_is_refused_for_its_fault() -> None:
    """An authority that somebody else made is taken when all of it is as we would make it."""
    assert decode(foreign(OURS)).hosts == {"a.example"}


@pytest.mark.parametrize("how", damaged().keys())
def test_what_is_no_authority_of_ours_is_refused(how: str) -> None:
    """Damaged, mixed up, or with other constraints than we write: never used, and the error shows nothing of it."""
    with pytest.raises(ValueError, match=r"\Anot a certificate authority of ours\Z") as caught:
        decode(damaged()[how])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_a_strict_client_accepts_the_leaf(host: str, authority: Authority) -> None:
    """Name, IPv4 and IPv6 address: Python with all its checks on connects, over TLS 1.3."""
    connected = Connected(server_context(authority, host, NOW), host, authority.root_pem)
    assert connected.client.version() == "TLSv1.3"


def test_a_leaf_names_its_host_and_nothing_else(authority: Authority) -> None:
    """No subject, one critical alternative name, for servers only, for a day from an hour ago, with its own key."""
    connected = [Connected(server_context(authority, host, NOW + 0.7), host, authority.root_pem) for host in HOSTS]
    for host, (leaf, _) in zip(HOSTS, (each.chain for each in connected), strict=True):
        critical, names = extension(leaf, x509.SubjectAlternativeName)
        assert critical
        assert [str(name.value) for name in names] == [host]
        assert list(leaf.subject) == []
        assert leaf.not_valid_before_utc.timestamp() == int(NOW) - 3600
        assert leaf.not_valid_after_utc.timestamp() == int(NOW) - 3600 + DAY
        assert extension(leaf, x509.BasicConstraints) == (True, x509.BasicConstraints(ca=False, path_length=None))
        critical, usage = extension(leaf, x509.KeyUsage)
        assert (critical, usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, True, False, False)
        assert list(extension(leaf, x509.ExtendedKeyUsage)[1]) == [ExtendedKeyUsageOID.SERVER_AUTH]
        own = x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())
        assert extension(leaf, x509.SubjectKeyIdentifier)[1] == own
        issuer = extension(authority.intermediate, x509.SubjectKeyIdentifier)[1].digest
        assert extension(leaf, x509.AuthorityKeyIdentifier)[1].key_identifier == issuer
        assert leaf.public_key() != authority.intermediate.public_key()
        assert leaf.public_key().curve.name == "secp256r1"
    assert len({each.chain[0].public_key().public_numbers() for each in connected}) == len(HOSTS)


def test_the_intermediate_is_sent_and_the_root_is_not(authority: Authority) -> None:
    """A client has the root already; what it lacks is the intermediate."""
    connected = Connected(server_context(authority, "127.0.0.1", NOW), "127.0.0.1", authority.root_pem)
    assert connected.chain[1:] == [authority.intermediate]


@pytest.mark.parametrize("host", ["other.example.com", "www.plm.example.com", "PLM.example.com", "127.0.0.2", ""])
def test_nothing_is_issued_for_a_foreign_host(host: str, authority: Authority) -> None:
    """Not even for a name under one of ours."""
    with pytest.raises(ValueError, match="does not speak for"):
        server_context(authority, host, NOW)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("h2", "http/1.1"), "http/1.1"), (("http/1.1",), "http/1.1"), (("h2",), None), ((), None)],
)
def test_http_1_is_chosen_when_offered(offered: tuple[str, ...], chosen: str | None, authority: Authority) -> None:
    """A client that offers nothing we speak is not refused: it may still speak HTTP/1.1."""
    context = server_context(authority, "127.0.0.1", NOW)
    connected = Connected(context, "127.0.0.1", authority.root_pem, protocols=offered)
    assert connected.client.selected_alpn_protocol() == chosen


def test_tls_1_2_is_the_oldest(authority: Authority) -> None:
    """With forward secrecy and authenticated encryption; what is older is refused."""
    context = server_context(authority, "127.0.0.1", NOW)
    old = Connected(context, "127.0.0.1", authority.root_pem, maximum=ssl.TLSVersion.TLSv1_2)
    cipher = old.client.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-ECDSA-")
    assert "GCM" in cipher[0]
    with pytest.raises(SSL.Error, match="unsupported protocol"):
        Connected(context, "127.0.0.1", authority.root_pem, maximum=ssl.TLSVersion.TLSv1_1)
    with pytest.raises(SSL.Error, match="no shared cipher"):
        Connected(
            context, "127.0.0.1", authority.root_pem, maximum=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-ECDSA-AES128-SHA"
        )


def test_a_client_cannot_renegotiate(authority: Authority) -> None:
    """Each time would cost a signature, as often as the client likes; compression would give away what is secret."""
    options = server_context(authority, "127.0.0.1", NOW).set_options(0)
    for option in (SSL.OP_NO_RENEGOTIATION, SSL.OP_NO_COMPRESSION, SSL.OP_CIPHER_SERVER_PREFERENCE):
        assert options & option


def test_certificates_are_told_apart_by_content(authority: Authority) -> None:
    """Comments, other line ends and repeated certificates go; what cannot be read would spoil the file for OpenSSL."""
    root, intermediate = authority.root_pem, blocks(encode(authority))[1]
    broken = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    text = b"# a root\n" + root + broken + root.replace(b"\n", b"\r\n") + b"other\n" + intermediate + root
    assert certificates(text) == [root, intermediate]
    assert certificates(encode(authority)) == [intermediate, root]
    assert certificates(b"") == []


def test_a_trust_store_holds_each_certificate_under_a_name_of_its_own(authority: Authority) -> None:
    """Java keeps one certificate per name, and takes only those that are marked as trusted."""
    pems = [authority.root_pem, *certificates(Path(certifi.where()).read_bytes())]
    started = time.process_time()
    store = java_truststore(pems)
    assert time.process_time() - started < 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # a public root of old
        content = pkcs12.load_pkcs12(store, TRUSTSTORE_PASSWORD.encode())
    assert content.key is None
    held = [each.certificate.public_bytes(serialization.Encoding.PEM) for each in content.additional_certs]
    assert held == pems
    assert len({each.friendly_name for each in content.additional_certs}) == len(pems) > 100


def test_a_trust_store_can_be_read_by_old_java(authority: Authority, tmp_path: Path) -> None:
    """Java 8 before update 301 knows no encryption of stores but Triple DES and RC2, and no checksum but SHA-1."""
    (tmp_path / "store").write_bytes(java_truststore([authority.root_pem]))
    command = ["openssl", "pkcs12", "-in", str(tmp_path / "store"), "-info", "-noout", "-passin"]
    shown = subprocess.run([*command, f"pass:{TRUSTSTORE_PASSWORD}"], capture_output=True, text=True, check=True)
    assert "MAC: sha1, Iteration 2048" in shown.stderr
    assert "pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 2048" in shown.stderr


def test_a_trust_store_of_nothing_is_refused() -> None:
    """A client with an empty store would trust nobody, and say so in a way that nobody understands."""
    with pytest.raises(ValueError, match="at least one"):
        java_truststore([])


def test_an_authority_that_is_printed_shows_no_key(authority: Authority) -> None:
    """Its text may end in a log."""
    key = b"".join(blocks(encode(authority))[0].splitlines()[1:-1]).decode()
    assert key[40:80] not in repr(authority)
    assert format(authority.key.private_numbers().private_value, "x") not in repr(authority)


def test_one_leaf_for_several_hosts(authority: Authority, tmp_path: Path) -> None:
    """A server of the `ssl` module takes key and chain from one file, and is known by these names only."""
    (tmp_path / "chain.pem").write_bytes(server_pem(authority, ["plm.example.com", "127.0.0.1"], NOW))
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    server.load_cert_chain(tmp_path / "chain.pem")
    client.load_verify_locations(cadata=authority.root_pem.decode())

    def known(host: str) -> bool:
        pipes = [ssl.MemoryBIO() for _ in range(2)]
        sides = [client.wrap_bio(*pipes, server_hostname=host), server.wrap_bio(*reversed(pipes), server_side=True)]
        for _ in range(3):
            for side in sides:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLCertVerificationError:
                    return False
        return True

    assert [known(host) for host in ("plm.example.com", "127.0.0.1", "2001:db8::1")] == [True, True, False]
    with pytest.raises(ValueError, match="does not speak for"):
        server_pem(authority, ["plm.example.com", "other.example.com"], NOW)
