"""What can be told of this machine alone: secrets, state directory, proxy variables. Nothing is sent."""

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sidecar.ca.bundle import certificates
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.run.doctor.check import Check, Row, failed, passed, warned
from sidecar.run.exec.no_proxy import entries, is_loopback, without_upstreams
from sidecar.run.exec.variables import CA_VARIABLES
from sidecar.run.state import prepare
from sidecar.run.systems import hosts_of
from sidecar.settings import HostPort, SecretReference, Settings, prime, secret_references

_MOST = 4 << 20
"""Bytes of a file of certificates that are looked at."""
_READABLE = "put a value where it is read from, or change where that is; the user that runs the sidecar must read it"


async def secrets(settings: Settings, seconds: float) -> tuple[Check, ...]:
    """Read every secret: a line for each that cannot be read, with its key path; what a program waits for is one."""
    wanted = dict(secret_references(settings))
    late: list[str] = []
    try:
        async with asyncio.timeout(seconds):
            await prime(wanted.values())
    except TimeoutError:
        late = [path for path, reference in wanted.items() if reference.due]
    broken = tuple(
        failed(Row.SECRETS, f"{path}: {why}", _READABLE, path.split(".")[1] if path.startswith("upstreams.") else None)
        for path, reference in wanted.items()
        if (why := f"not here within {seconds:g} s" if path in late else _unreadable(reference))
    )
    return broken or (passed(Row.SECRETS, f"{len(wanted)} can be read"),)


def _unreadable(reference: SecretReference) -> str:
    try:
        reference.read()
    except ConfigurationError as error:
        return str(error)
    return ""


def state_dir(settings: Settings) -> Check:
    """Write a file without a name into the state directory, which is made if it is not there."""
    place = settings.state_dir
    try:
        prepare(place)
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"probe")
    except (ConfigurationError, OSError) as error:
        why = str(error) if isinstance(error, ConfigurationError) else f"{place}: {error.strerror}"
        return failed(Row.STATE_DIR, why, "make it a directory that this user can write, or set state_dir to one")
    return passed(Row.STATE_DIR, f"{place} can be written")


def proxy(
    settings: Settings, environ: Mapping[str, str], running: Mapping[str, str], clock: Clock
) -> tuple[Check, ...]:
    """Look at the caller's proxy variables; *running*: the addresses of the sidecar that runs, empty for none."""
    found = (*_hidden(settings, environ, clock), *_another(settings, environ, running))
    return found or (passed(Row.PROXY, "no proxy variable stands in the way"),)


def _hidden(settings: Settings, environ: Mapping[str, str], clock: Clock) -> Iterator[Check]:
    given = entries(environ.get(name) for name in ("NO_PROXY", "no_proxy"))
    every = hosts_of(settings, clock)
    for host in dict.fromkeys(host for host, _ in every):
        kept = [without_upstreams(given, [each]) for each in every if each[0] == host]
        if hiding := [entry for entry in given if any(entry not in each for each in kept)]:
            yield warned(
                Row.PROXY,
                f"NO_PROXY has {', '.join(hiding)}: clients go to {host} past the sidecar, without a credential",
                "take that out of NO_PROXY, or start scripts by auth-sidecar exec, which does",
            )


def _another(settings: Settings, environ: Mapping[str, str], running: Mapping[str, str]) -> Iterator[Check]:
    schemes = {upstream.origin.scheme for upstream in settings.upstreams.values()}
    seen = set()
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        scheme, value = name.lower().partition("_")[0], environ.get(name, "")
        address = _address(value)
        if not address or address in seen or not (scheme in schemes or scheme == "all"):
            continue
        if address not in _own(settings, running):
            seen.add(address)
            yield warned(
                Row.PROXY,
                f"{name} names {address[0]}:{address[1]}, which is not this sidecar; upstreams are reached directly",
                "see that this machine may go there directly; to scripts give the variables of auth-sidecar env",
            )


def ca(settings: Settings, environ: Mapping[str, str], running: Mapping[str, str]) -> Check | None:
    """Look at the caller's certificate variables where its proxy variables lead here; None where they do not."""
    led = [_address(environ.get(name, "")) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")]
    roots = certificates(_content(str(settings.state_dir / "ca" / "roots.pem")))
    if not roots or not any(address in _own(settings, running) for address in led if address):
        return None
    named = {name: path for name in CA_VARIABLES if (path := environ.get(name))}
    strange = [name for name, path in named.items() if not set(roots) & set(certificates(_content(path)))]
    remedy = "set them by auth-sidecar env, or start scripts by auth-sidecar exec"
    if strange:
        what = f"{', '.join(strange)}: without the sidecar's authority, so that clients refuse its certificates"
        return warned(Row.CA, what, remedy)
    if not named:
        return warned(Row.CA, "the proxy variables lead here, and no variable names the sidecar's authority", remedy)
    return passed(Row.CA, f"{', '.join(named)}: with the sidecar's authority")


def _content(path: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(_MOST)
    except (OSError, ValueError):
        return b""


def _address(url: str) -> tuple[str, int] | None:
    """Return host and port of a proxy's URL, None for none; a password in it is not looked at."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        return "what is no URL", 0
    return (("localhost" if is_loopback(host) else host), port) if host else None


def _own(settings: Settings, running: Mapping[str, str]) -> set[tuple[str, int]]:
    configured = [str(address) for _, address in settings.served.values() if isinstance(address, HostPort)]
    return {address for each in (*configured, *running.values()) if (address := _address(f"http://{each}"))}
