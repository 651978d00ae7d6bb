"""Who may use a port: the password of the proxy, and what keeps a page in a browser out."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigurationError, Reason, Refusal
from sidecar.policy.routing import Origin
from sidecar.proxy.gate import Gate
from sidecar.run.gates import proxy_gate, reverse_gate
from sidecar.secret import Secret
from sidecar.settings import HostPort, SocketPath
from sidecar.settings.model import Listen
from tests.canary import WORD, canary

PASSWORD = canary("gate-pässwörd:2")
GUARDED = Gate(credentials=Secret(f"skript:{PASSWORD}"))
PLM = Origin("https", "plm.example.com", 443, b"/api")
REVERSE = reverse_gate(HostPort("127.0.0.3", 9001), PLM)
OURS = (b"Host", b"127.0.0.1:9001")


def basic(text: str, scheme: bytes = b"Basic ") -> tuple[bytes, bytes]:
    return b"Proxy-Authorization", scheme + base64.b64encode(text.encode())


def verdict(gate: Gate, *fields: tuple[bytes, bytes], ours: bool = True) -> Reason | None:
    """Return why *gate* refuses a request with *fields*, None when it lets it in."""
    try:
        gate.check(fields, ours=ours)
    except Refusal as refusal:
        return refusal.reason
    return None


@pytest.mark.parametrize("scheme", [b"Basic ", b"basic ", b"BASIC ", b"bAsIc   "])
def test_right_password_is_let_in(scheme: bytes) -> None:
    """The scheme has no case (RFC 9110 section 11.1), the password may hold colons and any character."""
    assert verdict(GUARDED, (b"Host", b"a"), basic(f"skript:{PASSWORD}", scheme)) is None


@pytest.mark.parametrize("name", [b"proxy-authorization", b"PROXY-AUTHORIZATION"])
def test_name_of_the_field_has_no_case(name: bytes) -> None:
    assert verdict(GUARDED, (name, basic(f"skript:{PASSWORD}")[1])) is None


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ((b"Proxy-Authorization", b""),),
        ((b"Proxy-Authorization", b"Basic"),),
        ((b"Proxy-Authorization", b"Basic "),),
        (basic(f"skript:{PASSWORD}", b"Bearer "),),
        (basic(f"skript:{PASSWORD}", b"Basic"),),
        (basic(f"skript:{PASSWORD}", b""),),
        (basic("skript:wrong"),),
        (basic("skript:"),),
        (basic(f"Skript:{PASSWORD}"),),
        (basic(f"skript:{PASSWORD} "),),
        (basic(f"skript:{PASSWORD}"[:-1]),),
        (basic(PASSWORD),),
        ((b"Proxy-Authorization", f"Basic skript:{PASSWORD}".encode()),),
        ((b"Proxy-Authorization", b"Basic !" + basic(f"skript:{PASSWORD}")[1].removeprefix(b"Basic ")),),
        ((b"Proxy-Authorization", basic(f"skript:{PASSWORD}")[1].rstrip(b"=")[:-1]),),
        ((b"Proxy-Authorization", b"Basic " + base64.b64encode(f"skript:{PASSWORD}".encode("latin-1"))),),
        ((b"Proxy-Authorization", b"Basic \xff\xfe"),),
        ((b"Authorization", basic(f"skript:{PASSWORD}")[1]),),
        ((b"Proxy_Authorization", basic(f"skript:{PASSWORD}")[1]),),
        (basic("skript:wrong"), basic(f"skript:{PASSWORD}")),
    ],
)
def test_anything_else_is_asked_for_the_password(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    """Missing, wrong, another scheme, not Base64, Latin-1 where UTF-8 is announced, another field: all are 407."""
    assert verdict(GUARDED, *fields) is Reason.PROXY_AUTH_REQUIRED


@given(st.binary())
def test_no_bytes_are_more_than_a_refusal(value: bytes) -> None:
    """Whatever stands in the field, the answer is 407, never a fault."""
    assert verdict(GUARDED, (b"Proxy-Authorization", b"Basic " + value)) is Reason.PROXY_AUTH_REQUIRED
    assert verdict(GUARDED, (b"Proxy-Authorization", value)) is Reason.PROXY_AUTH_REQUIRED


def test_refusal_and_gate_do_not_show_the_password() -> None:
    """Neither the answer to a wrong password nor the gate's own repr holds the right one, or the one tried."""
    with pytest.raises(Refusal) as caught:
        GUARDED.check((basic(f"skript:{canary('tried')}"),), ours=True)

    assert WORD not in f"{caught.value} {caught.value.detail} {GUARDED!r}"


