"""The local certificate authority, over bytes: it can speak for the hosts it was made for, and for nobody else.

A root that nobody can sign with again, under it an intermediate whose name constraints list the hosts, under that
leaves for a day. The constraints stand in the intermediate because Java ignores those of a trust anchor.
It knows no file and no clock; `now` is handed in, in seconds since the epoch.
"""

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from sidecar.policy.hosts import normal_host

ServerContext = SSL.Context

_LIFE = timedelta(days=365)
_LEAF_LIFE = timedelta(days=1)
_SKEW = timedelta(hours=1)
"""How far a client's clock may be behind ours."""
_NO_NAME = x509.DNSName("nobody.invalid")
_NO_ADDRESS = tuple(x509.IPAddress(ipaddress.ip_network(nobody)) for nobody in ("192.0.2.0", "100::"))
"""Permitted where no host of ours is: never anybody's (RFC 6761, RFC 5737, RFC 6666)."""
_EVERY_ADDRESS = tuple(x509.IPAddress(ipaddress.ip_network(every)) for every in ("0.0.0.0/0", "::/0"))
_FOR_SERVERS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_EVERY_SUBJECT = x509.DirectoryName(x509.Name([]))
"""The empty name stands for all that begin with it. Clients compare the common name of a leaf that has no
alternative name, and Java checks it against no constraint of DNS names."""
_PEM = serialization.Encoding.PEM
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class Authority:
    """What leaves are issued from; the key of the root exists no more."""

    root: x509.Certificate
    intermediate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def constraints(self) -> x509.NameConstraints:
        """What the intermediate permits."""
        return self.intermediate.extensions.get_extension_for_class(x509.NameConstraints).value

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts it may speak for: names in lower case, addresses in their short form."""
        names = set(self.constraints.permitted_subtrees or ()) - {_NO_NAME, *_NO_ADDRESS}
        return frozenset(str(n.value).removesuffix("/32").removesuffix("/128") for n in names)

    def covers(self, hosts: frozenset[str]) -> bool:
        """Tell whether it may speak for exactly *hosts*: one that may for more is as wrong as one for less."""
        return self.hosts == hosts

    @property
    def begins_at(self) -> float:
        """When it becomes valid, in seconds since the epoch."""
        return self.intermediate.not_valid_before_utc.timestamp()

    @property
    def expires_at(self) -> float:
        """When it ends, in seconds since the epoch."""
        return self.intermediate.not_valid_after_utc.timestamp()

    @property
    def root_pem(self) -> bytes:
        """What a client must trust."""
        return self.root.public_bytes(_PEM)


def new_authority(hosts: frozenset[str], now: float) -> Authority:
    """Return a fresh authority for *hosts*, valid for 365 days from an hour ago; for no host, it permits none.

    A name permits the names under it too (RFC 5280 section 4.2.1.10). ValueError for a host not in its normal form.
    """
    begins = datetime.fromtimestamp(int(now), UTC) - _SKEW
    mark = f"{begins:%Y-%m-%d} {secrets.token_hex(4)}"
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    # No common name in the intermediate: shown as a leaf, it would have a name that some clients compare.
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"auth-sidecar local root {mark}")])
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"auth-sidecar local intermediate {mark}")])
    root = _certificate(root_name, root_key.public_key(), root_name, root_key.public_key(), begins, 1)
    intermediate = (
        _certificate(name, key.public_key(), root_name, root_key.public_key(), begins, 0)
        .add_extension(_FOR_SERVERS, critical=False)
        .add_extension(_constraints(hosts), critical=True)
    )
    return Authority(root.sign(root_key, SHA256()), intermediate.sign(root_key, SHA256()), key)


def encode(authority: Authority) -> bytes:
    """Return *authority* as PEM: key, intermediate, root. This is a secret."""
    return _key_pem(authority.key) + authority.intermediate.public_bytes(_PEM) + authority.root_pem


def decode(pem: bytes) -> Authority:
    """Return what `encode` gave; ValueError, which shows nothing of *pem*, for anything else or parts that do not fit.

    Signatures are checked, so that one bit turned in a certificate is found too.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
        intermediate, root = x509.load_pem_x509_certificates(pem)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == intermediate.public_key():
            root.verify_directly_issued_by(root)
            intermediate.verify_directly_issued_by(root)
            authority = Authority(root, intermediate, key)
            if _constraints(authority.hosts) == authority.constraints:
                return authority
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        pass
    raise ValueError("not a certificate authority of ours")


def server_context(authority: Authority, host: str, now: float) -> ServerContext:
    """Return the server side of TLS for *host*, with a leaf of its own that is valid for 24 hours from an hour ago.

    The leaf has no subject, as the authority permits none. Offered protocols: HTTP/1.1 is chosen, else none.
    ValueError for a host that is not one of the authority's.
    """
    leaf, key = _issue(authority, [host], now)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_cipher_list(_CIPHERS)
    context.use_certificate(leaf)
    context.use_privatekey(key)
    context.add_extra_chain_cert(authority.intermediate)
    context.set_alpn_select_callback(_http1)
    return context


def server_pem(authority: Authority, hosts: Sequence[str], now: float) -> bytes:
    """Return key and chain of such a leaf for all of *hosts*, as the `ssl` module reads them. This is a secret."""
    leaf, key = _issue(authority, hosts, now)
    return _key_pem(key) + leaf.public_bytes(_PEM) + authority.intermediate.public_bytes(_PEM)


def _issue(
    authority: Authority, hosts: Sequence[str], now: float
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if not authority.hosts.issuperset(hosts):
        raise ValueError("a host that this authority does not speak for")
    key = ec.generate_private_key(ec.SECP256R1())
    begins = datetime.fromtimestamp(int(now), UTC) - _SKEW
    name = authority.intermediate.subject
    leaf = (
        _certificate(x509.Name([]), key.public_key(), name, authority.key.public_key(), begins, None)
        .add_extension(x509.SubjectAlternativeName([_leaf_name(host) for host in hosts]), critical=True)
        .add_extension(_FOR_SERVERS, critical=False)
        .sign(authority.key, SHA256())
    )
    return leaf, key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _constraints(hosts: frozenset[str]) -> x509.NameConstraints:
    permitted: list[x509.GeneralName] = []
    for host in sorted(hosts):
        if normal_host(host) != host:
            raise ValueError("expected a host in its normal form")
        name = _leaf_name(host)
        permitted.append(x509.IPAddress(ipaddress.ip_network(host)) if isinstance(name, x509.IPAddress) else name)
    # A kind of name without a constraint is permitted whole; each version of IP is a kind to GnuTLS. Java compares
    # the bytes of one version with those of the other: excluding all of one makes it refuse hosts of the other.
    versions = {name.value.version for name in permitted if isinstance(name, x509.IPAddress)}
    if versions:
        permitted += [nobody for nobody in _NO_ADDRESS if nobody.value.version not in versions]
    if not any(isinstance(name, x509.DNSName) for name in permitted):
        permitted.append(_NO_NAME)
    # GnuTLS reads no further than an empty name: it comes last.
    return x509.NameConstraints(permitted, [*(() if versions else _EVERY_ADDRESS), _EVERY_SUBJECT])


def _leaf_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    begins: datetime,
    path_length: int | None,
) -> x509.CertificateBuilder:
    """Return what all certificates share; without *path_length* that of a leaf."""
    signs = path_length is not None
    usage = x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + (_LIFE if signs else _LEAF_LIFE))
        .add_extension(x509.BasicConstraints(ca=signs, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _http1(_: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS
