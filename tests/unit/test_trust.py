"""The certificate authority on disk: which one is issued from, what clients trust, and who agrees with whom."""

import contextlib
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import certifi
import pytest
from cryptography import x509
from OpenSSL import SSL

from sidecar.ca import trust as trust_module
from sidecar.ca.authority import decode, encode, new_authority
from sidecar.ca.bundle import certificates
from sidecar.ca.trust import Trust
from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError
from sidecar.events import Event, Trouble

DAY = 86400
HOSTS = frozenset({"plm.example.com", "127.0.0.1"})
START = 1_800_000_000.0


class OwnedClock(SystemClock):
    """A clock whose wall time is in the test's hands; whoever makes it sets the start."""

    def __init__(self, now: float = START) -> None:
        self.wall = now

    def now(self) -> float:
        return self.wall


class Place:
    """A directory, a clock and what was reported; processes start in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = OwnedClock()
        self.events: list[Event] = []

    def start(self, hosts: frozenset[str] = HOSTS) -> Trust:
        """Return the trust of a process that starts now."""
        trust = Trust(self.directory, hosts, self.clock, self.events.append)
        trust.prepare()
        return trust

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.glob("authority-*.pem"))

    @property
    def roots(self) -> list[bytes]:
        return certificates((self.directory / "roots.pem").read_bytes())

    @property
    def troubles(self) -> list[str]:
        """Return what was reported since the last time."""
        found = [event.detail for event in self.events if isinstance(event, Trouble) and event.where == "ca"]
        assert len(found) == len(self.events)
        self.events.clear()
        return found

    def content(self) -> dict[str, tuple[int, bytes]]:
        """Return what would change if a file were written anew."""
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in self.directory.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "state" / "ca")


def root_of(trust: Trust, host: str = "127.0.0.1") -> bytes:
    """Return the root that leaves are issued under now, as a client would find it: by the issuer's issuer."""
    trust.context(host)
    assert trust._authority is not None
    return trust._authority.root_pem


def test_the_first_start_makes_an_authority(place: Place) -> None:
    """Without a word: there are no clients yet that could lack the root."""
    trust = place.start()
    assert len(place.files) == 1
    assert place.roots == [root_of(trust)]
    assert decode(place.files[0].read_bytes()).hosts == HOSTS
    assert place.troubles == []


def test_only_the_owner_can_read_and_write(place: Place) -> None:
    """The directory is closed even if it lay open before, and whatever the umask says."""
    place.directory.mkdir(parents=True, mode=0o755)
    before = os.umask(0)
    try:
        place.start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.directory.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_the_names_of_the_files_are_fixed(place: Place) -> None:
    """A program that only reads knows them without this module."""
    trust = place.start()
    assert trust.bundle == place.directory / "bundle.pem"
    assert trust.roots == place.directory / "roots.pem"
    assert trust.truststore == place.directory / "truststore.p12"
    expected = {"bundle.pem", "roots.pem", "truststore.p12", "lock", place.files[0].name}
    assert {path.name for path in place.directory.iterdir()} == expected


def test_a_second_start_changes_nothing(place: Place) -> None:
    """No file is written that would say the same."""
    place.start()
    before = place.content()
    place.clock.wall += 100 * DAY
    place.start()
    assert place.content() == before
    assert place.troubles == []


def test_the_bundle_holds_public_and_own_roots_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces a client's default, so it holds the public ones, those of this machine, and ours."""
    public = certificates(Path(certifi.where()).read_bytes())
    company = new_authority(frozenset({"company.example"}), START).root_pem
    system = tmp_path / "system.pem"
    system.write_bytes(b"the company's root\n" + company + public[0].replace(b"\n", b"\r\n") + company)
    monkeypatch.setattr(trust_module, "_SYSTEM_STORES", (str(system),))
    trust = place.start()
    bundle = trust.bundle.read_bytes()
    assert bundle == b"".join(certificates(bundle))
    assert bundle.startswith(trust.roots.read_bytes())
    assert {*public, company, root_of(trust)} <= set(certificates(bundle))
    ssl.create_default_context(cafile=str(trust.bundle))