def test_passwords_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is that of `hmac`, of whole user and password, also when there is none at all."""
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or False)
    verdict(GUARDED, basic("skript:wrong"))
    verdict(GUARDED)

    assert compared == [(given, f"skript:{PASSWORD}".encode()) for given in (b"skript:wrong", b"")]


def test_password_does_not_let_a_foreign_page_in() -> None:
    """A browser that knows the password sends it for any page; what a page may do is asked all the same."""
    cross = (b"Sec-Fetch-Site", b"cross-site")

    assert verdict(GUARDED, basic(f"skript:{PASSWORD}"), cross) is Reason.NO_ROUTE
    assert verdict(GUARDED, cross) is Reason.PROXY_AUTH_REQUIRED


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (None, None),
        (b"none", None),
        (b"same-origin", None),
        (b"same-site", None),
        (b"cross-site", Reason.NO_ROUTE),
    ],
)
def test_proxy_port_refuses_only_what_another_site_sent(site: bytes | None, reason: Reason | None) -> None:
    """Host and Origin say nothing on a proxy port, where both are those of the page's own target."""
    fields = [(b"Host", b"plm.example.com"), (b"Origin", b"https://elsewhere.example")]
    fields += [] if site is None else [(b"sec-fetch-site", site)]

    assert verdict(Gate(), *fields) is reason
    assert verdict(Gate(), *fields, ours=False) is None


def test_reverse_port_and_password_are_asked_for_whatever_is_wanted() -> None:
    """What gets no credential of ours is let off nothing else."""
    assert verdict(REVERSE, OURS, (b"Sec-Fetch-Site", b"cross-site"), ours=False) is Reason.NO_ROUTE
    assert verdict(REVERSE, (b"Host", b"rebound.example"), ours=False) is Reason.NO_ROUTE
    assert verdict(GUARDED, ours=False) is Reason.PROXY_AUTH_REQUIRED


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:9001",
        b"LocalHost:1",
        b"127.0.0.1",
        b"127.0.0.1:9001",
        b"[::1]",
        b"[::1]:9001",
        b"127.0.0.3:9001",
        b"plm.example.com",
        b"PLM.example.com:443",
    ],
)
def test_reverse_port_answers_to_its_own_names(host: bytes) -> None:
    """Loopback names, the address it is bound to and the upstream's host, with any port, in any case."""
    assert verdict(REVERSE, (b"Host", host)) is None


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b":9001",
        b"rebound.example",
        b"rebound.example:9001",
        b"localhost.rebound.example",
        b"127.0.0.1.rebound.example:9001",
        b"plm.example.com.rebound.example",
        b"127.0.0.2:9001",
        b"::1",
        b"[::2]:9001",
        b"localhost:x",
        b"localhost:9001:9001",
        b"xlocalhost",
    ],
)
def test_reverse_port_refuses_any_other_name(host: bytes) -> None:
    """A name of an attacker's own that resolves to loopback (DNS rebinding) is not answered to."""
    assert verdict(REVERSE, (b"Host", host)) is Reason.NO_ROUTE


