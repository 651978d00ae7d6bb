"""The client side of TLS, to upstreams and issuers: whom we trust, and the certificate we show."""

import asyncio
import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

import certifi

from sidecar.errors import ConfigurationError
from sidecar.secret import Secret
from sidecar.settings import Tls

_MAX_FILE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the files of the TLS settings hold now; equal material makes an equal context."""

    ca: str | None = None
    client_cert: str | None = None
    client_key: Secret | None = None


def read_material(tls: Tls) -> Material:
    """Read the files anew, so that a rotated certificate takes effect; ConfigurationError names what fails."""
    return Material(
        ca=read_pem("tls.ca", tls.ca),
        client_cert=read_pem("tls.client_cert", tls.client_cert),
        client_key=tls.client_key.read() if tls.client_key else None,
    )


def read_pem(key: str, path: Path | None) -> str | None:
    """Return the text of a PEM file, None for no path; comments in it may lose what is not ASCII."""
    if path is None:
        return None
    try:
        with path.expanduser().open("rb") as stream:
            return stream.read(_MAX_FILE).decode("ascii", "ignore")
    except OSError as error:
        raise ConfigurationError(f"{key} {path} cannot be read: {error.strerror}; expected a PEM file") from None


def client_context(material: Material) -> ssl.SSLContext:
    """Return a context that verifies against the public roots and *material*'s own, TLS 1.2 at least.

    It takes tens of milliseconds and 0.7 MB: keep it while the material stays the same, make it off the loop.
    Raises ConfigurationError when a certificate or the key cannot be used.
    """
    # Not ssl.create_default_context: it obeys SSLKEYLOGFILE, which writes the session keys to a file.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # `ca` may hold an intermediate alone
    context.load_verify_locations(cafile=certifi.where())
    try:
        if material.ca is not None:
            context.load_verify_locations(cadata=material.ca)
    except (ssl.SSLError, ValueError):
        raise ConfigurationError("tls.ca holds no certificate that can be read; expected PEM") from None
    if material.client_cert is not None and material.client_key is not None:
        with _as_file(Secret(f"{material.client_cert}\n{material.client_key.reveal()}")) as path:
            _load_client_certificate(context, path)
    return context


class Contexts:
    """The contexts for HTTP of this process: equal material has one, as each holds its own copy of the public roots.

    They offer HTTP/1.1 alone (RFC 7301). One that nobody holds any more is gone.
    """

    def __init__(self) -> None:
        self._made: WeakValueDictionary[Material, ssl.SSLContext] = WeakValueDictionary()
        self._making = asyncio.Lock()

    async def of(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for what the files of *tls* hold now; asked for at once, it is made once.

        Raises ConfigurationError for a file that cannot be read or used.
        """
        material = await asyncio.to_thread(read_material, tls)
        async with self._making:
            context = self._made.get(material)
            if context is None:
                context = await asyncio.to_thread(client_context, material)
                # httpx does this to each context it meets, on every connection.
                context.set_alpn_protocols(["http/1.1"])
                self._made[material] = context
        return context


def _load_client_certificate(context: ssl.SSLContext, path: str) -> None:
    try:
        # A password is given so that OpenSSL does not ask for one on the terminal.
        context.load_cert_chain(path, password="")
    except OSError:  # ssl.SSLError is one
        raise ConfigurationError(
            "tls.client_cert and tls.client_key cannot be used; expected PEM, a key that fits and is not encrypted"
        ) from None


@contextmanager
def _as_file(content: Secret) -> Iterator[str]:
    """Give a path to *content* for OpenSSL, which reads keys from files only.

    On Linux the file exists in memory alone and has no name; elsewhere it is a 0600 file, gone at the end.
    """
    if sys.platform == "linux":
        stream: IO[bytes] = os.fdopen(os.memfd_create("client-key"), "wb")
        path = f"/proc/self/fd/{stream.fileno()}"
    else:
        stream = tempfile.NamedTemporaryFile()  # noqa: SIM115  closed by the `with` below
        path = stream.name
    with stream:
        stream.write(content.reveal().encode())
        stream.flush()
        yield path
