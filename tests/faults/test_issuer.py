"""Token endpoints in trouble: what the script sees, and how often they are asked."""

import asyncio
import base64
import contextlib
import datetime as dt
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from sidecar.emulator import Emulator, Switches
from tests.canary import canary
from tests.faults.instances import (
    Instances,
    generation,
    get,
    instances,
    is_refused,
    plain,
    reasons,
    statuses,
)
from tests.faults.issuers import (
    Issuer,
    bomb,
    dripping,
    granting,
    issuer,
    message,
    never,
    refusing,
    reset,
    saying,
)
from tests.faults.site import metric, state
from tests.fleet import Upstream, by_password, by_refresh_token, relay, upstream
from tests.integration.oidc.provider import REDIRECT_URI, log_in
from tests.integration.oidc.provider import running as oidc_provider
from tests.process import Running
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.rig import Script, Seen
from tests.waiting import eventually, until

__all__ = ["instances", "redis_of_session", "redis_server"]


@pytest.fixture
async def api() -> AsyncIterator[Upstream]:
    """An upstream that takes every token but those that were revoked."""
    async with upstream() as made:
        yield made


@contextlib.asynccontextmanager
async def each_with(
    instances: Instances, api: Upstream, says: dict[str, Script], **settings: Any
) -> AsyncIterator[tuple[Running, dict[str, Issuer]]]:
    """Run a sidecar with an upstream for each of *says*, and give it and their issuers."""
    async with contextlib.AsyncExitStack() as stack:
        issuers = {name: await stack.enter_async_context(issuer(say)) for name, say in says.items()}
        for name, each in issuers.items():
            instances.upstreams[name] = plain(f"{api.url}/{name}", each.url, **settings)
        yield await stack.enter_async_context(instances.start()), issuers


async def healed(sidecar: Running, issuers: dict[str, Issuer]) -> None:
    """Have every issuer grant, and every upstream of *sidecar* served."""
    for name, each in issuers.items():
        each.says = granting(name)
    for name in issuers:
        await eventually(lambda n=name: status(sidecar, n), 200)


async def status(sidecar: Running, name: str = "plm") -> int:
    return (await get(sidecar, name)).status_code


# It does not answer, or not well.


async def test_flt_as_01_token_at_hand_serves_to_its_end(instances: Instances, api: Upstream) -> None:
    """Requests go on with the token at hand until it ends, while renewals are tried in the background and counted."""
    async with each_with(
        instances,
        api,
        {"plm": granting("plm", expires_in=5)},
        renew={"timeout": "1s", "margin": "2.5s"},
        timeout={"token": "1s"},
    ) as (sidecar, issuers):
        await until(lambda: issuers["plm"].calls == 1, "the first token")
        issuers["plm"].says = never
        assert await status(sidecar) == 200
        end = (await state(sidecar))["expires_at"]
        told: dict[str, str] = {}
        while await status(sidecar) == 200:
            assert told == {}
            told = await reasons(sidecar)
            await asyncio.sleep(0.1)
        assert time.time() > end - 0.3
        assert len(api.seen["plm"]) == 1
        assert is_refused(await get(sidecar), 503, "token_unavailable")
        assert await reasons(sidecar) == {"plm": "no usable token"}
        assert await metric(sidecar, "auth_sidecar_renewals_total", 'trigger="due"', 'result="unavailable"') >= 1
        assert issuers["plm"].most == 1


async def test_flt_as_02_no_token_is_a_503_in_time(instances: Instances, api: Upstream, redis_server: Server) -> None:
    """Requests get 503 `token_unavailable` with `Retry-After` when their time is over, none reaches the upstream, and
    of all instances one at a time waits for the token endpoint."""
    instances.in_redis(redis_server)
    async with issuer(never) as silent:
        instances.upstreams["plm"] = plain(api.url, silent.url, renew={"timeout": "1s"}, timeout={"token": "2s"})
        async with instances.pair() as pair:
            began = time.monotonic()
            answers = await asyncio.gather(*(get(sidecar) for sidecar in pair for _ in range(5)))
            assert time.monotonic() < began + 30
            assert all(is_refused(answer, 503, "token_unavailable") for answer in answers)
            await until(lambda: silent.calls >= 2, "another try")
            assert [list(await reasons(sidecar)) for sidecar in pair] == [["plm"]] * 2
            assert silent.most == 1
            assert api.seen == {}

            silent.says = granting("plm")
            for sidecar in pair:
                await eventually(lambda s=sidecar: status(s), 200)


