"""What the lines of a diagnosis say, by what was found; and that the page of operations has a row for each."""

import asyncio
import math
import re
import socket
from pathlib import Path
from typing import Any

import certifi
import pytest

from sidecar.ca.trust import Trust
from sidecar.clock import SystemClock
from sidecar.errors import ConfigurationError, Reason, Refusal
from sidecar.policy.routing import parse_base_url
from sidecar.run.credentials import Shared
from sidecar.run.doctor import examine, machine, storing, subject
from sidecar.run.doctor.asking import Told, said
from sidecar.run.doctor.check import Row, Verdict
from sidecar.run.doctor.login import ending, got, granted, lasting, refused
from sidecar.run.doctor.reaching import Reached, certificate, clocks, reach
from sidecar.run.systems import system_of
from sidecar.secret import Secret
from sidecar.settings import Settings
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.protocols import BrokerStatus
from sidecar.tokens.seal import Keys, new_key, parse_keys
from sidecar.tokens.store import Stored
from sidecar.tokens.token import Token
from tests.canary import canary
from tests.waiting import eventually

OPERATIONS = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
NOW = SystemClock().now()


def settings(**upstream: Any) -> Settings:
    plm = {
        "base_url": "https://plm.example.com",
        "oauth2": {
            "token_url": "https://sso.example.com/token",
            "client_id": "sync",
            "client_secret": {"value": canary("client")},
        },
    }
    plm["oauth2"] |= upstream.pop("oauth2", {})  # type: ignore[operator]
    return Settings.model_validate({"upstreams": {"plm": plm | upstream}})


def token(lifetime: float = 3600.0, **more: Any) -> Token:
    given = {"issued_at": NOW, "expires_at": NOW + lifetime, "granted": 1, "source": "expires_in", "how": "password"}
    return Token(**({"values": {"access_token": Secret(canary("token"))}} | given | more))  # type: ignore[arg-type]


def status(**more: Any) -> BrokerStatus:
    given: dict[str, Any] = {
        "state": "valid",
        "usable": True,
        "attempted": True,
        "token": token(),
        "expires_in": 3600.0,
        "generation": 1,
        "last": None,
    }
    return BrokerStatus(**(given | more))


def reached(host: str, skew: float | None) -> Reached:
    return Reached(origin=parse_base_url(f"https://{host}"), skew=skew)


def test_the_page_has_a_row_for_each_line() -> None:
    """In the order of the lines, each with what it looks at and a remedy."""
    table = OPERATIONS.split("\n## doctor\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", table, re.MULTILINE)
    assert [name for name, _, _ in rows] == [row.value for row in Row]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "words"),
    [
        (0.0, None, Verdict.PASS, "agree"),
        (29.0, None, Verdict.PASS, "agree"),
        (31.0, None, Verdict.WARN, "this machine's clock is 31s behind that of plm.example"),
        (-299.0, None, Verdict.WARN, "this machine's clock is 4m 59s ahead of that of plm.example"),
        (301.0, None, Verdict.FAIL, "see which of the two is wrong"),
        (3600.0, 3610.0, Verdict.FAIL, "this machine's clock is 1h 10s behind: plm.example and sso.example agree"),
        (-3600.0, -3600.0, Verdict.FAIL, "this machine's clock is 1h ahead: "),
        (3600.0, 2.0, Verdict.FAIL, "the clock of plm.example is 1h ahead of this machine's and that of the others"),
        (-2.0, -3600.0, Verdict.FAIL, "the clock of sso.example is 1h behind this machine's"),
        (3600.0, -3600.0, Verdict.FAIL, "see which of the two is wrong"),
    ],
)
def test_whose_clock_is_wrong(ours: float, theirs: float | None, verdict: Verdict, words: str) -> None:
    """Two that agree are right; two that differ may both be wrong."""
    others = [] if theirs is None else [reached("sso.example", theirs)]
    check = clocks(reached("plm.example", ours), others, "plm")
    assert check is not None
    assert check.verdict is verdict
    assert words in f"{check.what}; {check.remedy}"


def test_who_tells_no_time_has_no_clock() -> None:
    """Without a Date there is no line."""
    assert clocks(reached("plm.example", None), [reached("sso.example", None)], "plm") is None