def test_the_bundle_is_the_same_for_every_caller(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the environment of one trusts is its own matter; two would write the file back and forth."""
    before = place.start().bundle.read_bytes()
    company = tmp_path / "company.pem"
    company.write_bytes(new_authority(frozenset({"company.example"}), START).root_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(company))

    assert place.start().bundle.read_bytes() == before


def test_a_file_that_is_gone_or_stale_is_written_again(place: Place) -> None:
    """Whoever removed or changed a public file gets it back at the next start."""
    trust = place.start()
    bundle, roots = trust.bundle.read_bytes(), trust.roots.read_bytes()
    trust.truststore.unlink()
    trust.roots.write_bytes(b"")
    place.start()
    assert trust.truststore.stat().st_size > 10_000
    assert trust.roots.read_bytes() == roots
    old = trust.truststore.read_bytes()
    trust.bundle.unlink()
    place.start()
    assert trust.bundle.read_bytes() == bundle
    assert trust.truststore.read_bytes() != old


def test_what_a_killed_process_left_is_removed(place: Place) -> None:
    """A draft may hold a key."""
    place.start()
    (place.directory / ".draft-killed").write_bytes(encode(new_authority(HOSTS, START)))
    place.start()
    assert not (place.directory / ".draft-killed").exists()


def test_the_next_authority_is_known_long_before_it_is_used(place: Place) -> None:
    """Its root is in the bundle 35 days before anything is issued under it, and nobody is troubled."""
    trust = place.start()
    first = root_of(trust)
    end = START - 3600 + 365 * DAY
    place.clock.wall = end - 65 * DAY
    assert root_of(place.start()) == first
    assert place.roots == [first]
    place.clock.wall += 1
    trust = place.start()
    assert root_of(trust) == first
    assert len(place.roots) == 2
    second = place.roots[1]
    assert second in certificates(trust.bundle.read_bytes())
    place.clock.wall = end - 30 * DAY
    assert root_of(place.start()) == first
    place.clock.wall += 1
    assert root_of(place.start()) == second
    assert place.roots == [first, second]
    place.clock.wall = end
    assert root_of(place.start()) == second
    assert place.roots == [second]
    assert len(place.files) == 1
    assert place.troubles == []


def test_a_running_process_changes_over_too(place: Place) -> None:
    """It looks again when it issues a leaf; it need not start again."""
    trust = place.start()
    first = root_of(trust)
    place.clock.wall += 301 * DAY
    assert root_of(trust) == first
    assert len(place.roots) == 2
    place.clock.wall += 35 * DAY
    assert root_of(trust) == place.roots[1] != first
    assert place.troubles == []


def test_a_late_change_is_reported(place: Place) -> None:
    """Nothing ran while the next root should have been handed out: running clients do not know it."""
    first = root_of(place.start())
    place.clock.wall += 340 * DAY
    trust = place.start()
    assert root_of(trust) != first
    assert first in place.roots
    (trouble,) = place.troubles
    assert "a new root is used at once" in trouble
    assert f"restart running clients, or have them read {trust.bundle} again" in trouble
    place.start()
    assert place.troubles == []


def test_a_change_after_the_end_is_reported(place: Place) -> None:
    """The old authority is gone by then, its clients perhaps not."""
    place.start()
    place.clock.wall += 366 * DAY
    place.start()
    assert len(place.files) == 1
    assert "restart running clients" in place.troubles[0]


@pytest.mark.parametrize("hosts", [HOSTS | {"other.example.com"}, HOSTS - {"127.0.0.1"}, frozenset({"x.example"})])
def test_other_hosts_get_another_authority(hosts: frozenset[str], place: Place) -> None:
    """One that permits more than the configuration is not used, as little as one that permits less; both are kept."""
    first = root_of(place.start())
    trust = place.start(hosts)
    second = root_of(trust, min(hosts))
    assert second != first
    assert {decode(path.read_bytes()).hosts for path in place.files} == {HOSTS, hosts}
    assert set(place.roots) == {first, second}
    assert "restart running clients" in place.troubles[0]
    assert root_of(place.start()) == first
    assert root_of(place.start(hosts), min(hosts)) == second
    assert place.troubles == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def expose_to_group(path: Path) -> None:
    path.chmod(0o640)


def expose_to_others(path: Path) -> None:
    path.chmod(0o604)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "not a certificate authority of ours"),
        (empty, "not a certificate authority of ours"),
        (expose_to_group, "others can read it"),
        (expose_to_others, "others can read it"),
        (replace_by_directory, "Is a directory"),
    ],
)
def test_an_unfit_file_is_reported_and_not_used(spoil: Callable[[Path], None], reason: str, place: Place) -> None:
    """Who could read it may have the key: its root is trusted no more. What is not there cannot be used."""
    first = root_of(place.start())
    (file,) = place.files
    secret = file.read_text().splitlines()[2]
    spoil(file)
    trust = place.start()
    assert root_of(trust) != first
    assert first not in certificates(trust.bundle.read_bytes())
    about_file, about_clients = place.troubles
    assert str(file) in about_file
    assert reason in about_file
    assert "remove it" in about_file
    assert "restart running clients" in about_clients
    assert secret not in about_file
    assert root_of(place.start()) == root_of(trust)
    assert len(place.troubles) == 1


def test_an_authority_of_the_future_is_not_used(place: Place) -> None:
    """The clock was set back: no client would accept its leaves yet."""
    place.start()
    place.clock.wall -= 10 * DAY
    trust = place.start()
    assert trust._authority is not None
    assert trust._authority.begins_at == place.clock.wall - 3600
    assert len(place.roots) == 2


def test_a_directory_that_cannot_be_written_is_the_operators_business(tmp_path: Path) -> None:
    """One line says which place it is and what to do."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"file/ca: Not a directory; expected .* set state_dir to another"):
        Place(tmp_path / "file" / "ca").start()


@pytest.mark.parametrize("name", ["bundle.pem", "roots.pem", "truststore.p12"])
def test_a_file_that_cannot_be_written_is_the_operators_business(name: str, place: Place) -> None:
    """The error says where; when the cause is gone, the next start completes the files."""
    obstacle = place.directory / name / "x"
    obstacle.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"ca/.*: Is a directory; expected"):
        place.start()
    if name == "truststore.p12":
        assert not (place.directory / "bundle.pem").exists(), "the trust store would be taken for complete"
    obstacle.rmdir()
    obstacle.parent.rmdir()
    trust = place.start()
    assert place.roots == [root_of(trust)]
    assert trust.bundle.stat().st_size > trust.truststore.stat().st_size > 10_000
    assert len(place.files) == 1


