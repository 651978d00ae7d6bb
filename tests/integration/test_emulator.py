"""The emulator over real sockets: what the demo and every other test of this suite lean on."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote_plus

import httpx
import pytest

from sidecar.clock import SystemClock
from sidecar.emulator import ACCESS_PREFIX, REFRESH_PREFIX, Account, Emulator, Switches, sha256_of_bytes
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "sidecar" / "emulator" / "scripts" / "oauth2.py"


class OwnedClock(SystemClock):
    """A wall clock that moves when the test says so."""

    offset = 0.0

    def now(self) -> float:
        return 1_800_000_000.0 + self.offset


@pytest.fixture
def clock() -> OwnedClock:
    return OwnedClock()


@pytest.fixture
async def emu(clock: OwnedClock) -> AsyncIterator[Emulator]:
    async with Emulator.start(clock=clock) as emulator:
        yield emulator


@pytest.fixture
async def client(emu: Emulator) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(emu) as client:
        yield client


def client_of(emu: Emulator) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=str(emu.ca_path))
    return httpx.AsyncClient(base_url=emu.base_url, verify=context, trust_env=False)


def basic(client_id: str, secret: str) -> dict[str, str]:
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


async def ask(emu: Emulator, client: httpx.AsyncClient, **form: str) -> httpx.Response:
    return await client.post(emu.token_url, data=form, headers=basic(emu.client_id, emu.client_secret))


async def bearer(emu: Emulator, client: httpx.AsyncClient, scope: str = "api") -> dict[str, str]:
    answer = await ask(emu, client, grant_type="client_credentials", scope=scope)
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def raw(emu: Emulator, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=str(emu.ca_path))
    url = httpx.URL(emu.base_url)
    reader, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
    writer.write(request)
    return reader, writer


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    return head, await reader.readexactly(int(fields[b"content-length"]))


# --- the token endpoint


async def test_basic_is_form_decoded(emu: Emulator, client: httpx.AsyncClient) -> None:
    """Client id and secret in Basic are form-urlencoded first; a secret sent as it stands is refused."""
    assert (await ask(emu, client, grant_type="client_credentials")).status_code == 200

    unencoded = base64.b64encode(f"{emu.client_id}:{emu.client_secret}".encode()).decode()
    answer = await client.post(
        emu.token_url, data={"grant_type": "client_credentials"}, headers={"Authorization": f"Basic {unencoded}"}
    )

    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


async def test_client_secret_post(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The client may also authenticate in the form."""
    form = {"grant_type": "client_credentials", "client_id": emu.client_id, "client_secret": emu.client_secret}

    answer = await client.post(emu.token_url, data=form)

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert tuple(answer.json()[name] for name in ("token_type", "expires_in", "scope")) == ("Bearer", 3600, "api")
    assert answer.json()["access_token"].startswith(ACCESS_PREFIX)


@pytest.mark.parametrize(
    "authorization", ["Basic", "Basic %%%", "Basic bm9jb2xvbg==", "Basic /w==", "Bearer canary", "Basic ZGVtbzp4"]
)
async def test_invalid_client(emu: Emulator, client: httpx.AsyncClient, authorization: str) -> None:
    """Whatever is wrong with the client's authentication is a 401 with a challenge."""
    answer = await client.post(
        emu.token_url, data={"grant_type": "client_credentials"}, headers={"Authorization": authorization}
    )

    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "invalid_request"),
        ("grant_type=", "invalid_request"),
        ("grant_type=client_credentials&scope=api&scope=api", "invalid_request"),
        ("grant_type=client_credentials&client_secret=canary", "invalid_request"),
        ("grant_type=client_credentials&client_id=other", "invalid_request"),
        ("grant_type=implicit", "unsupported_grant_type"),
        ("grant_type=client_credentials&scope=everything", "invalid_scope"),
        ("grant_type=password&username=svc%40example.com&password=canary", "invalid_grant"),
        ("grant_type=password", "invalid_grant"),
        ("grant_type=refresh_token&refresh_token=canary", "invalid_grant"),
        ("grant_type=refresh_token", "invalid_grant"),
    ],
)
async def test_refused_grants(emu: Emulator, client: httpx.AsyncClient, body: str, error: str) -> None:
    """A request that gives no token is a 400 with the code of RFC 6749 section 5.2."""
    headers = basic(emu.client_id, emu.client_secret) | {"Content-Type": "application/x-www-form-urlencoded"}

    answer = await client.post(emu.token_url, content=body, headers=headers)

    assert (400, error) == (answer.status_code, answer.json()["error"])
    assert emu.counters.tokens_issued == 0