async def test_flt_as_03_burst_of_errors_is_waited_out(instances: Instances, api: Upstream) -> None:
    """No request fails, the token endpoint is asked now and then and by one at a time, and the next token comes by
    itself."""
    codes = iter(["500 Oh", "502 Bad", "503 Busy", "500 Oh"] * 100)

    async def fail(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(message(next(codes), b"<html>sorry</html>"))

    async with each_with(
        instances, api, {"plm": granting("plm", expires_in=4)}, renew={"margin": "2s"}, timeout={"token": "60s"}
    ) as (sidecar, issuers):
        endpoint = issuers["plm"]
        await until(lambda: endpoint.calls == 1, "the first token")
        endpoint.says = fail
        over = endpoint.at[0] + 5
        burst: list[asyncio.Task[int]] = []
        while time.monotonic() < over:
            burst += [asyncio.create_task(status(sidecar)) for _ in range(3)]
            await asyncio.sleep(0.1)
        tried = endpoint.calls - 1
        endpoint.says = granting("after")
        assert set(await asyncio.gather(*burst)) == {200}

        assert 1 <= tried <= 10
        assert endpoint.most == 1
        failed = await metric(sidecar, "auth_sidecar_renewals_total", 'result="unavailable"')
        assert failed == tried
        assert await reasons(sidecar) == {}


async def test_flt_as_04_asked_for_silence_is_kept_by_all(
    instances: Instances, api: Upstream, redis_server: Server
) -> None:
    """No instance asks before that time is over, the token at hand serves, and then one asks for all."""
    instances.in_redis(redis_server)
    async with issuer(granting("plm", expires_in=10)) as endpoint:
        instances.upstreams["plm"] = plain(api.url, endpoint.url, renew={"margin": "5s"}, timeout={"token": "60s"})
        async with instances.pair() as pair:
            assert {await status(each) for each in pair} == {200}
            assert endpoint.calls == 1
            endpoint.says = saying(message("429 Too Many Requests", b"{}", "Retry-After: 3"))
            await until(lambda: endpoint.calls == 2, "a renewal")
            endpoint.says = granting("after", expires_in=600)
            asked: list[asyncio.Task[int]] = []
            while endpoint.calls == 2:
                asked += [asyncio.create_task(status(each)) for each in pair]
                await asyncio.sleep(0.1)
            assert set(await asyncio.gather(*asked)) == {200}
            for each in pair:
                await eventually(lambda s=each: generation(s), 3)  # the wish to be left alone is a record of its own
            assert endpoint.calls == 3
            assert endpoint.at[2] - endpoint.at[1] > 2.9


async def test_flt_as_05_refused_refresh_token_is_not_tried_again(instances: Instances) -> None:
    """The configured grant takes its place if there is one, else the credential counts as rejected: 401 goes to the
    script while an old token is left, `/readyz` says why, and the token endpoint is left alone."""
    switches = Switches(lifetime=600, supplier_lifetime=None)
    async with Emulator.start(switches=switches, tls=False) as plm:
        grants = {"user": by_password(plm), "bound": await by_refresh_token(plm)}
        before = plm.counters.token_calls.total()
        for name, oauth2 in grants.items():
            instances.upstreams[name] = plain(f"{plm.base_url}/echo/{name}", plm.token_url, oauth2)
        async with instances.start() as sidecar:
            assert await statuses(sidecar, "user", "bound") == {200}
            assert plm.counters.token_calls.total() == before + 2
            plm.revoke_all(grants=True)

            assert await status(sidecar, "user") == 200
            assert (await state(sidecar, "user"))["state"] == "valid"
            asked = plm.counters.token_calls.copy()
            assert asked == {"password": 3, "refresh_token": 2}

            assert await status(sidecar, "bound") == 401
            assert plm.counters.token_calls["refresh_token"] <= asked["refresh_token"] + 2
            assert plm.counters.token_calls["password"] == asked["password"]
            told = plm.counters.token_calls.copy()
            for _ in range(20):
                assert await status(sidecar, "bound") == 401
                await asyncio.sleep(0.1)
            assert plm.counters.token_calls == told
            assert await reasons(sidecar) == {"bound": "the issuer refused the credential"}
            assert "invalid_grant" in (await state(sidecar, "bound"))["last_renewal"]["detail"]
            assert await status(sidecar, "user") == 200


def known(secret: str, status: str) -> Script:
    """Grant to the client with *secret*; refuse any other with *status*."""
    proof = base64.b64encode(f"rig:{secret}".encode())
    grant, refuse = granting("known"), refusing(status, "invalid_client")

    async def say(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        right = seen.values(b"authorization") == [b"Basic " + proof]
        await (grant if right else refuse)(seen, reader, writer)

    return say


async def test_flt_as_06_refused_client_waits_for_its_secret(
    instances: Instances, api: Upstream, redis_server: Server, tmp_path: Path
) -> None:
    """Requests get 502 `credential_rejected` at once, the token endpoint is left alone by all instances, and a new
    secret in its file takes effect without a restart."""
    instances.in_redis(redis_server)
    right, file = canary("right"), tmp_path / "secret"
    file.write_text(canary("wrong"))
    variants = {"as_400": "400 Bad Request", "as_401": "401 Unauthorized"}
    oauth2 = {"client_id": "rig", "client_secret": {"file": str(file)}}
    says = {name: known(right, answer) for name, answer in variants.items()}
    async with each_with(instances, api, says, oauth2=oauth2, timeout={"token": "5s"}) as (sidecar, issuers):
        await until(lambda: all(each.calls for each in issuers.values()), "the first refusal")
        async with instances.start("b") as other:
            for _ in range(5):
                for name in variants:
                    for each in (sidecar, other):
                        assert is_refused(await get(each, name), 502, "credential_rejected")
                await asyncio.sleep(0.3)
            assert {each.calls for each in issuers.values()} == {1}
            for each in (sidecar, other):
                assert await reasons(each) == dict.fromkeys(variants, "the issuer refused the credential")
            assert {(await state(sidecar, name))["state"] for name in variants} == {"rejected"}
            assert api.seen == {}

            file.write_text(right)
            for name in variants:
                for each in (sidecar, other):
                    await eventually(lambda s=each, n=name: status(s, n), 200)
            assert {each.calls for each in issuers.values()} == {2}
            assert await reasons(sidecar) == {}


GARBAGE: dict[str, Script] = {
    "page": saying(message("200 OK", b"<!doctype html><title>Log in</title>")),
    "truncated": saying(message("200 OK", b'{"access_token": "' + canary("truncated").encode())),
    "cut": saying(message("200 OK", b'{"access_token": "abc", "token_type": "Bearer"}')[:-9], close=True),
    "array": saying(message("200 OK", b"[]")),
    "huge": saying(
        message("200 OK", b'{"access_token": "abc", "token_type": "Bearer", "x": "' + b"y" * (10 << 20) + b'"}')
    ),
    "charset": saying(message("200 OK", '{"access_token": "é", "token_type": "Bearer"}'.encode("latin-1"))),
    "bomb": saying(bomb(256)),
}


async def test_flt_as_07_answer_that_is_none_is_weather(instances: Instances, api: Upstream) -> None:
    """None of it is taken for a token, at most 64 KiB of it are read, nothing is unpacked, and requests get 503
    `token_unavailable` until a real answer comes."""
    async with each_with(instances, api, GARBAGE, timeout={"token": "1s"}) as (sidecar, issuers):
        async with sidecar.peak() as samples:
            answers = await asyncio.gather(*(get(sidecar, name) for name in issuers))
        assert all(is_refused(answer, 503, "token_unavailable") for answer in answers)
        assert max(samples) < samples[0] + 48
        assert api.seen == {}
        assert {await generation(sidecar, name) for name in issuers} == {0}
        details = {name: (await state(sidecar, name))["last_renewal"]["detail"] for name in issuers}
        assert {name for name, detail in details.items() if "expected a token in a JSON object" not in detail} == {
            "cut"
        }
        assert "broke off before its answer was complete" in details["cut"]
        await healed(sidecar, issuers)


LIFETIMES: dict[str, tuple[Any, float | None]] = {
    "missing": (..., 300),
    "text": ("3600", 3600),
    "zero": (0, None),
    "negative": (-5, None),
    "huge": (1e12, 300),
    "fraction": (3599.9, 3599.9),
    "null": (None, 300),
}


async def test_flt_as_08_lifetime_is_believed_if_it_can_be(instances: Instances, api: Upstream) -> None:
    """A number or its text is believed, zero and less mean that there is no token, anything else counts as
    `oauth2.lifetime`."""
    says = {name: granting(name, expires_in=value) for name, (value, _) in LIFETIMES.items()}
    usable = {name for name, (_, lifetime) in LIFETIMES.items() if lifetime}
    async with each_with(instances, api, says, timeout={"token": "2s"}) as (sidecar, issuers):
        answers = await asyncio.gather(*(get(sidecar, name) for name in set(LIFETIMES) - usable))
        assert all(is_refused(answer, 503, "token_unavailable") for answer in answers)
        for name, (_, lifetime) in LIFETIMES.items():
            if lifetime:
                await eventually(lambda n=name: status(sidecar, n), 200)
            found = await state(sidecar, name)
            assert found["lifetime"] == pytest.approx(lifetime)
            assert ("already expired" in found["last_renewal"]["detail"]) == (lifetime is None)
        assert set(api.seen) == usable
        assert all(issuers[name].calls == 1 for name in usable)


UNUSABLE: dict[str, dict[str, Any]] = {
    "mac": {"token_type": "mac"},
    "dpop": {"token_type": "DPoP"},
    "empty": {"access_token": ""},
    "injecting": {"access_token": f"{canary('crlf')}\r\nX-Evil: 1"},
    "long": {"access_token": canary("long") + "x" * (16 << 10)},
}


async def test_flt_as_09_unusable_token_is_not_used(instances: Instances, api: Upstream) -> None:
    """It never reaches the upstream and is not stored; requests get 503 `token_unavailable`, and the issuer is asked
    again after minutes, or by `token renew`."""
    says = {name: granting(name, **fields) for name, fields in UNUSABLE.items()}
    async with each_with(instances, api, says, timeout={"token": "2s"}) as (sidecar, issuers):
        answers = await asyncio.gather(*(get(sidecar, name) for name in issuers))
        assert all(is_refused(answer, 503, "token_unavailable") for answer in answers)
        assert api.seen == {}
        assert {await generation(sidecar, name) for name in issuers} == {0}
        details = {name: (await state(sidecar, name))["last_renewal"]["detail"] for name in issuers}
        wrong = {name: "token_type" if "token_type" in fields else "access_token" for name, fields in UNUSABLE.items()}
        assert {name: wrong[name] in detail for name, detail in details.items()} == dict.fromkeys(issuers, True)
        calls = {name: each.calls for name, each in issuers.items()}
        for name, each in issuers.items():
            each.says = granting(name)
            assert await instances.renew(sidecar, name) == 200
            assert await status(sidecar, name) == 200
        assert {name: each.calls for name, each in issuers.items()} == {
            name: known + 1 for name, known in calls.items()
        }


async def test_flt_as_10_drip_ends_at_the_time_out(instances: Instances, api: Upstream, redis_server: Server) -> None:
    """The call ends at `renew.timeout`, its connection is closed, and the right to renew is given back at once, so
    that another instance need not wait for the lease to run out."""
    instances.in_redis(redis_server)
    async with issuer(dripping) as endpoint:
        instances.upstreams["plm"] = plain(api.url, endpoint.url, renew={"timeout": "1s"}, timeout={"token": "2s"})
        async with instances.pair() as pair:
            expired = redis_server.info("stats")["expired_keys"]
            await until(lambda: redis_server.command("KEYS", "auth-sidecar:lease:*"), "the lease")
            await until(lambda: endpoint.now == 0 and endpoint.calls, "the end of the call")
            await until(lambda: not redis_server.command("KEYS", "auth-sidecar:lease:*"), "the end of the lease")
            assert redis_server.info("stats")["expired_keys"] == expired
            assert is_refused(await get(pair[0]), 503, "token_unavailable")
            assert "no complete answer within 1 s" in str([(await state(each))["last_renewal"] for each in pair])
            assert endpoint.most == 1


# It cannot be reached, or is not whom it should be.


async def test_flt_as_11_broken_connection_is_tried_again_with_care(
    instances: Instances, api: Upstream, tmp_path: Path
) -> None:
    """A call that got no answer is made again, a refresh token at most once more, and when that is refused the
    configured grant takes its place, or `/status` says that the next refresh token was lost."""
    async with contextlib.AsyncExitStack() as stack:
        switches = Switches(lifetime=600, supplier_lifetime=None, rotate_refresh=True)
        plm = await stack.enter_async_context(Emulator.start(switches=switches, tls=False))
        grants = {"user": by_password(plm), "bound": await by_refresh_token(plm)}
        relays = {name: await stack.enter_async_context(relay(plm.token_url)) for name in grants}
        for name, each in relays.items():
            instances.upstreams[name] = plain(f"{api.url}/{name}", each.url, grants[name])
        broken = await stack.enter_async_context(issuer(reset))
        instances.upstreams["broken"] = plain(f"{api.url}/broken", broken.url, timeout={"token": "30s"})
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        instances.upstreams["closed"] = plain(
            f"{api.url}/closed", f"http://127.0.0.1:{port}/token", timeout={"token": "1s"}
        )
        relays["bound"].fates = ["dropped"]
        sidecar = await stack.enter_async_context(instances.start())
        assert is_refused(await get(sidecar, "closed"), 503, "token_unavailable")
        assert "cannot be reached" in (await state(sidecar, "closed"))["last_renewal"]["detail"]
        waiting = asyncio.create_task(status(sidecar, "broken"))
        await until(lambda: broken.calls >= 2, "another try")
        broken.says = granting("broken")
        assert await waiting == 200

        assert await status(sidecar, "user") == 200
        relays["user"].fates = ["dropped"]
        api.revoke("user")
        assert await status(sidecar, "user") == 200
        assert relays["user"].grants == ["password", "refresh_token", "refresh_token", "password"]

        assert is_refused(await get(sidecar, "bound"), 502, "credential_rejected")
        assert list(relays["bound"].presented.values()) == [2]
        assert "the next refresh token may have been in it" in (await state(sidecar, "bound"))["last_renewal"]["detail"]


@contextlib.contextmanager
def blackhole(port: int) -> Any:
    """Bind *port* of the IPv6 loopback, where connections are neither taken nor refused."""
    with socket.socket(socket.AF_INET6) as listening, contextlib.ExitStack() as stack:
        listening.bind(("::1", port))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket(socket.AF_INET6))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(("::1", port))
        yield


async def test_flt_as_12_name_that_does_not_resolve_holds_up_no_other(
    instances: Instances, api: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests get 503 `token_unavailable` in time, also while the resolver says nothing, other upstreams are
    served meanwhile, and of several addresses the next is tried when one is silent."""
    names = [str(Path(__file__).with_name("names")), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, names)))
    unresolved = {"nxdomain": "nxdomain.test", "servfail": "servfail.test", "silent": "silent.test"}
    unresolved |= {f"silent{number}": "silent.test" for number in range(8)}  # more than a pool of threads has
    async with issuer(granting("good")) as good:
        port = good.record.port
        for name, host in {**unresolved, "blackhole": "blackhole.test", "other": "localhost"}.items():
            url = f"http://{host}:{port}/token"
            settings = {"renew": {"timeout": "1s"}} if name in unresolved else {}
            total = "1s" if name in unresolved else "20s"
            instances.upstreams[name] = plain(f"{api.url}/{name}", url, timeout={"token": total}, **settings)
        with blackhole(port):
            async with instances.start() as sidecar:
                assert await statuses(sidecar, "blackhole", "other") == {200}
                began = time.monotonic()
                answers = await asyncio.gather(*(get(sidecar, name) for name in unresolved))
                assert time.monotonic() < began + 10
                assert all(is_refused(answer, 503, "token_unavailable") for answer in answers)
                assert set(api.seen) == {"blackhole", "other"}
                assert good.calls == 2
                details = {name: (await state(sidecar, name))["last_renewal"]["detail"] for name in unresolved}
    assert all("cannot be resolved" in details[name] for name in ("nxdomain", "servfail"))
    assert "no complete answer within 1 s" in details["silent"]


def strangers(folder: Path) -> tuple[Path, trustme.LeafCert, dict[str, ssl.SSLContext]]:
    """Return the file of a CA, a certificate of its for localhost, and what servers show that have no such one."""
    ours, theirs = trustme.CA(organization_name="ours"), trustme.CA(organization_name="theirs")
    ours.cert_pem.write_to_path(str(folder / "ca.pem"))
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    certificates = {
        "expired": ours.issue_cert("localhost", not_after=past),
        "misnamed": ours.issue_cert("plm.test"),
        "untrusted": theirs.issue_cert("localhost"),
    }
    contexts = {}
    for name, certificate in certificates.items():
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(contexts[name])
    return folder / "ca.pem", ours.issue_cert("localhost"), contexts


async def test_flt_as_13_secret_is_not_sent_to_a_stranger(instances: Instances, api: Upstream, tmp_path: Path) -> None:
    """Nothing is sent to it, the cause stands in `/status`, it is tried again now and then, and when the certificate
    is mended the next token comes by itself."""
    ca, good, contexts = strangers(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        issuers = {
            name: await stack.enter_async_context(issuer(granting(name), tls=tls)) for name, tls in contexts.items()
        }
        for name, each in issuers.items():
            settings = {"tls": {"ca": str(ca)}, "timeout": {"token": "1s"}}
            instances.upstreams[name] = plain(f"{api.url}/{name}", each.url, insecure_http=True, **settings)
        sidecar = await stack.enter_async_context(instances.start())
        for name in issuers:
            assert is_refused(await get(sidecar, name), 503, "token_unavailable")
            assert "its certificate was refused" in (await state(sidecar, name))["last_renewal"]["detail"]
        assert {name: each.record.seen for name, each in issuers.items()} == {name: [] for name in issuers}
        assert api.seen == {}

        for context in contexts.values():
            good.configure_cert(context)
        for name in issuers:
            await eventually(lambda n=name: status(sidecar, n), 200)


async def test_flt_as_14_redirect_is_not_followed(instances: Instances, api: Upstream) -> None:
    """The secret goes nowhere but to `token_url`, requests get 503 `token_unavailable`, and `/status` says what to
    set."""
    async with issuer(granting("other")) as other:
        lead = saying(message("307 Temporary Redirect", b"", f"Location: {other.url}"))
        async with each_with(instances, api, {"plm": lead}, timeout={"token": "1s"}) as (sidecar, issuers):
            assert is_refused(await get(sidecar), 503, "token_unavailable")
            assert "set token_url to the final address" in (await state(sidecar))["last_renewal"]["detail"]
            assert issuers["plm"].calls >= 1
            assert other.calls == 0
            assert other.record.connections == 0


# It is asked once.


async def test_flt_as_15_same_token_again_is_tried_once(instances: Instances, api: Upstream) -> None:
    """The request is sent once more, its 401 then goes to the script, and the token endpoint is asked again at most
    once in `renew.min_interval`."""
    same = granting("same", access_token=canary("same-again"))
    async with each_with(instances, api, {"plm": same}, renew={"min_interval": "60s"}) as (sidecar, issuers):
        assert await status(sidecar) == 200
        api.revoke("plm")
        answer = await get(sidecar, method="POST")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert "proxy-status" not in answer.headers
        assert issuers["plm"].calls == 2
        assert {await status(sidecar) for _ in range(20)} == {401}
        assert issuers["plm"].calls == 2
        assert await metric(sidecar, "auth_sidecar_attempts_total") == 1 + 2 + 20


USER = {
    "client_id": "user",
    "client_secret": canary("user"),
    "grant_types": ["authorization_code", "refresh_token"],
    "redirect_uris": [REDIRECT_URI],
    "response_types": ["code"],
}


async def test_flt_as_16_slow_answer_is_waited_for_by_all(
    instances: Instances, api: Upstream, redis_server: Server, tmp_path: Path
) -> None:
    """The instance that asked keeps the right to renew, the others wait for its token, and a rotating refresh token
    is used once, so that the grant lives on."""
    instances.in_redis(redis_server)
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(oidc_provider([USER], tmp_path / "oidc.log"))
        first = (await log_in(server, "user", canary("user")))["refresh_token"]
        slow = await stack.enter_async_context(relay(f"{server}/token"))
        oauth2 = {"grant": "refresh_token", "client_id": "user"}
        oauth2 |= {"client_secret": {"value": canary("user")}, "refresh_token": {"value": first}}
        instances.upstreams["plm"] = plain(api.url, slow.url, oauth2, renew={"timeout": "30s"})
        one, other = await stack.enter_async_context(instances.pair())
        assert {await status(one), await status(other)} == {200}

        slow.fates = [10.7]
        renewing = asyncio.create_task(instances.renew(one))
        await until(lambda: slow.arrived == 2, "the call")
        api.revoke("echo")
        waiting = [asyncio.create_task(status(other)) for _ in range(5)]
        assert await renewing == 200
        assert set(await asyncio.gather(*waiting)) == {200}
        assert slow.grants == ["refresh_token"] * 2

        assert await instances.renew(other, process="b") == 200
        assert await status(one) == 200
        assert slow.reused == []
        assert set(slow.statuses) == {200}
