"""Where a credential may be connected to: checked on the address, whatever the name was and however it is written."""

import contextlib
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.exchange.addresses import (
    AddressProhibited,
    acknowledged_within,
    checked_socket,
    prohibition,
    unacknowledged,
)

METADATA = "a link-local or metadata address"
NO_HOST = "not the address of a host"
OURS = "a listener of this sidecar"
OUTSIDE = "outside the configured addresses"
OWN = (("127.0.0.1", 8080), ("::1", 8081), ("10.0.0.5", 8090))


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.0.1",
        "169.254.255.255",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fe80::1",
        "fe80::1%eth0",
        "febf::1",
        "fe80::a9fe:a9fe",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "::ffff:169.254.169.254",
        "::FFFF:A9FE:A9FE",
        "::ffff:168.63.129.16",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::100.100.100.200",
        "2002:a9fe:a9fe::",
        "2002:a83f:8110::1",
        "fd00:ec2:0:0:0:0:0:254",
    ],
)
def test_metadata_is_never_an_upstream(text: str) -> None:
    """In no spelling and through no translator; not even if it is listed."""
    assert prohibition(text, 443, (), ()) == METADATA
    assert prohibition(text, 443, ("0.0.0.0/0", "::/0"), ()) == METADATA


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "239.255.255.255", "ff02::1"])
def test_what_is_no_host_is_never_an_upstream(text: str) -> None:
    """The wildcard is this machine to some systems; a group is nobody."""
    assert prohibition(text, 443, ("0.0.0.0/0", "::/0"), ()) == NO_HOST


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "127.0.0.2",
        "127.255.255.254",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::127.0.0.1",
        "64:ff9b::127.0.0.1",
        "10.0.0.5",
        "::ffff:10.0.0.5",
    ],
)
@pytest.mark.parametrize("port", [8080, 8081, 8090])
def test_our_own_listeners_are_never_an_upstream(text: str, port: int) -> None:
    """A credential sent to ourselves would go round, or to the admin port."""
    if "10.0.0.5" in text and port != 8090:
        assert prohibition(text, port, (), OWN) is None
    else:
        assert prohibition(text, port, (), OWN) == OURS


def test_another_port_of_this_machine_may_be_an_upstream() -> None:
    """A legacy system on the same host is a right use."""
    assert prohibition("127.0.0.1", 8082, (), OWN) is None
    assert prohibition("::1", 443, (), OWN) is None
    assert prohibition("10.0.0.6", 8090, (), OWN) is None


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_wildcard_listener_stands_for_every_address(wildcard: str) -> None:
    """Which addresses this machine has is not known here, so the port decides."""
    own = ((wildcard, 8080),)

    assert prohibition("10.9.9.9", 8080, (), own) == OURS
    assert prohibition("10.9.9.9", 8081, (), own) is None


def test_every_listener_is_looked_at() -> None:
    """Not only the first."""
    assert prohibition("10.0.0.5", 8090, (), OWN) == OURS
    assert prohibition("10.0.0.5", 8090, (), OWN[::-1]) == OURS
    assert prohibition("10.0.0.5", 8090, (), ()) is None


@pytest.mark.parametrize(
    ("text", "allowed", "why"),
    [
        ("10.1.2.3", ("10.1.0.0/16",), None),
        ("10.2.2.3", ("10.1.0.0/16",), OUTSIDE),
        ("10.2.2.3", ("10.1.0.0/16", "10.2.2.3/32"), None),
        ("8.8.8.8", ("10.1.0.0/16",), OUTSIDE),
        ("::ffff:10.1.2.3", ("10.1.0.0/16",), None),
        ("::ffff:8.8.8.8", ("10.1.0.0/16",), OUTSIDE),
        ("64:ff9b::10.1.2.3", ("10.1.0.0/16",), OUTSIDE),
        ("2001:db8::1", ("10.1.0.0/16",), OUTSIDE),
        ("2001:db8::1", ("2001:db8::/32",), None),
        ("2001:db9::1", ("2001:db8::/32",), OUTSIDE),
        ("10.1.2.3", ("2001:db8::/32", "10.1.2.3"), None),
        ("127.0.0.1", ("10.0.0.0/8",), OUTSIDE),
        ("8.8.8.8", (), None),
        ("2001:4860:4860::8888", (), None),
        ("2002:808:808::1", (), None),
        ("64:ff9b::8.8.8.8", (), None),
    ],
)
def test_listed_networks_are_all_there_is(text: str, allowed: tuple[str, ...], why: str | None) -> None:
    """With `addresses` set only they count, for what is really connected to; without, the whole network."""
    assert prohibition(text, 443, allowed, OWN) == why


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_has_an_answer(address, port: int) -> None:
    """And what is link-local, wherever it hides, is never allowed."""
    why = prohibition(str(address), port, (), OWN)
    mapped = getattr(address, "ipv4_mapped", None) or address

    assert why in (None, METADATA, NO_HOST, OURS)
    assert not mapped.is_link_local or why == METADATA


@given(st.ip_addresses(v=4, network="169.254.0.0/16"), st.sampled_from(["::ffff:", "::", "64:ff9b::"]))
def test_link_local_cannot_hide(address: ipaddress.IPv4Address, prefix: str) -> None:
    """An IPv4 address inside an IPv6 one is what counts."""
    assert prohibition(f"{prefix}{address}", 80, (), ()) == METADATA


INFO = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 8082))


def test_socket_is_made_for_an_allowed_address() -> None:
    """Of the family and kind that the resolver named."""
    with checked_socket((), lambda: OWN)(INFO) as made:
        found = (made.family, made.type, made.proto)

    assert found == INFO[:3]


def test_socket_looks_for_a_dead_peer() -> None:
    """After 30 s without a byte, three times; nothing bounds a peer that is there and takes nothing."""
    with checked_socket((), lambda: OWN)(INFO) as made:
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        found = [made.getsockopt(socket.IPPROTO_TCP, name) for name in names]
        alive = made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        acknowledged_within(made, 60)
        bound = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert (alive, found, bound) == (1, [30, 10, 3, 0], 60_000)


def test_what_is_not_acknowledged_is_counted() -> None:
    """What was sent and not acknowledged counts; on a socket that is closed it is nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        before = unacknowledged(client)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 20))
        full = unacknowledged(client)

    assert before == 0
    assert full > 0
    assert unacknowledged(client) == 0


def test_no_socket_is_made_for_a_prohibited_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is opened, so nothing can be sent; the error is one of the operating system's kind, with the cause."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was opened"))
    create = checked_socket(iter(["10.0.0.0/8"]), lambda: OWN)

    with pytest.raises(AddressProhibited, match=f"^127.0.0.1:8080 is {OURS}$") as caught:
        create((*INFO[:4], ("127.0.0.1", 8080)))
    with pytest.raises(AddressProhibited, match=OUTSIDE):
        create((*INFO[:4], ("8.8.8.8", 443)))
    with pytest.raises(AddressProhibited, match=OUTSIDE):
        create((socket.AF_INET6, *INFO[1:4], ("2001:db8::1", 443, 0, 0)))
    assert isinstance(caught.value, OSError)


def test_listeners_are_those_of_now() -> None:
    """What is bound after the factory was made counts as well."""
    own: list[tuple[str, int]] = []
    create = checked_socket((), lambda: own)
    create(INFO).close()
    own.append(("127.0.0.1", 8082))

    with pytest.raises(AddressProhibited):
        create(INFO)