async def test_only_a_form_by_post(emu: Emulator, client: httpx.AsyncClient) -> None:
    """JSON is refused, and so is any other method."""
    answer = await client.post(
        emu.token_url, json={"grant_type": "client_credentials"}, headers=basic(emu.client_id, emu.client_secret)
    )

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert (await client.get(emu.token_url)).status_code == 405


async def test_password_grant(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The password grant gives a token that works."""
    answer = await ask(emu, client, grant_type="password", username=emu.username, password=emu.password)
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    assert (await client.get("/api/v1/health", headers=headers)).status_code == 200


async def test_supplier_tokens_live_shorter(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A supplier-scoped token lives shorter than configured until the switch is off, and never longer."""
    form = {"grant_type": "client_credentials", "scope": "supplier_mgmt"}
    granted = [(await ask(emu, client, **form)).json()["expires_in"]]
    emu.switches.supplier_lifetime = None
    granted.append((await ask(emu, client, **form)).json()["expires_in"])
    emu.change(lifetime=3, supplier_lifetime=900)
    granted.append((await ask(emu, client, **form)).json()["expires_in"])

    assert granted == [900, 3600, 3]


async def test_refresh_needs_offline_access(emu: Emulator, client: httpx.AsyncClient, clock: OwnedClock) -> None:
    """A refresh token comes with `offline_access` only, works for 24 hours and keeps its value."""
    assert "refresh_token" not in (await ask(emu, client, grant_type="client_credentials", scope="api")).json()
    first = (await ask(emu, client, grant_type="client_credentials", scope="supplier_mgmt offline_access")).json()
    assert first["refresh_token"].startswith(REFRESH_PREFIX)
    form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}

    for clock.offset in (0.0, 86399.0):
        answer = await ask(emu, client, **form)
        assert (200, first["scope"]) == (answer.status_code, answer.json()["scope"])
        assert "refresh_token" not in answer.json()
    clock.offset = 86400.0

    assert (await ask(emu, client, **form)).json()["error"] == "invalid_grant"
    assert emu.counters.token_calls == {"client_credentials": 2, "refresh_token": 3}


