"""What Veeva Vault, Salesforce, Autodesk and 3DEXPERIENCE have that other systems have not."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.canary import canary
from tests.stage import Stage, behind, clean, quick, served, stage
from tests.waiting import until


@contextlib.asynccontextmanager
async def connected(at: Stage, **changes: Any) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """Yield a client behind a sidecar for *at*, and the sidecar's addresses."""
    async with served(at, "one", at.configure(**changes)) as addresses:
        async with behind(addresses, at.folder / "state") as client:
            yield client, addresses


async def metrics(addresses: dict[str, str]) -> str:
    async with httpx.AsyncClient(trust_env=False) as operator:
        return (await operator.get(f"http://{addresses['admin']}/metrics")).text


# veeva-vault


@pytest.mark.parametrize("accept", ["application/json", "application/xml"])
async def test_a_death_with_status_200_is_never_seen(tmp_path: Path, accept: str) -> None:
    """In either spelling; the burst limit is shown, and a document that looks like a death is passed on."""
    async with stage(tmp_path, "veeva-vault") as at, connected(at) as (client, addresses):
        for _ in range(3):
            at.system.kill()
            answer = await client.get(f"{at.base}/api/v24.1/objects/documents", headers={"Accept": accept})
            assert "SUCCESS" in answer.text
            assert accept in answer.headers["Content-Type"]
        document = await client.get(f"{at.base}/api/v24.1/objects/documents/report/file")
        assert document.json()["errors"][0]["type"] == "INVALID_SESSION_ID"
        assert at.system.counters["logins"] == at.system.counters["deaths"] + 1
        calls = at.system.counters["calls"]
        assert f'auth_sidecar_quota_remaining{{upstream="plm"}} {2000 - calls + 1}.0' in await metrics(addresses)
        clean(at)


async def test_a_login_at_another_vault_is_none(tmp_path: Path) -> None:
    """It succeeds, and is refused: both vaults are named to the script."""
    async with stage(tmp_path, "veeva-vault") as at:
        at.system.vault_url = "https://other.veevavault.com/api"
        async with connected(at) as (client, _):
            for _ in range(2):
                answer = await client.get(f"{at.base}/api/v24.1/objects/documents")
                assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
                assert f"expected {at.base}/api or" in answer.json()["detail"]
                assert "https://other.veevavault.com/api" in answer.json()["detail"]
        assert at.system.counters["logins"] == 1


async def test_a_limit_of_logins_is_a_pause(tmp_path: Path) -> None:
    """Told to scripts as a time to wait; nobody insists."""
    async with stage(tmp_path, "veeva-vault") as at:
        at.system.logins_left = 0
        async with connected(at) as (client, _):
            for _ in range(3):
                answer = await client.get(f"{at.base}/api/v24.1/objects/documents")
                assert (answer.status_code, answer.json()["reason"]) == (503, "token_unavailable")
                assert 30 < int(answer.headers["Retry-After"]) <= 60
        assert at.system.counters["limited_logins"] == 1


async def test_a_keepalive_costs_no_login(tmp_path: Path) -> None:
    """It is the recipe's request, in the session that runs."""
    async with stage(tmp_path, "veeva-vault") as at:
        changes = {"extends": "veeva-vault", "keepalive": {"every": "1s"}}
        async with connected(at, recipe=changes) as (client, _):
            assert (await client.get(f"{at.base}/api/v24.1/objects/documents")).status_code == 200
            await until(lambda: at.system.counters["keepalives"] >= 2, "two keep-alives")
        assert at.system.counters["logins"] == 1
        clean(at)


# salesforce

SOAP = (
    '<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" xmlns:u="urn:partner.soap.sforce.com"><e:Header>'
    "<u:SessionHeader><u:sessionId>%s</u:sessionId></u:SessionHeader></e:Header><e:Body><u:query/></e:Body></e:Envelope>"
)


async def test_four_spellings_of_a_death(tmp_path: Path) -> None:
    """JSON, XML, a SOAP fault, Bulk: a renewal each, and the script sees an answer."""
    async with stage(tmp_path, "salesforce") as at, connected(at, **quick("salesforce")) as (client, _):
        form = {"grant_type": "client_credentials", "client_id": "theirs", "client_secret": canary("theirs")}
        told = (await client.post(f"{at.base}/services/oauth2/token", data=form)).json()
        token, url = told["access_token"], f"{at.base}/services"
        assert told["instance_url"] == at.base
        bearer = {"Authorization": f"Bearer {token}"}
        at.system.kill()
        assert (await client.get(f"{url}/data/v59.0/query", headers=bearer)).json()["totalSize"] == 25
        at.system.kill()
        xml = bearer | {"Accept": "application/xml"}
        assert (await client.get(f"{url}/data/v59.0/query", headers=xml)).status_code == 200
        at.system.kill()
        kind = {"Content-Type": "text/xml"}
        soap = await client.post(f"{url}/Soap/u/59.0", content=SOAP % token, headers=kind)
        assert (soap.status_code, "queryResponse" in soap.text) == (200, True)
        at.system.kill()
        bulk = await client.post(
            f"{url}/async/59.0/job",
            content="<jobInfo><externalId>b</externalId></jobInfo>",
            headers={"X-SFDC-Session": token, "Content-Type": "application/xml"},
        )
        assert bulk.status_code == 201
        assert at.system.counters["logins"] == 5
        assert token not in at.system.shown
        clean(at)


async def test_a_token_of_another_instance_is_none(tmp_path: Path) -> None:
    """Both instances are named, and nothing is asked with that token."""
    async with stage(tmp_path, "salesforce") as at:
        at.system.instance = "https://other.my.salesforce.com"
        async with connected(at) as (client, _):
            answer = await client.get(f"{at.base}/services/data/v59.0/query")
            assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
            assert f"expected {at.base} or {at.base}/, got https://other.my.salesforce.com" in answer.json()["detail"]
        assert at.system.counters["calls"] == 0