@pytest.mark.parametrize(
    ("lifetime", "upstream", "left", "words"),
    [
        (3600.0, {}, None, ""),
        (3600.0, {"oauth2": {"lifetime": "1h"}}, 3590.0, ""),
        (3500.0, {"oauth2": {"lifetime": "1h"}}, None, ""),
        (900.0, {"oauth2": {"lifetime": "1h"}}, None, "granted 15m (expires_in), configured 1h"),
        (7200.0, {"oauth2": {"lifetime": "1h"}}, None, ""),
        (3600.0, {}, 600.0, "the upstream says 10m"),
        (3600.0, {"renew": {"margin": "31m"}}, None, "renew.margin is 31m, over half"),
        (3600.0, {"renew": {"margin": "60%"}}, None, "renew.margin is 36m, over half"),
        (3600.0, {"renew": {"margin": "50%"}}, None, ""),
    ],
)
def test_lifetimes_are_compared(lifetime: float, upstream: dict[str, Any], left: float | None, words: str) -> None:
    """What was configured, what was granted and what the upstream counts; within 5 % they are the same."""
    given = settings(**upstream).upstreams["plm"]
    system = system_of("plm", given, SystemClock(), None)
    check = lasting(token(lifetime), given, system, left, SystemClock(), "plm")
    assert check.verdict is (Verdict.WARN if words else Verdict.PASS)
    assert words in check.what


def test_a_session_without_an_end_has_no_lifetime_to_compare() -> None:
    """It is used until the upstream says otherwise."""
    given = settings().upstreams["plm"]
    system = system_of("plm", given, SystemClock(), None)
    check = lasting(token(math.inf), given, system, 10.0, SystemClock(), "plm")
    assert (check.verdict, "no end is told" in check.what) == (Verdict.PASS, True)


@pytest.mark.parametrize(
    ("given", "every", "verdict", "words"),
    [
        (token(), None, Verdict.PASS, "absolute"),
        (token(math.inf), None, Verdict.PASS, "none is known"),
        (token(math.inf, idle=5400.0), None, Verdict.PASS, "sliding: 1h 30m after the last use"),
        (token(7200.0, idle=600.0), 300.0, Verdict.PASS, "in any case after 2h"),
        (token(math.inf, idle=600.0), 600.0, Verdict.WARN, "keepalive.every below 10m"),
    ],
)
def test_what_ends_it_is_told(given: Token, every: float | None, verdict: Verdict, words: str) -> None:
    """Use moves the end, or it does not; a keep-alive that comes too late is told."""
    check = ending(given, every, "plm")
    assert check.verdict is verdict
    assert words in f"{check.what}; {check.remedy}"


@pytest.mark.parametrize(
    ("scope", "kept", "missing", "wrong"),
    [
        (None, False, "", {}),
        ("api", False, "", {}),
        ("api offline_access", True, "", {}),
        ("api offline_access", False, "", {Row.REFRESH: Verdict.WARN}),
        ("api admin", False, "admin", {Row.SCOPE: Verdict.FAIL}),
    ],
)
def test_scope_and_refresh_token(scope: str | None, kept: bool, missing: str, wrong: dict[Row, Verdict]) -> None:
    """Less than was asked for is an error; a refresh token that was asked for and did not come a warning."""
    given = settings(oauth2={"scope": scope}).upstreams["plm"]
    system = system_of("plm", given, SystemClock(), None)
    checks = list(granted(token(missing=missing), status(kept=kept), system, "plm"))
    assert {check.name: check.verdict for check in checks if check.verdict is not Verdict.PASS} == wrong


