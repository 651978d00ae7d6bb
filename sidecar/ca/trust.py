"""The local certificate authority on disk: which one is issued from, and the files that clients trust by.

Several processes share the directory. Each takes a lock, looks at the same files and comes to the same choice.
"""

import contextlib
import fcntl
import os
import secrets
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import certifi

from sidecar.ca.authority import (
    Authority,
    ServerContext,
    decode,
    encode,
    new_authority,
    server_context,
)
from sidecar.ca.bundle import certificates, java_truststore
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.events import Emit, Trouble
from sidecar.policy.hosts import normal_host

_DAY = 86400.0
_NEXT = 65 * _DAY
"""So long before its end an authority gets a successor, whose root clients meet from then on."""
_SWITCH = 30 * _DAY
"""So long before its end nothing is issued from an authority any more, while a successor has more time left."""
_REISSUE = _DAY / 2
_SYSTEM_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",  # older RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS, OpenBSD
    "/usr/local/share/certs/ca-root-nss.crt",  # FreeBSD
)


@dataclass(frozen=True, slots=True)
class _Issued:
    context: ServerContext
    at: float


class Trust:
    """Issues for *hosts*, given in their normal form, out of *directory*; never for any other host.

    `prepare` first. Meant for one thread; other processes may do the same in the same directory.
    """

    def __init__(self, directory: Path, hosts: frozenset[str], clock: Clock, emit: Emit) -> None:
        self._directory = directory
        self.hosts = hosts
        self._clock = clock
        self._emit = emit
        self._authority: Authority | None = None
        self._looked_at = 0.0
        self._issued: dict[str, _Issued] = {}

    @property
    def bundle(self) -> Path:
        """The public roots, this machine's own and ours, as PEM: for clients where it replaces the default."""
        return self._directory / "bundle.pem"

    @property
    def roots(self) -> Path:
        """Our roots alone, as PEM: for clients where it adds to the default."""
        return self._directory / "roots.pem"

    @property
    def truststore(self) -> Path:
        """The content of `bundle` for Java."""
        return self._directory / "truststore.p12"

    def prepare(self) -> None:
        """Choose the authority to issue from, make one if none serves, bring the files up to date.

        An authority that permits other hosts than ours, more or less, is not used, only trusted until it
        expires. Processes that start at once agree. Nothing is written when nothing changes. Reports as Trouble
        what cannot be used and when running clients lack the root. Raises ConfigurationError when the directory
        cannot be used.
        """
        now = self._clock.now()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            with _locked(self._directory / "lock"):
                for draft in self._directory.glob(".draft-*"):
                    draft.unlink()
                self._authority, trusted = self._choose(now)
                self._publish(trusted)
        except OSError as error:
            raise ConfigurationError(
                f"{error.filename or self._directory}: {error.strerror}; expected a place for the local certificate"
                " authority that this user owns and can write: mend it, or set state_dir to another"
            ) from None
        self._looked_at = now

    def context(self, host: str) -> ServerContext:
        """Return the server side of TLS for *host*: the same one for 12 hours, then with a new leaf.

        Looks at the directory again when it is 12 hours since; if that fails, it is reported and the authority
        at hand serves on. Raises KeyError for a host that is not ours, ValueError for what is no host.
        """
        name = normal_host(host)
        if name not in self.hosts:
            raise KeyError(name)
        now = self._clock.now()
        issued = self._issued.get(name)
        if issued is None or not _recent(issued.at, now):
            issued = self._issued[name] = _Issued(server_context(self._current(now), name, now), now)
        return issued.context

    def _current(self, now: float) -> Authority:
        if self._authority is None:
            raise RuntimeError("`prepare` comes first")
        if not _recent(self._looked_at, now):
            try:
                self.prepare()
            except ConfigurationError as error:
                self._looked_at = now
                self._emit(Trouble(where="ca", detail=str(error)))
        return self._authority

    def _choose(self, now: float) -> tuple[Authority, list[Authority]]:
        """Return the authority to issue from and all that clients should trust; the expired are deleted."""
        found = {path: self._read(path) for path in sorted(self._directory.glob("authority-*.pem"))}
        for path in [path for path, authority in found.items() if authority and authority.expires_at <= now]:
            path.unlink()
        living = (each for each in found.values() if each and each.expires_at > now)
        trusted = sorted(living, key=lambda each: each.expires_at)
        ours = [each for each in trusted if each.covers(self.hosts) and each.begins_at <= now]
        if not any(each.expires_at - now >= _NEXT for each in ours):
            fresh = new_authority(self.hosts, now)
            _write(self._directory / f"authority-{secrets.token_hex(8)}.pem", encode(fresh))
            if found and not any(each.expires_at - now >= _SWITCH for each in ours):
                detail = "a new root is used at once, as no earlier one serves the configured hosts any more"
                hint = f"restart running clients, or have them read {self.bundle} again"
                self._emit(Trouble(where="ca", detail=f"{detail}: {hint}"))
            ours.append(fresh)
            trusted.append(fresh)
        # The oldest that has enough time left: its root is the one that running clients know.
        return next(each for each in ours if each.expires_at - now >= _SWITCH), trusted

    def _read(self, path: Path) -> Authority | None:
        """Return the authority of a file; None, after a Trouble, when it cannot be used."""
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_mode & 0o077:
                    raise ValueError("others can read it, and may have its key")
                return decode(stream.read())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._emit(Trouble(where="ca", detail=f"{path} is not used: {reason}; remove it"))
            return None

    def _publish(self, trusted: list[Authority]) -> None:
        roots = [each.root_pem for each in trusted]
        pems = certificates(b"\n".join([*roots, *self._public_roots()]))
        bundle = b"".join(pems)
        # The bundle comes last: as long as it is the old one, the trust store is known to be old too.
        if _content(self.bundle) != bundle or not self.truststore.exists():
            _write(self.truststore, java_truststore(pems))
            _write(self.bundle, bundle)
        if _content(self.roots) != b"".join(roots):
            _write(self.roots, b"".join(roots))

    def _public_roots(self) -> Iterator[bytes]:
        # Not `cafile`, which follows the caller's SSL_CERT_FILE: two callers would write the bundle back and forth.
        names = (certifi.where(), ssl.get_default_verify_paths().openssl_cafile, *_SYSTEM_STORES)
        for path in dict.fromkeys(Path(name).resolve() for name in names if name):
            yield _content(path) or b""


def _recent(then: float, now: float) -> bool:
    """Tell whether *then* is less than 12 hours ago; the clock may have been set back."""
    return 0 <= now - then < _REISSUE


def _content(path: Path) -> bytes | None:
    """Return the content of a file, None when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Put a 0600 file in its place: whole, or not at all."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    Path(draft).replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of *path*; another process that holds it is done in milliseconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