async def test_a_used_up_quota_with_403(tmp_path: Path) -> None:
    """The vendor's refusal goes out once; what is left is in the gauge before."""
    async with stage(tmp_path, "salesforce", quota=2) as at, connected(at) as (client, addresses):
        url = f"{at.base}/services/data/v59.0/query"
        assert [(await client.get(url)).status_code for _ in range(2)] == [200, 200]
        assert 'auth_sidecar_quota_remaining{upstream="plm"} 14998.0' in await metrics(addresses)
        answers = [await client.get(url) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [403, 503, 503]
        assert answers[0].json()[0]["errorCode"] == "REQUEST_LIMIT_EXCEEDED"
        assert {answer.json()["reason"] for answer in answers[1:]} == {"quota_exhausted"}
        assert at.system.counters["over_quota"] == 1


# autodesk


async def test_whom_it_acts_for_and_a_limit(tmp_path: Path) -> None:
    """X-user-id is added where there is none; a 429 is waited for, also with a write."""
    async with stage(tmp_path, "autodesk") as at, connected(at) as (client, _):
        url = f"{at.base}/api/v3/workspaces/57/items"
        assert (await client.get(url)).status_code == 200
        assert (await client.get(url, headers={"x-user-id": "own@plant.example"})).status_code == 200
        assert at.system.users == {"svc@plant.example", "own@plant.example"}
        at.system.busy = 1
        assert (await client.post(url, json={"title": "one"})).status_code == 201
        assert at.system.rows == {"POST one": 1}


# 3dexperience

ITEMS = "resources/v1/modeler/dseng/dseng:EngItem"


@pytest.mark.parametrize(("dead_status", "lt_in_page"), [(302, False), (302, True), (401, False)])
async def test_a_cas_session_is_renewed_unseen(tmp_path: Path, dead_status: int, lt_in_page: bool) -> None:
    """Whether it is told by a redirect or by 401, and wherever lt stands; stale nonces cost no login."""
    async with stage(tmp_path, "3dexperience") as at:
        at.system.dead_status, at.system.lt_in_page = dead_status, lt_in_page
        async with connected(at) as (client, _):
            for number in range(3):
                at.system.kill()
                answer = await client.post(f"{at.base}/{ITEMS}", json=_item(f"n-{number}"))
                assert (answer.status_code, answer.json()["totalItems"]) == (200, 1)
                assert "set-cookie" not in answer.headers
            assert at.system.counters["logins"] == at.system.counters["deaths"] + 1
            logins = at.system.counters["logins"]
            at.system.stale()
            assert (await client.post(f"{at.base}/{ITEMS}", json=_item("n-9"))).status_code == 200
            assert at.system.counters["logins"] == logins
        assert set(at.system.rows.values()) == {1}
        assert at.system.contexts == {"VPLMAdmin.Plant.Common"}
        clean(at)


async def test_a_password_in_a_query_is_logged_nowhere(tmp_path: Path) -> None:
    """The script's login is answered here; neither its query nor our own login is in the log."""
    theirs = canary("query-password")
    async with stage(tmp_path, "3dexperience") as at, connected(at) as (client, _):
        passport = at.system.places["PASSPORT"]
        service = f"{at.base}/resources/v1/application/CSRF"
        query = {"lt": "x", "username": "theirs", "password": theirs, "service": service}
        answer = await client.post(f"{passport}/login", params=query)
        assert answer.status_code == 302
        assert "/resources/v1/application/CSRF?ticket=ST-" in answer.headers["Location"]
        assert theirs not in answer.text
        log = (tmp_path / "one.log").read_text()
        assert theirs not in log
        assert theirs not in at.system.shown


async def test_the_login_page_again_is_a_wrong_password(tmp_path: Path) -> None:
    """Its status is 200; it is tried once."""
    async with stage(tmp_path, "3dexperience") as at:
        file = at.configure()
        async with served(at, "one", file, password=canary("wrong")) as addresses:
            async with behind(addresses, at.folder / "state") as client:
                for _ in range(2):
                    answer = await client.get(f"{at.base}/{ITEMS}/search")
                    assert (answer.status_code, answer.json()["reason"]) == (502, "credential_rejected")
        assert at.system.counters["refused_logins"] == 1


def _item(title: str) -> dict[str, Any]:
    return {"items": [{"attributes": {"title": title}}]}


# all


@pytest.mark.parametrize(
    ("name", "path", "given", "told"),
    [
        ("veeva-vault", "api/v24.1/objects/documents", {"data": {"name__v": "forbidden-x"}}, "INSUFFICIENT_ACCESS"),
        (
            "salesforce",
            "services/data/v59.0/sobjects/Account",
            {"json": {"Name": "forbidden-x"}},
            "INSUFFICIENT_ACCESS",
        ),
        ("autodesk", "api/v3/workspaces/57/items", {"json": {"title": "forbidden-x"}}, "FORBIDDEN"),
        ("3dexperience", ITEMS, {"json": _item("forbidden-x")}, "no access"),
    ],
)
async def test_ten_refusals_are_no_deaths(tmp_path: Path, name: str, path: str, given: Any, told: str) -> None:
    """Each goes to the script as it came, also ten at once, and none makes a session."""
    async with stage(tmp_path, name) as at, connected(at) as (client, _):
        answers = await asyncio.gather(*(client.post(f"{at.base}/{path}", **given) for _ in range(10)))
        assert all(told in answer.text for answer in answers)
        assert len({(answer.status_code, json.dumps(answer.json())) for answer in answers}) == 1
        assert at.system.counters["forbidden"] >= 10
        assert at.system.counters["logins"] == 1