async def test_refresh_may_narrow_the_scope(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A refresh may ask for less than was granted, not for more (RFC 6749 section 6)."""
    first = (await ask(emu, client, grant_type="client_credentials", scope="api offline_access")).json()
    form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}

    assert (await ask(emu, client, scope="api", **form)).json()["scope"] == "api"
    assert (await ask(emu, client, scope="supplier_mgmt", **form)).json()["error"] == "invalid_scope"


async def test_rotation_detects_reuse(emu: Emulator, client: httpx.AsyncClient) -> None:
    """With rotation an old refresh token used again revokes the grant with everything that came from it."""
    emu.switches.rotate_refresh = True
    other = await bearer(emu, client)
    first = (await ask(emu, client, grant_type="client_credentials", scope="api offline_access")).json()
    form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
    second = (await ask(emu, client, **form)).json()
    headers = {"Authorization": f"Bearer {second['access_token']}"}
    assert first["refresh_token"] != second["refresh_token"]
    assert (await client.get("/api/v1/health", headers=headers)).status_code == 200

    assert (await ask(emu, client, **form)).json()["error"] == "invalid_grant"

    form["refresh_token"] = second["refresh_token"]
    assert (await ask(emu, client, **form)).json()["error"] == "invalid_grant"
    assert (await client.get("/api/v1/health", headers=headers)).status_code == 401
    assert (await client.get("/api/v1/health", headers=other)).status_code == 200


async def test_expires_in_can_be_missing_or_wrong(emu: Emulator, client: httpx.AsyncClient) -> None:
    """`expires_in` can be left out or be a lie; the token lives as it would have."""
    emu.switches.claimed_expires_in = 86400
    assert (await ask(emu, client, grant_type="client_credentials")).json()["expires_in"] == 86400
    emu.switches.omit_expires_in = True
    assert "expires_in" not in (await ask(emu, client, grant_type="client_credentials")).json()

    answer = await client.get("/api/v1/health", headers=await bearer(emu, client))

    assert answer.headers["x-token-expires-in"] == "3600"


async def test_token_faults(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The token endpoint fails as told and as often as told, then works again."""
    emu.change(token_fault=500, token_fault_times=2)
    assert [(await ask(emu, client, grant_type="client_credentials")).status_code for _ in range(3)] == [500, 500, 200]
    emu.change(token_fault="429", token_fault_times=None, retry_after=7)
    assert (await ask(emu, client, grant_type="client_credentials")).headers["retry-after"] == "7"
    emu.change(token_fault="invalid_client")
    answer = await ask(emu, client, grant_type="client_credentials")
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    emu.change(token_fault="garbage")
    assert "text/html" in (await ask(emu, client, grant_type="client_credentials")).headers["content-type"]
    emu.change(token_fault="drop", token_fault_times=1)
    with pytest.raises(httpx.TransportError):
        await ask(emu, client, grant_type="client_credentials")

    assert (await ask(emu, client, grant_type="client_credentials")).status_code == 200
    assert emu.counters.tokens_issued == 3


async def test_token_delay_and_concurrency(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The delay holds calls, and the highest number of them at once is counted."""
    await ask(emu, client, grant_type="client_credentials")
    assert emu.counters.token_concurrent_max == 1
    emu.switches.token_delay = 0.2

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask(emu, client, grant_type="client_credentials"))

    assert emu.counters.token_concurrent_max == 4
    assert 5 == emu.counters.tokens_issued == emu.counters.token_sent[200]


# --- the token check


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer canary-stale"}, {"Authorization": "Basic Zm9v"}])
async def test_no_live_token(emu: Emulator, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Without a token of ours a request gets Arena's 401 and is counted as foreign if it carried a credential."""
    answer = await client.get("/api/v1/health", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="arena", error="invalid_token"'
    assert "x-token-expires-in" not in answer.headers
    message = "There is no access token associated with this request or the access token is not valid."
    assert {"status": 401, "errors": [{"code": 401, "message": message}]} == answer.json()
    assert len(headers) == emu.counters.unissued == emu.counters.tokens_seen
    assert not emu.counters.executed


async def test_token_ends(emu: Emulator, client: httpx.AsyncClient, clock: OwnedClock) -> None:
    """A token lives to its last second, every authorised answer says how long it has, and then it is refused."""
    headers = await bearer(emu, client)
    left = {}
    for clock.offset in (0.0, 3599.0, 3600.0):
        for path in ("/api/v1/health", "/api/v1/nothing", "/echo/", "/bytes/1"):
            answer = await client.get(path, headers=headers)
            left.setdefault(clock.offset, set()).add(answer.headers.get("x-token-expires-in"))

    assert {0.0: {"3600"}, 3599.0: {"1"}, 3600.0: {None}} == left
    assert emu.counters.sent[401] == 4
    assert emu.counters.unissued == 0


async def test_revoke_all(emu: Emulator, client: httpx.AsyncClient) -> None:
    """Revocation ends access tokens at once; refresh tokens go only when asked for."""
    first = (await ask(emu, client, grant_type="client_credentials", scope="api offline_access")).json()
    form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
    emu.revoke_all()
    headers = {"Authorization": f"Bearer {first['access_token']}"}
    assert (await client.get("/api/v1/health", headers=headers)).status_code == 401
    assert (await ask(emu, client, **form)).status_code == 200

    emu.revoke_all(grants=True)

    assert (await ask(emu, client, **form)).json()["error"] == "invalid_grant"


async def test_idle_window_slides(emu: Emulator, client: httpx.AsyncClient, clock: OwnedClock) -> None:
    """Use keeps a token alive within the idle window, up to the absolute end and no further."""
    emu.change(idle_window=900, absolute_timeout=2000)
    used, unused = await bearer(emu, client), await bearer(emu, client)
    left = []
    for clock.offset in (0.0, 800.0, 1600.0, 1999.0, 2000.0):
        answer = await client.get("/api/v1/health", headers=used)
        left.append(answer.headers.get("x-token-expires-in"))

    assert left == ["900", "900", "400", "1", None]
    clock.offset = 900.0
    assert (await client.get("/api/v1/health", headers=unused)).status_code == 401


async def test_two_credentials_are_refused(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A second Authorization field is a 400 and counted, even if the first is good."""
    good = (await bearer(emu, client))["Authorization"]

    answer = await client.get("/api/v1/health", headers=[("Authorization", good), ("authorization", "Bearer stale")])

    assert answer.status_code == 400
    assert 'error="invalid_request"' in answer.headers["www-authenticate"]
    assert emu.counters.authorization_fields == {2: 1}


# --- suppliers


async def test_paging(emu: Emulator, client: httpx.AsyncClient) -> None:
    """Pages cover the 500 suppliers once each; the last is short, the next empty."""
    headers = await bearer(emu, client)
    pages = [
        (await client.get("/api/v1/suppliers", params={"limit": 120, "offset": offset}, headers=headers)).json()
        for offset in range(0, 720, 120)
    ]

    assert list(range(1, 501)) == [supplier["id"] for page in pages for supplier in page["results"]]
    assert [page["count"] for page in pages] == [120, 120, 120, 120, 20, 0]
    assert {500} == {page["total"] for page in pages}
    for bad in ("limit=0", "limit=401", "limit=x", "offset=-1"):
        assert (await client.get(f"/api/v1/suppliers?{bad}", headers=headers)).status_code == 400


async def test_supplier_changes(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A supplier can be read, changed and synchronised; what it cannot take is refused and changes nothing."""
    client.headers.update(await bearer(emu, client))
    changed = (await client.put("/api/v1/suppliers/7", json={"name": "Ünique"})).json()
    assert (changed["name"], changed["revision"]) == ("Ünique", 2)
    for body in (b"", b"[]", b'{"id": "9"}', b'{"name": 1}', b"\xff"):
        assert (await client.put("/api/v1/suppliers/7", content=body)).status_code == 400

    synced = (await client.post("/api/v1/suppliers/7/sync", json={"source": "erp"})).json()

    assert synced == {"id": 7, "status": "synced", "syncs": 1}
    final = (await client.get("/api/v1/suppliers/7")).json()
    assert (final["number"], final["revision"], final["syncs"]) == ("SUP-0007", 2, 1)


async def test_what_is_not_there(emu: Emulator, client: httpx.AsyncClient) -> None:
    """Unknown paths are a 404 and wrong methods a 405, in the envelope."""
    headers = await bearer(emu, client)
    for path in ("suppliers/0", "suppliers/501", "suppliers/%31", "suppliers/1/", "suppliers/x/sync", "items", ""):
        answer = await client.get(f"/api/v1/{path}", headers=headers)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 404)
    for method, path in (("DELETE", "suppliers/1"), ("GET", "suppliers/1/sync"), ("POST", "health")):
        answer = await client.request(method, f"/api/v1/{path}", headers=headers)
        assert answer.status_code == 405
        assert answer.headers["allow"]
    assert (await client.get("/elsewhere")).status_code == 404


async def test_head(emu: Emulator, client: httpx.AsyncClient) -> None:
    """HEAD gives the head of GET and leaves the connection usable."""
    headers = await bearer(emu, client)
    for path in ("/api/v1/suppliers/3", "/bytes/70000"):
        answer = await client.head(path, headers=headers)
        size = len((await client.get(path, headers=headers)).content)
        assert (200, str(size), b"") == (answer.status_code, answer.headers["content-length"], answer.content)


# --- echo and bytes


async def test_echo_is_raw(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The echo tells target and fields byte for byte, and does not give the live token back."""
    token = (await bearer(emu, client))["Authorization"].encode()
    target = b"/echo/a%2Fb//../c;x?&a=%41&a=&b?"
    reader, writer = await raw(
        emu,
        b"PROPFIND " + target + b" HTTP/1.1\r\nhost: emu\r\nX-Twice: 1\r\nx-TWICE: 2\r\n"
        b"X-Bytes: \xff\xe4\r\nAuthorization: " + token + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    )

    _, body = await read_answer(reader)

    seen = json.loads(body)
    assert ("PROPFIND", target.decode()) == (seen["method"], seen["target"])
    assert seen["headers"] == [
        ["host", "emu"],
        ["X-Twice", "1"],
        ["x-TWICE", "2"],
        ["X-Bytes", "\xff\xe4"],
        ["Authorization", "Bearer ***"],
        ["Transfer-Encoding", "chunked"],
    ]
    assert (hashlib.sha256(b"abcde").hexdigest(), 5) == (seen["sha256"], seen["length"])
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("target", [b"/echo/%ff%C3", b"/echo/%", b"/echo/?", b"/echo/%2e%2e/%2E?a=%zz&&"])
async def test_echo_takes_any_target(emu: Emulator, client: httpx.AsyncClient, target: bytes) -> None:
    """What a URL library would mend or refuse arrives as it was sent."""
    token = (await bearer(emu, client))["Authorization"].encode()
    reader, writer = await raw(emu, b"GET " + target + b" HTTP/1.1\r\nHost: e\r\nAuthorization: " + token + b"\r\n\r\n")

    _, body = await read_answer(reader)

    assert target.decode("latin-1") == json.loads(body)["target"]
    writer.close()
    await writer.wait_closed()


async def test_echo_does_not_decompress(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The digest is that of the bytes sent, whatever Content-Encoding says."""
    body = gzip.compress(b"x" * 5000)
    headers = await bearer(emu, client) | {"Content-Encoding": "gzip"}

    seen = (await client.post("/echo/", content=body, headers=headers)).json()

    assert (hashlib.sha256(body).hexdigest(), len(body)) == (seen["sha256"], seen["length"])


async def test_echo_takes_a_large_head(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A head over the limits of a proxy under test is not too large for the emulator."""
    headers = await bearer(emu, client) | {"X-Large": "x" * 100_000} | {f"X-{n}": "1" for n in range(500)}

    seen = (await client.get("/echo/?" + "q" * 50_000, headers=headers)).json()

    assert len(seen["target"]) == 50_007
    assert len([name for name, _ in seen["headers"] if name.startswith("X-")]) == 501


async def test_echo_of_a_large_body(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A body far over the limit of the JSON endpoints goes through the echo."""
    block = os.urandom(1 << 20)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(24):
            yield block

    seen = (await client.post("/echo/upload", content=blocks(), headers=await bearer(emu, client))).json()

    assert (hashlib.sha256(block * 24).hexdigest(), 24 << 20) == (seen["sha256"], seen["length"])


async def test_expect_is_answered_after_the_check(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A good token gets 100 Continue, a stale one its 401 without asking for the body."""
    token = (await bearer(emu, client))["Authorization"].encode()
    template = (
        b"PUT /echo/x HTTP/1.1\r\nHost: e\r\nExpect: 100-continue\r\nContent-Length: 3\r\nAuthorization: %s\r\n\r\n"
    )
    reader, writer = await raw(emu, template % token)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert json.loads((await read_answer(reader))[1])["length"] == 3
    writer.close()
    await writer.wait_closed()

    reader, writer = await raw(emu, template % b"Bearer stale")

    head, _ = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in head.lower()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("count", [0, 1, 65537, (1 << 20) - 1, 1 << 20, (3 << 20) + 5])
async def test_bytes_are_known_beforehand(emu: Emulator, client: httpx.AsyncClient, count: int) -> None:
    """The digest of the bytes can be told without them, with and without Content-Length."""
    headers = await bearer(emu, client)
    plain = await client.get(f"/bytes/{count}", headers=headers)
    chunked = await client.get(f"/bytes/{count}?chunked=1", headers=headers)

    assert str(count) == plain.headers["content-length"]
    assert "content-length" not in chunked.headers
    assert [sha256_of_bytes(count)] * 2 == [hashlib.sha256(answer.content).hexdigest() for answer in (plain, chunked)]


@pytest.mark.parametrize("chunked", [0, 1])
async def test_bytes_cut_short(emu: Emulator, client: httpx.AsyncClient, chunked: int) -> None:
    """A cut body ends after exactly so many bytes and is seen to be incomplete."""
    headers = await bearer(emu, client)
    got = hashlib.sha256()

    async def read() -> None:
        path = f"/bytes/500000?cut=300000&chunked={chunked}"
        async with client.stream("GET", path, headers=headers) as answer:
            async for chunk in answer.aiter_raw():
                got.update(chunk)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()

    assert got.hexdigest() == sha256_of_bytes(300000)
    for bad in ("x", "-1", "5?cut=-1", "5?pause=x", "5?typo=1"):
        assert (await client.get(f"/bytes/{bad}", headers=headers)).status_code == 400


# --- faults and counters


async def test_every_kth_request_fails(emu: Emulator, client: httpx.AsyncClient) -> None:
    """Faults follow the number of the request; where two meet, 401 comes before 429 and that before 503 and 500."""
    headers = await bearer(emu, client)
    emu.change(every_401=6, every_429=3, every_503=4, every_500=5, retry_after=2, retry_after_503=9)
    seen = [await client.post("/api/v1/suppliers/1/sync", headers=headers) for _ in range(12)]

    assert [answer.status_code for answer in seen] == [200, 200, 429, 503, 500, 401, 200, 503, 429, 500, 200, 401]
    assert [(seen[n].headers["retry-after"], seen[n].status_code) for n in (2, 3)] == [("2", 429), ("9", 503)]
    assert "retry-after" not in seen[4].headers
    assert 'error="invalid_token"' in seen[5].headers["www-authenticate"]
    assert emu.counters.executed == {"POST /api/v1/suppliers/1/sync": 4}
    assert emu.counters.sent == {200: 4, 429: 2, 503: 2, 500: 2, 401: 2}
    assert (await client.get("/api/v1/suppliers/1", headers=headers)).json()["syncs"] == 4


async def test_fail_next(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The next requests fail with the chosen status, then all is well."""
    headers = await bearer(emu, client)
    emu.change(fail_next=2, fail_status=502)

    assert [(await client.get("/api/v1/health", headers=headers)).status_code for _ in range(3)] == [502, 502, 200]


async def test_dropped_connections(emu: Emulator, client: httpx.AsyncClient) -> None:
    """A dropped request is not executed, unless it is only the answer that gets lost."""
    client.headers.update(await bearer(emu, client))
    for emu.switches.drop_after in (False, True):
        emu.switches.drop_next = 1
        with pytest.raises(httpx.TransportError):
            await client.post("/api/v1/suppliers/9/sync", headers={"X-Job-Id": f"job-{emu.switches.drop_after}"})
    emu.switches.drop_every = 3
    with pytest.raises(httpx.TransportError):
        await client.get("/api/v1/health")

    assert emu.counters.jobs == {"job-True": 1}
    assert emu.counters.dropped == 3
    assert (await client.get("/api/v1/suppliers/9")).json()["syncs"] == 1


async def test_a_cut_off_request_is_not_executed(
    emu: Emulator, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that goes away in the middle of its body, or of its answer, changes nothing and is no error."""
    token = (await bearer(emu, client))["Authorization"].encode()
    for head in (b"POST /api/v1/suppliers/5/sync", b"PUT /echo/x", b"GET /bytes/9000000?pause=0.01"):
        fields = b" HTTP/1.1\r\nHost: e\r\nContent-Length: 9\r\nAuthorization: "
        _, writer = await raw(emu, head + fields + token + b"\r\n\r\nabc")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
    await asyncio.sleep(0.1)

    assert not emu.counters.executed
    assert (await client.get("/api/v1/suppliers/5", headers={"Authorization": token.decode()})).json()["syncs"] == 0
    assert [record for record in caplog.records if record.name.startswith(("aiohttp", "asyncio"))] == []


async def test_api_delay(emu: Emulator, client: httpx.AsyncClient) -> None:
    """The API delay holds every answer, beyond a client's patience if need be."""
    headers = await bearer(emu, client)
    emu.switches.api_delay = 0.5
    with pytest.raises(httpx.ReadTimeout):
        await client.get("/api/v1/health", headers=headers, timeout=httpx.Timeout(PATIENCE, read=0.1))


async def test_counters_tell_executions_and_credentials(emu: Emulator, client: httpx.AsyncClient) -> None:
    """Each execution is counted by path and by job, a duplicate shows, and so does a credential from elsewhere."""
    first, second = await bearer(emu, client), await bearer(emu, client)
    for headers in ({"X-Job-Id": "a"}, {"X-Job-Id": "b"}, {"X-Job-Id": "b"}, {"Idempotency-Key": "c"}, {}):
        await client.post("/api/v1/suppliers/2/sync?x=1", headers=first | headers)
    await client.get("/api/v1/health", headers=second)
    await client.post("/api/v1/suppliers/2/sync", headers={"Authorization": "Bearer expired", "X-Job-Id": "d"})
    await client.get("/api/v1/health")

    counters = emu.counters
    assert counters.executed == {"POST /api/v1/suppliers/2/sync": 5, "GET /api/v1/health": 1}
    assert counters.jobs == {"a": 1, "b": 2, "c": 1}
    assert counters.authorization_fields == {1: 7, 0: 1}
    assert (counters.tokens_seen, counters.unissued, counters.api_requests) == (3, 1, 8)


def test_a_wrong_switch_is_refused() -> None:
    """A value of a wrong type, a negative one and an unknown name are errors, and nothing changes."""
    switches = Switches(lifetime=3)
    for name, value in (("lifetime", -1), ("every_429", "often"), ("fail_status", 200)):
        with pytest.raises(ValueError, match=name):
            setattr(switches, name, value)
    with pytest.raises(ValueError, match="typo"):
        Switches(typo=1)  # type: ignore[call-arg]

    assert Switches(lifetime=3) == switches


async def test_control_over_http(emu: Emulator, client: httpx.AsyncClient) -> None:
    """Another process can read the state, change switches, revoke and reset; no state shows a token."""
    headers = await bearer(emu, client)
    control = emu.control_url
    state = (await client.post(f"{control}/switches", json={"lifetime": 5, "every_429": 2})).json()
    assert (state["switches"]["lifetime"], state["switches"]["every_429"]) == (5.0, 2)
    assert (emu.switches.lifetime, emu.switches.every_429) == (5.0, 2)
    for bad in (b'{"lifetime": 9, "typo": 1}', b'{"lifetime": -1}', b"[1]", b"{", b"null"):
        assert (await client.post(f"{control}/switches", content=bad)).status_code == 400
    assert emu.switches.lifetime == 5.0

    assert [(await client.get("/api/v1/health", headers=headers)).status_code for _ in range(2)] == [200, 429]
    assert (await client.get(f"{control}/state")).json()["tokens_live"] == 1
    assert (await client.post(f"{control}/revoke")).json()["tokens_live"] == 0
    assert (await client.get("/api/v1/health", headers=headers)).status_code == 401
    state = (await client.get(f"{control}/state")).json()
    assert (state["counters"]["api_requests"], state["counters"]["sent"]) == (3, {"200": 1, "401": 1, "429": 1})
    assert (state["counters"]["tokens_seen"], state["counters"]["token_calls"]) == (1, {"client_credentials": 1})
    assert "canary" not in json.dumps(state)
    assert emu.client_secret not in json.dumps(state, ensure_ascii=False)

    counters = emu.counters
    reset = (await client.post(f"{control}/reset")).json()

    assert (counters.api_requests, counters.sent, emu.switches.lifetime) == (0, {}, 3600.0)
    assert Switches() == emu.switches
    assert reset["counters"]["tokens_seen"] == 0
    assert (await client.get(f"{control}/nothing")).status_code == 404


async def test_reset_leaves_nothing(emu: Emulator, client: httpx.AsyncClient) -> None:
    """After a reset the suppliers are as at the start and no token or grant lives."""
    first = (await ask(emu, client, grant_type="client_credentials", scope="api offline_access")).json()
    headers = {"Authorization": f"Bearer {first['access_token']}"}
    await client.post("/api/v1/suppliers/1/sync", headers=headers)

    emu.reset()

    assert (await client.get("/api/v1/health", headers=headers)).status_code == 401
    answer = await ask(emu, client, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert answer.json()["error"] == "invalid_grant"
    assert (await client.get("/api/v1/suppliers/1", headers=await bearer(emu, client))).json()["syncs"] == 0
    assert emu.counters.unissued == 0


# --- the server and the processes


async def test_connections_are_kept(emu: Emulator, client: httpx.AsyncClient) -> None:
    """One connection serves many requests, refused ones too."""
    token = (await bearer(emu, client))["Authorization"].encode()
    template = b"POST /api/v1/suppliers/1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\nAuthorization: %s\r\n\r\n{}"
    reader, writer = await raw(emu, template % token)
    statuses = [(await read_answer(reader))[0][9:12]]
    for credential in (b"Bearer stale", token):
        writer.write(template % credential)
        statuses.append((await read_answer(reader))[0][9:12])

    assert statuses == [b"200", b"401", b"200"]
    writer.close()
    await writer.wait_closed()


async def test_addresses_and_account() -> None:
    """The account is configurable, http can be served beside https or alone, and the CA goes with the context."""
    account = Account(client_id="other", client_secret="canary:secret", username="u", password="canary")
    async with Emulator.start(plain=True, account=account, switches=Switches(lifetime=3)) as emu:
        assert emu.base_url.startswith("https://localhost:")
        assert (emu.plain_url or "").startswith("http://localhost:")
        assert "canary" not in repr(account)
        async with client_of(emu) as client:
            assert (await ask(emu, client, grant_type="client_credentials")).json()["expires_in"] == 3
            assert (await client.get(f"{emu.plain_url}/api/v1/health")).status_code == 401
        assert emu.ca_path.is_file()
    assert not emu.ca_path.exists()

    async with Emulator.start(tls=False, names=["127.0.0.1"]) as emu:
        assert emu.base_url == emu.plain_url
        assert emu.token_url.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{emu.control_url}/state")).status_code == 200


async def process(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
    )


async def test_as_a_process(tmp_path: Path) -> None:
    """The process prints one JSON line without the secret, serves as told, and SIGTERM ends it with 0."""
    secret = tmp_path / "secret"
    secret.write_text("canary:secret\n")
    running = await process(
        "-m", "sidecar.emulator", "--http", "--lifetime", "5", "--rotate-refresh", "true",
        "--client-id", "other", "--client-secret-file", str(secret),
    )  # fmt: skip
    try:
        assert running.stdout is not None
        line = await asyncio.wait_for(running.stdout.readline(), PATIENCE)
        told = json.loads(line)
        context = ssl.create_default_context(cafile=told["ca_path"])
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            form = {"grant_type": "client_credentials"}
            answer = await client.post(told["token_url"], data=form, headers=basic("other", "canary:secret"))
            assert answer.json()["expires_in"] == 5
            assert (await client.get(told["control_url"] + "/state")).json()["switches"]["rotate_refresh"] is True
            assert (await client.get(told["plain_url"] + "/api/v1/health")).status_code == 401
        running.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(running.communicate(), PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()

    assert (running.returncode, out, err) == (0, b"", b"")
    assert b"canary" not in line
    assert told["pid"] == running.pid
    assert not Path(told["ca_path"]).exists()


@pytest.mark.parametrize("arguments", [("--lifetime", "soon"), ("--every-429", "-1"), ("--client-secret-file", "none")])
async def test_bad_usage(arguments: tuple[str, str]) -> None:
    """A wrong option ends with 2, the name of the option on stderr and no traceback."""
    running = await process("-m", "sidecar.emulator", *arguments)
    _, err = await asyncio.wait_for(running.communicate(), PATIENCE)

    assert running.returncode == 2
    assert b"Traceback" not in err
    assert arguments[0].strip("-").replace("-", "_").encode() in err or b"none" in err


async def test_script_alone_fails() -> None:
    """The unmodified script fails on every request without a sidecar: its own credential is stale."""
    async with Emulator.start(tls=False) as emu:
        running = await process("-I", str(SCRIPT), emu.base_url, "0.5")
        out, err = await asyncio.wait_for(running.communicate(), PATIENCE)

    report = json.loads(out)
    assert (running.returncode, err) == (1, b"")
    assert report["requests"] == report["failures"] == emu.counters.sent[401] == emu.counters.unissued > 0
    assert report["first_failures"][0] == "GET /suppliers?limit=50&offset=0: HTTP Error 401: Unauthorized"


async def test_script_works_behind_a_proxy_that_authorises() -> None:
    """Through `http_proxy`, a connection per request and a live token put in on the way, the script sees no failure."""
    async with Emulator.start(tls=False) as emu, client_of(emu) as client:
        token = (await bearer(emu, client))["Authorization"].encode()
        heads: list[bytes] = []

        async def authorise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            url = httpx.URL(emu.base_url)
            upstream_reader, upstream = await asyncio.open_connection(url.host, url.port)
            head = head.replace(emu.base_url.replace("localhost", "plm.test").encode(), b"")
            upstream.write(head.replace(b"Bearer expired-yesterday", token))
            size = int(
                dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2]).get(b"content-length", 0)
            )
            upstream.write(await reader.readexactly(size))
            writer.write(await upstream_reader.read())
            for each in (upstream, writer):
                each.close()
                await each.wait_closed()

        async with await asyncio.start_server(authorise, "127.0.0.1", 0) as proxy:
            port = proxy.sockets[0].getsockname()[1]
            address = emu.base_url.replace("localhost", "plm.test")
            running = await process(str(SCRIPT), address, "1.5", http_proxy=f"http://127.0.0.1:{port}")
            out, err = await asyncio.wait_for(running.communicate(), PATIENCE)

    report = json.loads(out)
    assert (running.returncode, err, report["failures"], report["first_failures"]) == (0, b"", 0, [])
    assert report["requests"] == len(heads) == emu.counters.sent[200]
    assert 0 < report["requests"] / report["seconds"] <= 35
    assert {1} == set(emu.counters.jobs.values())
    assert all(head.startswith((b"GET http://plm.test", b"POST http://plm.test")) for head in heads)
