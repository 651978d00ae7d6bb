"""What a recipe says in vain is told by `check`, by key path; the shipped ones say nothing in vain."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.lint import lint
from sidecar.cli.main import app
from sidecar.policy.routing import parse_base_url
from sidecar.settings import SecretReference
from sidecar.settings.shipped import PRESETS, merged, resolved

SOUND: dict[str, Any] = {
    "recipe": 1,
    "id": "mine",
    "vars": {"user": {}, "password": {"secret": True}},
    "login": {
        "steps": [
            {
                "request": "POST {base}/login",
                "json": {"user": "{user}", "password": "{password}"},
                "ok": {"status": 200, "json": {"/state": "OK"}},
                "get": {"sid": {"json": "/sid"}},
            }
        ],
        "send": {"headers": {"X-Session": "{sid}"}},
        "dead": [{"status": 401}, {"json": {"/state": "EXPIRED"}}],
    },
}
STEP = SOUND["login"]["steps"][0]


def doubts(data: dict[str, Any]) -> list[str]:
    recipe = resolved(data)
    credential: dict[str, Any] = {name: "x" for name, variable in recipe.vars.items() if variable.default is None}
    credential |= {name: SecretReference(file=Path("/nowhere")) for name in credential if recipe.vars[name].secret}
    return lint(Bound("plm", recipe, credential, parse_base_url("https://plm.example.com/api")))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_nothing_in_vain(name: str) -> None:
    """Each of those that come with the product."""
    assert doubts({"extends": name}) == []


def login(**changes: Any) -> dict[str, Any]:
    return merged(SOUND, {"login": changes})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            login(dead={"json": {"/state": "OK"}}),
            "login.dead.0: also holds for the answer that login.steps.0.ok asks for",
        ),
        (login(dead=[{"status": 401}, {"path": "/api/*", "status": 200}]), "login.dead.1: also holds for the answer"),
        (login(dead={"status": "2xx"}), "login.dead.0: holds for any good answer too"),
        (login(dead={"not": {"status": 401}}), "login.dead.0: holds for any good answer too"),
        (login(fatal={"type": "json"}), "login.fatal.0: holds for any good answer too"),
        (
            login(steps=[STEP | {"ok": {"status": 200}, "fatal": {"type": "json"}}]),
            "login.steps.0.fatal: also holds for the answer",
        ),
        (
            login(steps=[STEP | {"pause": [{"when": {"status": 200}, "for": "1m"}]}]),
            "login.steps.0.pause.0.when: also holds for the answer",
        ),
        (
            login(
                steps=[
                    STEP | {"get": {"sid": [{"json": "/sid"}, {"else": "none"}]}},
                    {"request": "POST {base}/old-login", "unless": "sid"},
                ]
            ),
            "login.steps.1.unless: an earlier step always gives sid, so this one is never taken",
        ),
        (
            login(steps=[STEP, {"request": "GET {base}/me", "unless": "user"}]),
            "login.steps.1.unless: user is one of vars, so this one is always taken",
        ),
        (
            login(steps=[STEP | {"get": {"sid": [{"else": "x"}, {"json": "/sid"}]}}]),
            "login.steps.0.get.sid.0: its else always gives a value, so what follows is never tried",
        ),
        (login(send={"headers": {"X-Session": None}}), "login.send: nothing shows the session"),
        (merged(SOUND, {"exclude": ["/api/tickets/*", "*"]}), "exclude.1: holds for everything"),
        (merged(SOUND, {"shim": [{"match": "POST {base}/*"}]}), "shim.0.match: holds for everything"),
        (login(dead={"status": [401, "5xx"]}), "login.dead.0: holds for an outage too"),
        (login(steps=[STEP | {"fatal": {"status": "4xx"}}]), "login.steps.0.fatal: holds for an outage too"),
        (login(steps=[STEP | {"get": STEP["get"] | {"site": {"json": "/x"}}}]), "login.steps.0.get.site: nothing uses"),
        (merged(SOUND, {"vars": {"tenant": {}}}), "vars.tenant: nothing uses {tenant}"),
        (
            merged(SOUND, {"shim": [{"match": "POST {base}/*"}, {"match": "POST {base}/login"}]}),
            "shim.1.match: shim.0 holds for all of it, and goes first",
        ),
        (
            merged(SOUND, {"csrf": {"steps": [{"request": "GET {base}/n"}], "dead": {"status": [200, 403]}}}),
            "csrf.dead.0: holds for any good answer too",
        ),
    ],
)
def test_what_is_in_vain_is_told(data: dict[str, Any], told: str) -> None:
    """With the key path, and why."""
    assert any(each.startswith(told) for each in doubts(data)), doubts(data)


@pytest.mark.parametrize(
    "data",
    [
        SOUND,
        login(steps=[STEP | {"ok": {"json": {"/sid": {"regex": "^[a-z]{8}$"}}}}], dead={"json": {"/sid": "gone"}}),
        merged(
            SOUND,
            {
                "shim": [
                    {"match": {"path": "{base}/login", "form": {"by": "key"}}},
                    {"match": "POST {base}/login"},
                    {"match": "GET {base}/login"},
                ]
            },
        ),
        login(steps=[STEP, {"request": "POST {base}/old-login", "unless": "sid"}]),
        login(dead={"not": {"header": {"X-Session": {"regex": "."}}}}),
        merged(
            SOUND,
            {
                "swap": ["body"],
                "login": {"send": {"headers": {"X-Session": None}}},
                "shim": [{"match": "POST {base}/login"}],
            },
        ),
        login(steps=[STEP | {"request": "POST {base}/login?key={password}"}]),
    ],
)
def test_what_may_be_right_is_not_doubted(data: dict[str, Any]) -> None:
    """What a pattern is to match cannot be made up, and a step that may be needed is one."""
    assert doubts(data) == []


def configuration(folder: Path, recipe: dict[str, Any]) -> str:
    upstream = {
        "base_url": "https://plm.example.com/api",
        "recipe": recipe,
        "credential": {"user": "svc", "password": {"file": "/nowhere"}},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps({"state_dir": str(folder / "state"), "upstreams": {"plm": upstream}}))
    return str(file)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (login(dead={"status": "2xx"}), "upstreams.plm.recipe.login.dead.0: holds for any good answer too"),
        (login(sends={}), "did you mean send?"),
    ],
)
def test_check_refuses_it(tmp_path: Path, recipe: dict[str, Any], told: str) -> None:
    """One line that names the key, and no effective configuration."""
    done = CliRunner().invoke(app, ["check", "-c", configuration(tmp_path, recipe)])
    text = done.output + str(done.exception or "")
    assert told in text, text
    assert done.exit_code != 0


def test_check_takes_what_is_sound(tmp_path: Path) -> None:
    """And prints the effective configuration."""
    done = CliRunner().invoke(app, ["check", "-c", configuration(tmp_path, SOUND)])
    assert done.exit_code == 0, done.output
