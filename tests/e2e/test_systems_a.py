"""What Windchill, SAP Gateway, Aras Innovator and Oracle Fusion have that other systems have not."""

import asyncio
import contextlib
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from hashlib import md5
from pathlib import Path

import httpx
import pytest

from tests.redis_servers import Server, redis_of_session, redis_server
from tests.stage import THEIRS, Stage, behind, clean, report, served, stage, together, two
from tests.waiting import PATIENCE

__all__ = ["redis_of_session", "redis_server"]

READ = {"windchill": "servlet/odata/ProdMgmt/Parts", "sap-odata": "API_PRODUCT_SRV/A_Product"}
MEMBER = {"windchill": "Number", "sap-odata": "Product"}
OLD_SCRIPT = ("old-script", THEIRS)


@contextlib.asynccontextmanager
async def connected(at: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client behind a sidecar for *at*."""
    async with served(at, "one", at.configure()) as addresses:
        async with behind(addresses, at.folder / "state") as client:
            yield client


@pytest.mark.parametrize("name", ["windchill", "sap-odata", "aras", "oracle-fusion"])
async def test_a_wrong_password_is_tried_once(tmp_path: Path, name: str) -> None:
    """Whatever scripts ask for: nobody gets the account locked. Nor by one that was right, once a login has failed."""
    async with stage(tmp_path, name) as at:
        async with served(at, "one", at.configure(), password=THEIRS) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                for number in range(5):
                    answer = await client.post(f"{at.base}/x/{number}", json={}, auth=OLD_SCRIPT)
                    assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
        assert at.system.counters["refused_logins"] == 1
        async with served(at, "two", at.configure()) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                assert (await client.get(f"{at.base}/x")).status_code == 404
                at.system.password = THEIRS
                at.system.kill()
                answers = [await client.get(f"{at.base}/x/{number}") for number in range(5)]
                assert {answer.status_code for answer in answers} == {502}
        assert at.system.counters["refused_logins"] <= 3


# windchill


@pytest.mark.parametrize(("old", "value"), [(False, ""), (True, "NonceToken"), (True, "value")])
async def test_a_nonce_is_fetched_anew_without_a_login(tmp_path: Path, old: bool, value: str) -> None:
    """From servers of any age; the script knows nothing of nonces, and each write is done once."""
    async with stage(tmp_path, "windchill") as at:
        at.system.old, at.system.value = old, value
        async with connected(at) as client:
            await client.get(f"{at.base}/{READ['windchill']}")
            for number in range(6):
                at.system.stale()
                url = f"{at.base}/servlet/odata/{'v6/' if number % 2 else ''}ProdMgmt/Parts"
                answer = await client.post(url, json={"Number": f"n-{number}"}, auth=OLD_SCRIPT)
                assert answer.status_code == 201
                assert not {"set-cookie", "csrf_nonce"} & set(answer.headers)
        assert (at.system.counters["logins"], at.system.counters["stale"]) == (1, 6)
        assert at.system.rows == {f"POST n-{number}": 1 for number in range(6)}
        clean(at)


async def test_a_missing_permission_is_no_stale_nonce(tmp_path: Path) -> None:
    """Its 403 goes to the script as it came, one refetch each at the most; and a death after it goes unseen."""
    async with stage(tmp_path, "windchill") as at, connected(at) as client:
        url = f"{at.base}/servlet/odata/ProdMgmt/Parts"
        await client.get(url)
        fetched = at.system.counters["nonces"]
        for number in range(10):
            answer = await client.post(url, json={"Number": f"forbidden-{number}"})
            assert (answer.status_code, "permission" in answer.text) == (403, True)
        assert at.system.counters["forbidden"] == 10
        assert at.system.counters["nonces"] - fetched <= 10
        assert at.system.counters["logins"] == 1
        at.system.kill()
        assert (await client.post(url, json={"Number": "n-1"})).status_code == 201
        assert at.system.counters["logins"] == 2


@pytest.mark.parametrize("name", ["windchill", "sap-odata"])
async def test_a_script_without_cookies_makes_no_session_of_its_own(tmp_path: Path, name: str) -> None:
    """Each of its calls would be one; with the sidecar there is one for each death, and one for each stop."""
    async with stage(tmp_path, name) as at:
        async with httpx.AsyncClient(verify=False, trust_env=False) as direct:
            for _ in range(5):
                direct.cookies.clear()
                await direct.get(f"{at.base}/{READ[name]}", auth=(at.system.user, at.system.password))
        assert at.system.counters["logins"] == 5
        async with connected(at) as client:
            for _ in range(4):
                for _ in range(5):
                    answer = await client.get(f"{at.base}/{READ[name]}", auth=OLD_SCRIPT)
                    assert (answer.status_code, answer.headers.get("set-cookie")) == (200, None)
                at.system.kill()
        assert at.system.counters["logins"] == 5 + 4


@pytest.mark.parametrize("name", ["windchill", "sap-odata"])
async def test_parallel_writes_meet_the_death_of_a_nonce(tmp_path: Path, name: str) -> None:
    """Each in a session that the server made for it: no refusal reaches a script, and each write is done once."""
    async with stage(tmp_path, name, login_delay=0.05) as at, connected(at) as client:

        async def write(number: int) -> int:
            body = {MEMBER[name]: f"n-{number}"}
            return (await client.post(f"{at.base}/{READ[name]}", json=body, auth=OLD_SCRIPT)).status_code

        statuses = []
        for death in range(6):
            first = [asyncio.create_task(write(20 * death + number)) for number in range(10)]
            await asyncio.sleep(0)
            at.system.kill() if death % 2 else at.system.stale()
            statuses += await asyncio.gather(*first, *(write(20 * death + number) for number in range(10, 20)))
        assert statuses == [201] * 120
        assert (len(at.system.rows), set(at.system.rows.values())) == (120, {1})


@pytest.mark.parametrize(("name", "clients"), [("windchill", ("requests", "LWP")), ("sap-odata", ("requests", "Node"))])
async def test_two_sidecars_share_the_pair(
    tmp_path: Path, redis_server: Server, name: str, clients: tuple[str, str]
) -> None:
    """Session and nonce of one are those of the other, over five deaths that scripts of both meet."""
    async with stage(tmp_path, name, dies_after=[5, 12, 19, 27, 36]) as at, two(at, redis_server) as addresses:
        found = await together(at, (*clients, clients[0]), addresses)
        assert [told["failures"] for told, _ in found] == [[], [], []], found
        assert (at.system.counters["deaths"], set(at.system.rows.values())) == (5, {1})
        clean(at, *(output for _, output in found))


async def test_the_spelling_of_perl_is_understood(tmp_path: Path) -> None:
    """LWP makes CSRF-NONCE of CSRF_NONCE, which the system refuses; behind the sidecar such a script works."""
    script = """
        use JSON::PP; use LWP::UserAgent; my ($base) = @ARGV;
        my $agent = LWP::UserAgent->new(cookie_jar => {}, timeout => 120);
        $agent->default_header(Authorization => 'Basic ' . $ENV{BASIC});
        my $told = $agent->get("$base/servlet/odata/PTC/GetCSRFToken()");
        my $answer = $agent->post("$base/servlet/odata/ProdMgmt/Parts", Content => '{"Number": "p-1"}',
            CSRF_NONCE => decode_json($told->content)->{NonceValue});
        print encode_json({ status => $answer->code + 0 }), "\\n";
    """
    async with stage(tmp_path, "windchill") as at:
        at.configure()
        basic = httpx.BasicAuth(at.system.user, at.system.password)._auth_header.removeprefix("Basic ")
        for before, status in ((["env", f"PERL_LWP_SSL_CA_FILE={at.system.ca_path}"], 403), (at.exec(), 201)):
            process = await asyncio.create_subprocess_exec(
                *(*before, "perl", "-e", script, at.base), env=at.environ() | {"BASIC": basic}, stdout=PIPE, stderr=PIPE
            )
            told, _ = await report(process)
            assert told["status"] == status


async def test_a_batch_shows_the_nonce_outside(tmp_path: Path) -> None:
    """Its parts go out as they came, once, also where the nonce dies."""
    part = '--b\r\nContent-Type: application/http\r\n\r\nPOST Parts HTTP/1.1\r\n\r\n{"Number": "b-%d"}\r\n'
    body = "".join([*(part % number for number in range(3)), "--b--\r\n"])
    async with stage(tmp_path, "windchill") as at, connected(at) as client:
        await client.get(f"{at.base}/servlet/odata/ProdMgmt/Parts")
        at.system.stale()
        url = f"{at.base}/servlet/odata/ProdMgmt/$batch"
        answer = await client.post(url, content=body, headers={"Content-Type": "multipart/mixed;boundary=b"})
        assert answer.text.count("HTTP/1.1 201") == 3
        assert at.system.rows == {f"POST b-{number}": 1 for number in range(3)}
        assert at.system.counters["stale"] == 1


# sap-odata


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["API_PRODUCT_SRV/", "API_PRODUCT_SRV/A_Product", ""])
async def test_a_script_that_fetches_a_token_gets_one_that_it_can_go_on_with(
    tmp_path: Path, method: str, path: str
) -> None:
    """With the answer that it asked for, also where that is an error; the real one stays here, whoever fetched it."""
    async with stage(tmp_path, "sap-odata") as at, connected(at) as client:
        at.system.heads = path != "API_PRODUCT_SRV/"
        for number, word in enumerate(("Fetch", "fetch", "FETCH")):
            told = await client.request(method, f"{at.base}/{path}", headers={"X-CSRF-Token": word}, auth=OLD_SCRIPT)
            assert told.status_code == (405 if method == "HEAD" and not at.system.heads else 200 if path else 404)
            assert len(told.headers.get_list("x-csrf-token")) == 1
            assert told.cookies
            assert bool(told.content) is (method == "GET")
            at.system.kill()
            given = {"X-CSRF-Token": told.headers["X-CSRF-Token"]}
            url = f"{at.base}/API_PRODUCT_SRV/A_Product"
            answer = await client.post(url, json={"Product": f"p-{number}"}, headers=given, auth=OLD_SCRIPT)
            assert (answer.status_code, "x-csrf-token" in answer.headers) == (201, False)
            clean(at, str(told.headers).encode(), told.content)
        assert at.system.rows == {f"POST p-{number}": 1 for number in range(3)}


@pytest.mark.parametrize("root", ["/", "/API_PRODUCT_SRV/"])
async def test_a_missing_authorization_is_no_stale_token(tmp_path: Path, root: str) -> None:
    """Its 403 says nothing of a token, and none is fetched; a script that never heard of tokens can write."""
    async with stage(tmp_path, "sap-odata") as at:
        credential = at.system.credential | {"password": {"env": "OURS"}, "csrf_url": at.base + root}
        async with served(at, "one", at.configure(credential=credential)) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                url = f"{at.base}/API_PRODUCT_SRV/A_Product"
                assert (await client.post(url, json={"Product": "p-1"})).status_code == 201
                fetched = at.system.counters["nonces"]
                for _ in range(10):
                    answer = await client.post(url, json={"Product": "forbidden"})
                    assert (answer.status_code, "authorization" in answer.text) == (403, True)
                assert (at.system.counters["nonces"], at.system.counters["forbidden"]) == (fetched, 10)
                at.system.stale()
                for method in ("POST", "MERGE", "PUT", "DELETE"):
                    answer = await client.request(method, url, json={"Product": f"p-{method}"})
                    assert "CSRF" not in answer.text
                assert at.system.counters["nonces"] == fetched + 1
                assert at.system.counters["logins"] == 1


async def test_a_batch_of_sap_shows_the_token_outside(tmp_path: Path) -> None:
    """Its parts go out as they came, once, also where session and token die."""
    part = "--b\nContent-Type: application/http\n\nPOST A_Product HTTP/1.1\nContent-Type: application/json\n\n%s\n\n"
    body = "".join([*(part % f'{{"Product": "b-{number}"}}' for number in range(3)), "--b--\n"])
    async with stage(tmp_path, "sap-odata") as at, connected(at) as client:
        await client.get(f"{at.base}/API_PRODUCT_SRV/A_Product")
        at.system.kill()
        url = f"{at.base}/API_PRODUCT_SRV/$batch"
        answer = await client.post(url, content=body, headers={"Content-Type": "multipart/mixed; boundary=b"})
        assert (answer.status_code, answer.text.count("HTTP/1.1 201")) == (202, 3)
        assert at.system.rows == {f"POST b-{number}": 1 for number in range(3)}


# aras

ADD = '<Item type="Part" action="add"><item_number>%s</item_number></Item>'


async def test_the_fields_of_old_aml_scripts_become_a_bearer_token(tmp_path: Path) -> None:
    """Each of their calls shows name and hash; neither gets there, the database does, and deaths go unseen."""
    async with stage(tmp_path, "aras") as at, connected(at) as client:
        hashed = md5(THEIRS.encode(), usedforsecurity=False).hexdigest()
        shown = {"AUTHUSER": "old-script", "AUTHPASSWORD": hashed, "DATABASE": at.system.database}
        url, apply = f"{at.base}/Server/InnovatorServer.aspx", {"SOAPAction": "ApplyAML"}
        for number in range(9):
            answer = await client.post(url, content=ADD % f"a-{number}", headers=shown | apply)
            assert '<Result><Item type="Part"' in answer.text
            if number % 3 == 2:
                at.system.kill()
        assert (await client.post(url, content="<logoff/>", headers={"SOAPAction": "LogOff"})).text.count("<Result/>")
        assert (at.system.counters["aml_alone"], at.system.counters["logouts"]) == (0, 0)
        assert at.system.counters["databases"] == 9 + 2
        assert at.system.counters["logins"] == 3
        assert at.system.rows == {f"POST a-{number}": 1 for number in range(9)}
        clean(at)


@pytest.mark.parametrize("told", ["401", "json", "fault", "early"])
async def test_an_expiry_of_aras_is_understood_in_each_form(tmp_path: Path, told: str) -> None:
    """A bare 401 of OData, the code of a fault in JSON and in XML, both with 200; also before the body was read."""
    async with stage(tmp_path, "aras", early=told == "early") as at, connected(at) as client:
        at.system.json_timeout = told == "json"
        for number in range(4):
            at.system.kill()
            if told == "fault":
                url, body = f"{at.base}/Server/InnovatorServer.aspx", ADD % f"e-{number}"
                answer = await client.post(url, content=body, headers={"SOAPAction": "ApplyItem"})
                assert "<Result><Item" in answer.text
            else:
                body = {"item_number": f"e-{number}", "filler": "x" * 200_000}
                answer = await client.post(f"{at.base}/Server/odata/Part", json=body)
                assert answer.status_code == 201
        assert at.system.rows == {f"POST e-{number}": 1 for number in range(4)}
        assert at.system.counters["logins"] <= 5


async def test_a_fault_that_is_no_expiry_costs_no_login(tmp_path: Path) -> None:
    """What AML says of a missing item, and OData of a locked one, goes to the script as it came."""
    async with stage(tmp_path, "aras") as at, connected(at) as client:
        for _ in range(3):
            answer = await client.post(f"{at.base}/Server/odata/Part", json={"item_number": "locked"})
            assert (answer.status_code, "Authentication.ItemIsLocked" in answer.text) == (400, True)
        assert at.system.counters["logins"] == 1


@pytest.mark.parametrize("discovers", [True, False])
async def test_the_hash_alone_will_do(tmp_path: Path, discovers: bool) -> None:
    """Where nobody knows the password any more; also at a server that has no documents of discovery."""
    async with stage(tmp_path, "aras") as at:
        at.system.discovers = discovers
        hashed = md5(at.system.password.encode(), usedforsecurity=False).hexdigest()
        credential = at.system.credential | {"password_hash": {"env": "OURS"}}
        async with served(at, "one", at.configure(credential=credential), password=hashed) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                assert (await client.get(f"{at.base}/Server/odata/Part")).status_code == 200
                # The paths of scripts that were written down once are spelled in any case.
                told = await client.post(f"{at.base}/oauthserver/connect/token", data={"grant_type": "password"})
                assert told.json()["access_token"].count(".") == 2
        assert at.system.counters["logins"] == 1


async def test_a_wrong_hash_is_shown_once(tmp_path: Path) -> None:
    """The script's own login is told so."""
    async with stage(tmp_path, "aras") as at:
        async with served(at, "one", at.configure(), password=THEIRS) as addresses:
            async with behind(addresses, tmp_path / "state") as client:
                for _ in range(3):
                    told = await client.post(f"{at.base}/OAuthServer/connect/token", data={"grant_type": "password"})
                    assert (told.status_code, told.json()["reason"]) == (502, "credential_rejected")
        assert (at.system.counters["refused_logins"], at.system.counters["logins"]) == (1, 0)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_discovery_stays_in_the_scheme_that_a_script_uses(tmp_path: Path, scheme: str) -> None:
    """One that speaks http:// to the proxy may not trust its authority: it is led to http:// again."""
    async with stage(tmp_path, "aras") as at, connected(at) as client:
        base = at.base.replace("https", scheme)
        oauth = (await client.get(f"{base}/Server/OAuthServerDiscovery.aspx")).json()["locations"][0]["uri"]
        assert oauth == f"{base}/OAuthServer/"
        found = (await client.get(f"{oauth}.well-known/openid-configuration")).json()
        assert found["token_endpoint"] == f"{base}/OAuthServer/connect/token"
        assert found["protocol_info"]["authorization_header"] == "Authorization"
        assert (await client.get(f"{base}/Server/odata/Part")).status_code == 200
        assert at.system.counters["discoveries"] == 1


# oracle-fusion


async def test_milliseconds_are_no_seconds(tmp_path: Path) -> None:
    """A token of 14400000 is renewed ahead of its four hours; one of eight seconds is renewed while a script works."""
    async with stage(tmp_path, "oracle-fusion", longest=8.0) as at, connected(at) as client:
        url = f"{at.base}/resources/11.13.18.05/itemsV2"
        assert (await client.get(url)).status_code == 200
        async with asyncio.timeout(PATIENCE):
            while at.system.counters["logins"] < 2:
                assert (await client.get(url)).status_code == 200
                await asyncio.sleep(0.2)
        # Ahead of its end: no request met a dead one.
        assert at.system.counters["refused"] == 0


async def test_a_scope_that_is_missing_is_no_death(tmp_path: Path) -> None:
    """Its 401 goes to the script as it came, without a login; a 401 of a dead token does not."""
    async with stage(tmp_path, "oracle-fusion") as at, connected(at) as client:
        base = f"{at.base}/resources/11.13.18.05"
        for _ in range(5):
            answer = await client.post(f"{base}/productChangeOrders", json={})
            assert (answer.status_code, answer.json()["detail"]) == (401, "Invalid token scope")
        assert (at.system.counters["logins"], at.system.counters["out_of_scope"]) == (1, 5)
        at.system.kill()
        assert (await client.head(f"{base}/itemsV2")).status_code == 404  # an answer without a body says it too
        assert at.system.counters["logins"] == 2