def test_old_client_without_host_is_served() -> None:
    """No browser speaks HTTP/1.0, which has no Host; one that says where it comes from is still asked."""
    assert verdict(REVERSE) is None
    assert verdict(REVERSE, (b"Sec-Fetch-Site", b"cross-site")) is Reason.NO_ROUTE
    assert verdict(REVERSE, (b"Origin", b"http://elsewhere.example")) is Reason.NO_ROUTE


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (b"none", None),
        (b"same-origin", None),
        (b"same-site", Reason.NO_ROUTE),
        (b"cross-site", Reason.NO_ROUTE),
        (b"", Reason.NO_ROUTE),
        (b"anything", Reason.NO_ROUTE),
    ],
)
def test_reverse_port_refuses_what_is_not_its_own_page(site: bytes, reason: Reason | None) -> None:
    """Another port of loopback is the same site and not the same page, so only these two are let in."""
    assert verdict(REVERSE, OURS, (b"Sec-Fetch-Site", site)) is reason


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        (b"http://127.0.0.1:9001", None),
        (b"HTTP://127.0.0.1:9001", None),
        (b"https://plm.example.com", None),
        (b"http://127.0.0.1", Reason.NO_ROUTE),
        (b"http://127.0.0.1:9002", Reason.NO_ROUTE),
        (b"http://localhost:9001", Reason.NO_ROUTE),
        (b"https://127.0.0.1:9001", Reason.NO_ROUTE),
        (b"http://plm.example.com", Reason.NO_ROUTE),
        (b"https://plm.example.com:444", Reason.NO_ROUTE),
        (b"https://plm.example.com.rebound.example", Reason.NO_ROUTE),
        (b"https://rebound.example", Reason.NO_ROUTE),
        (b"null", Reason.NO_ROUTE),
        (b"", Reason.NO_ROUTE),
        (b"\xff", Reason.NO_ROUTE),
    ],
)
def test_reverse_port_refuses_pages_of_other_origins(origin: bytes, reason: Reason | None) -> None:
    """Scheme, host and port must be those of the port as it was called, or those of the upstream."""
    assert verdict(REVERSE, OURS, (b"Origin", origin)) is reason


def test_all_that_a_page_says_must_be_right() -> None:
    """A good Origin does not make up for a bad site, nor a good site for a bad Host."""
    good = ((b"Sec-Fetch-Site", b"same-origin"), (b"Origin", b"http://rebound.example"))

    assert verdict(REVERSE, OURS, (b"Origin", b"http://127.0.0.1:9001"), (b"Sec-Fetch-Site", b"cross-site"))
    assert verdict(REVERSE, (b"Host", b"rebound.example"), *good) is Reason.NO_ROUTE


@pytest.mark.parametrize(
    ("origin", "host", "page"),
    [
        (Origin("https", "plm.example.com", 8443), b"plm.example.com:8443", b"https://plm.example.com:8443"),
        (Origin("http", "plm.example.com", 80), b"plm.example.com", b"http://plm.example.com"),
        (Origin("https", "2001:db8::1", 443), b"[2001:db8::1]", b"https://[2001:db8::1]"),
    ],
)
def test_upstream_is_called_as_its_url_says(origin: Origin, host: bytes, page: bytes) -> None:
    """Its host and its origin are those of the base URL: the port when it is not the default, IPv6 in brackets."""
    gate = reverse_gate(HostPort("127.0.0.1", 9001), origin)

    assert verdict(gate, (b"Host", host)) is None
    assert verdict(gate, OURS, (b"Origin", page)) is None
    assert verdict(gate, OURS, (b"Origin", b"https://plm.example.com")) is Reason.NO_ROUTE


def test_bound_ipv6_address_is_a_name() -> None:
    """A port that is bound to an IPv6 address is called by it in brackets."""
    gate = reverse_gate(HostPort("::ffff:127.0.0.4", 9001), PLM)

    assert verdict(gate, (b"Host", b"[::ffff:127.0.0.4]:9001")) is None
    assert verdict(REVERSE, (b"Host", b"[::ffff:127.0.0.4]:9001")) is Reason.NO_ROUTE


def test_unix_socket_takes_any_host() -> None:
    """No page reaches a unix socket, and its clients put any name into Host."""
    gate = reverse_gate(SocketPath("/run/plm.sock"), PLM)

    assert verdict(gate, (b"Host", b"anything.example"), (b"Origin", b"http://anything.example")) is None


def test_settings_make_the_password(tmp_path: Path) -> None:
    """User and password of `listen.auth` are what the proxy port asks for; without it nothing."""
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", encoding="utf-8")
    asking = proxy_gate(Listen.model_validate({"auth": {"username": "skript", "password": {"file": str(file)}}}))

    assert verdict(asking, basic(f"skript:{PASSWORD}")) is None
    assert verdict(asking) is Reason.PROXY_AUTH_REQUIRED
    assert verdict(proxy_gate(Listen())) is None


def test_password_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A port whose password is missing must not open without one."""
    auth = {"username": "skript", "password": {"file": str(tmp_path / "missing")}}

    with pytest.raises(ConfigurationError, match="missing"):
        proxy_gate(Listen.model_validate({"auth": auth}))