def test_whose_token_it_is() -> None:
    """Obtained here, or by another instance; with one seat, how often that was taken."""
    plm = settings().upstreams["plm"]
    (own,) = got(token(by="me"), status(), plm, "me", "plm")
    (shared,) = got(token(by="other/1"), status(), plm, "me", "plm")
    assert "was obtained by password" in own.what
    assert "that other/1 obtained is used" in shared.what
    base = {"preset": "arena", "credential": {"email": "a", "password": {"value": canary("arena")}}}
    arena = Settings.model_validate({"upstreams": {"arena": base}}).upstreams["arena"]
    found = list(got(token(by="other/1", how="login"), status(taken=2), arena, "me", "arena"))
    assert [(check.name, check.verdict) for check in found] == [(Row.LOGIN, Verdict.PASS), (Row.SEAT, Verdict.WARN)]
    assert "2 times in a row" in found[1].what


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        (Reason.CREDENTIAL_REJECTED, Row.LOGIN),
        (Reason.TOKEN_UNAVAILABLE, Row.LOGIN),
        (Reason.SEAT_TAKEN, Row.SEAT),
        (Reason.QUOTA_EXHAUSTED, Row.QUOTA),
        (Reason.SHUTTING_DOWN, Row.LOGIN),
    ],
)
def test_refusals_are_told_in_the_words_of_findings(reason: Reason, row: Row) -> None:
    """With the other side's words, and steps."""
    check = refused(Refusal(reason, "code 4711"), "plm", NOW, NOW + 60)
    assert (check.name, check.verdict, check.upstream) == (row, Verdict.FAIL, "plm")
    assert "code 4711" in check.what
    assert check.remedy


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, None),
        ({"NO_PROXY": "example.org"}, None),
        ({"NO_PROXY": "a.example, .example.com"}, "NO_PROXY has .example.com"),
        ({"no_proxy": "*"}, "NO_PROXY has *"),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, None),
        ({"HTTPS_PROXY": f"http://user:{canary('proxy')}@proxy.example:3128"}, "HTTPS_PROXY names proxy.example:3128"),
        ({"all_proxy": "proxy.example"}, "all_proxy names proxy.example:80"),
        ({"HTTPS_PROXY": "http://127.0.0.1:8080", "https_proxy": "http://localhost:8080"}, None),
        ({"HTTPS_PROXY": "http://127.0.0.1:4711"}, None),
        ({"HTTPS_PROXY": "http://127.0.0.1:4712"}, "names localhost:4712"),
        ({"HTTPS_PROXY": "http://[nothing"}, "names what is no URL"),
    ],
)
def test_proxy_variables(environ: dict[str, str], words: str | None) -> None:
    """Those that hide an upstream, and those that name another proxy; our own ports do no harm."""
    found = machine.proxy(settings(), environ, {"proxy": "127.0.0.1:4711"}, SystemClock())
    assert [check.verdict for check in found] == [Verdict.PASS if words is None else Verdict.WARN]
    assert (words or "no proxy variable") in found[0].what
    assert canary("proxy") not in f"{found}"


def test_certificate_variables_where_the_proxy_leads_here(tmp_path: Path) -> None:
    """Without our authority clients refuse what the sidecar shows; who goes elsewhere is not looked at."""
    given = settings().model_copy(update={"state_dir": tmp_path})
    here = {"HTTPS_PROXY": "http://127.0.0.1:8080"}
    assert machine.ca(given, here, {}) is None  # it has never run
    trust = Trust(tmp_path / "ca", frozenset({"plm.example.com"}), SystemClock(), lambda _: None)
    trust.prepare()
    assert machine.ca(given, {"HTTPS_PROXY": "http://proxy.example:3128"}, {}) is None
    checks = [
        machine.ca(given, here | more, {})
        for more in (
            {},
            {"SSL_CERT_FILE": certifi.where(), "CURL_CA_BUNDLE": str(trust.bundle)},
            {"SSL_CERT_FILE": str(tmp_path / "none")},
            {"SSL_CERT_FILE": str(trust.bundle), "NODE_EXTRA_CA_CERTS": str(trust.roots)},
        )
    ]
    assert [check.verdict for check in checks if check] == [*[Verdict.WARN] * 3, Verdict.PASS]
    assert checks[1] is not None
    assert checks[1].what.startswith("SSL_CERT_FILE: without")


@pytest.mark.parametrize(
    ("more", "rows", "words"),
    [
        ({}, {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.PASS}, ""),
        ({"status": 401}, {Row.UPSTREAM: Verdict.FAIL}, "refuses the credential"),
        ({"status": 401, "refused": True, "fresh": True}, {Row.UPSTREAM: Verdict.FAIL}, "refuses a fresh credential"),
        ({"status": 200, "refused": True}, {Row.UPSTREAM: Verdict.FAIL}, "refuses the credential"),
        ({"status": 403}, {Row.UPSTREAM: Verdict.WARN}, "may not do this"),
        ({"status": 429}, {Row.UPSTREAM: Verdict.WARN}, "too often"),
        ({"status": 429, "spent": True}, {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.PASS}, ""),
        ({"status": 503}, {Row.UPSTREAM: Verdict.WARN}, "in trouble"),
        ({"status": 404}, {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.WARN}, "check upstreams.plm.base_url"),
        ({"status": 404, "wanted": True}, {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.WARN}, "keepalive.path"),
        ({"status": 404, "proven": True}, {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.PASS}, "says little"),
        ({"status": 302, "location": "/login"}, {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.PASS}, ""),
        (
            {"status": 302, "location": "https://sso.example/x"},
            {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.WARN},
            "another host, sso.example",
        ),
        ({"status": 302, "location": "http://["}, {Row.UPSTREAM: Verdict.PASS, Row.BASE_URL: Verdict.WARN}, "no URL"),
    ],
)
def test_what_an_answer_says(more: dict[str, Any], rows: dict[Row, Verdict], words: str) -> None:
    """Of the credential, of the upstream, and of its address."""
    fields = ((b"Location", more.pop("location", "").encode()),)
    given: dict[str, Any] = {
        "line": "GET /x",
        "status": 200,
        "fields": fields,
        "fresh": False,
        "refused": False,
        "spent": False,
        "wanted": False,
        "proven": False,
    }
    found = list(said("plm", settings().upstreams["plm"], Told(**(given | more))))
    assert {check.name: check.verdict for check in found} == rows
    assert words in " ".join(f"{check.what}; {check.remedy}" for check in found)


