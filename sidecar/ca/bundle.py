"""What clients trust by, as bytes: certificates in PEM, and a trust store for Java."""

import contextlib
import re
import warnings
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.utils import CryptographyDeprecationWarning

TRUSTSTORE_PASSWORD = "changeit"  # noqa: S105  Java's own default; it guards public certificates

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KDF_ROUNDS = 2048
"""Java's own number of old; the password is public."""


def certificates(pem: bytes) -> list[bytes]:
    """Return each certificate in *pem* once, in their order and in one form; what cannot be read is left out."""
    found: dict[bytes, None] = {}
    for block in _CERTIFICATE.findall(pem):
        with contextlib.suppress(ValueError):
            found.setdefault(_load(block).public_bytes(serialization.Encoding.PEM))
    return list(found)


def issuer_of(certificate: bytes) -> str:
    """Return who says to have signed *certificate* (DER), as RFC 4514 writes names; empty for what is none."""
    try:
        return x509.load_der_x509_certificate(certificate).issuer.rfc4514_string()
    except ValueError:
        return ""


def java_truststore(pems: Iterable[bytes]) -> bytes:
    """Return a PKCS#12 store, password `TRUSTSTORE_PASSWORD`, of what `certificates` gave; for Java 8 and later.

    Never twice the same bytes. ValueError for what is no certificate, and for none.
    """
    # The newer algorithms are unknown to Java before 8u301.
    encryption = (
        serialization.PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(_KDF_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
        .hmac_hash(SHA1())  # noqa: S303  a checksum under a public password
        .build(TRUSTSTORE_PASSWORD.encode())
    )
    # Java keeps one certificate per name.
    named = [pkcs12.PKCS12Certificate(_load(pem), b"%d" % number) for number, pem in enumerate(pems)]
    return pkcs12.serialize_java_truststore(named, encryption)


def _load(pem: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        # Public roots of old have serial numbers that are not allowed today.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        return x509.load_pem_x509_certificate(pem)