def leaf_serial(trust: Trust, host: str) -> int:
    """Return the serial number of the leaf that a client would be shown."""
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
    client.set_connect_state()
    server = SSL.Connection(trust.context(host))
    server.set_accept_state()
    for _ in range(6):
        for one, other in ((client, server), (server, client)):
            with contextlib.suppress(SSL.WantReadError):
                one.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(1 << 16))
    certificate = client.get_peer_certificate(as_cryptography=True)
    assert isinstance(certificate, x509.Certificate)
    return certificate.serial_number


def test_a_leaf_is_issued_once_in_twelve_hours(place: Place) -> None:
    """The same context serves until then, whichever way the host is spelt; the next leaf comes in good time."""
    trust = place.start()
    context, serial = trust.context("plm.example.com"), leaf_serial(trust, "plm.example.com")
    assert trust.context("PLM.example.com.") is context
    assert trust.context("127.0.0.1") is not context
    place.clock.wall += DAY / 2 - 1
    assert trust.context("plm.example.com") is context
    assert leaf_serial(trust, "plm.example.com") == serial
    place.clock.wall += 1
    assert trust.context("plm.example.com") is not context
    assert leaf_serial(trust, "plm.example.com") != serial


def test_a_leaf_of_the_future_is_issued_again(place: Place) -> None:
    """The clock was set back by more than the hour that leaves are valid before they are issued."""
    trust = place.start()
    context = trust.context("127.0.0.1")
    place.clock.wall -= 7200
    assert trust.context("127.0.0.1") is not context


@pytest.mark.parametrize("host", ["other.example.com", "www.plm.example.com", "127.0.0.2", "::1"])
def test_nothing_is_issued_for_a_host_that_is_not_ours(host: str, place: Place) -> None:
    """A caller that is wrong about the route gets an error, not a certificate."""
    trust = place.start()
    with pytest.raises(KeyError):
        trust.context(host)


@pytest.mark.parametrize("host", ["", "*.example.com", "plm.example.com:443", "127.0.0.1/8", "plm.example.com\0"])
def test_nothing_is_issued_for_what_is_no_host(host: str, place: Place) -> None:
    """Nobody tries to make sense of it."""
    trust = place.start()
    with pytest.raises(ValueError, match=r"host|parts"):
        trust.context(host)


def test_nothing_is_issued_before_an_authority_was_chosen(place: Place) -> None:
    """The order of starting is wrong then."""
    with pytest.raises(RuntimeError, match="prepare"):
        Trust(place.directory, HOSTS, place.clock, place.events.append).context("127.0.0.1")


def test_the_directory_is_not_looked_at_for_every_leaf(place: Place) -> None:
    """Issuing for one more host costs no file; only after 12 hours is there something to see."""
    trust = place.start()
    place.files[0].unlink()
    place.clock.wall += DAY / 2 - 1
    trust.context("127.0.0.1")
    assert place.files == []
    place.clock.wall += 1
    trust.context("plm.example.com")
    assert len(place.files) == 1


def test_a_running_process_goes_on_without_its_directory(place: Place) -> None:
    """A full disk or a lost mount is reported once; requests are served with the authority at hand."""
    trust = place.start()
    first = root_of(trust)
    for path in place.directory.iterdir():
        path.unlink()
    place.directory.rmdir()
    place.directory.write_bytes(b"")
    place.clock.wall += DAY
    assert root_of(trust) == first
    trust.context("plm.example.com")
    (trouble,) = place.troubles
    assert str(place.directory) in trouble


PREPARE = """
import sys
from pathlib import Path
from sidecar.clock import SystemClock
from sidecar.ca import trust as trust_module
from sidecar.ca.trust import Trust
trust = Trust(Path(sys.argv[1]), frozenset({"plm.example.com", "127.0.0.1"}), SystemClock(), lambda event: None)
print("ready", flush=True)
sys.stdin.readline()
trust.prepare()
print(trust._authority.root.serial_number, trust.roots.read_bytes() == trust._authority.root_pem)
"""


def test_processes_that_start_at_once_agree(place: Place) -> None:
    """Eight of them on an empty directory make one authority, and each finds its root on disk when it is done."""
    command = [sys.executable, "-c", PREPARE, str(place.directory)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = {process.communicate(timeout=60)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    serial = decode(place.files[0].read_bytes()).root.serial_number
    assert answers == {f"{serial} True\n"}
    assert len(place.files) == 1