def test_a_certificate_that_is_not_trusted_names_its_issuer() -> None:
    """And one that was not seen has no line."""
    origin = parse_base_url("https://plm.example.com")
    check = certificate(Reached(origin=origin, distrusted="self-signed", signed_by="CN=Plant"), "plm")
    assert check is not None
    assert "(self-signed); it was issued by CN=Plant" in check.what
    assert certificate(Reached(origin=origin, fault="refused"), "plm") is None
    assert certificate(Reached(origin=parse_base_url("http://plm.example.com")), "plm") is None


class Forgetful(MemoryStore):
    """Takes every word, and has none."""

    async def announced(self) -> dict[str, bytes]:
        return {}


class Taken(MemoryStore):
    """Has a lease of somebody else's on everything."""

    async def take(self, key: str, owner: str, ttl: float) -> tuple[bool, Stored]:
        return False, await self.read(key)


@pytest.mark.parametrize(
    ("store", "words"),
    [(MemoryStore(), ""), (Forgetful(), "not there when it is read"), (Taken(), "a lease that nobody has")],
)
async def test_a_store_is_tried(store: MemoryStore, words: str, tmp_path: Path) -> None:
    """What is written is to be there again, and a lease to be had; nothing is left behind."""
    made = Secret(new_key())
    keys = Keys(lambda: parse_keys([made]), SystemClock())
    shared = Shared(store=store, keys=keys, owner="me", clock=SystemClock(), emit=lambda _: None, marks=tmp_path)
    (check,) = await storing.store(settings(), shared, [], 5.0)
    assert check.verdict is (Verdict.FAIL if words else Verdict.PASS)
    assert words in check.what
    await eventually(store.announced, {})


async def test_who_is_silent_is_given_up() -> None:
    """A server that takes the connection and says nothing holds nobody up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        origin = parse_base_url(f"http://127.0.0.1:{silent.getsockname()[1]}")
        found = await reach(origin, await subject_context(), SystemClock(), 0.2)
    assert found.fault == "no answer within 0.2 s"


async def subject_context() -> Any:
    """Return a context as an upstream without settings has it."""
    from sidecar.auth.tls import Contexts
    from sidecar.settings import Tls

    return await Contexts().of(Tls())


async def test_secrets_are_told_by_key_path(tmp_path: Path) -> None:
    """A file that is not there, and a program that takes too long; the others are read."""
    given = settings(
        oauth2={"client_secret": {"file": str(tmp_path / "x")}, "grant": "password", "username": "u"}
        | {"password": {"command": ["sleep", "2"]}}
    )
    found = await machine.secrets(given, 0.1)
    assert [check.verdict for check in found] == [Verdict.FAIL] * 2
    text = {check.what.partition(":")[0]: check.what for check in found}
    assert "No such file" in text["upstreams.plm.oauth2.client_secret"]
    assert "not here within 0.1 s" in text["upstreams.plm.oauth2.password"]


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    """It is named, and nothing goes on from there."""
    (tmp_path / "state").write_text("")
    found = machine.state_dir(settings().model_copy(update={"state_dir": tmp_path / "state"}))
    assert found.verdict is Verdict.FAIL
    assert str(tmp_path / "state") in found.what


async def test_one_that_hangs_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each upstream is looked at beside the others, and given up after its time."""
    monkeypatch.setattr(subject, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = {"silent": silent.getsockname()[1], "closed": closed.getsockname()[1]}
        upstreams = {
            name: {
                "base_url": f"http://127.0.0.1:{port}",
                "insecure_http": True,
                "preset": "api-key",
                "credential": {"key": {"value": canary(name)}},
            }
            for name, port in ports.items()
        }
        file = tmp_path / "config.yaml"
        data = {"state_dir": str(tmp_path / "state"), "upstreams": upstreams}
        file.write_text(repr(data))
        found = await asyncio.to_thread(examine.diagnose, file, (), None)
    wrong = {check.upstream: check.what for check in found if check.verdict is not Verdict.PASS}
    assert set(wrong) == {"silent", "closed"}
    assert "no answer within 0.5 s" in wrong["silent"]
    assert "Connection refused" in wrong["closed"]
    with pytest.raises(ConfigurationError, match="expected one of: silent, closed"):
        await asyncio.to_thread(examine.diagnose, file, (), "other")
