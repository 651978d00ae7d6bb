"""`preset`, `recipe` and `credential` of an upstream: what is accepted, and the sentence for what is not."""

from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import ConfigurationError
from sidecar.settings import (
    SecretReference,
    Settings,
    check_secrets,
    effective,
    files_of,
    load,
    plain_secrets,
    secret_references,
)
from sidecar.settings.shipped import merged, resolved
from tests.canary import canary

WORD = canary("recipe-password")
CREDENTIAL: dict[str, Any] = {"email": "svc@example.com", "password": {"value": WORD}}
ARENA: dict[str, Any] = {"preset": "arena", "credential": CREDENTIAL}
SYSTEM: dict[str, Any] = {
    "recipe": 1,
    "id": "own",
    "vars": {"user": {}, "word": {"secret": True}},
    "login": {
        "steps": [
            {
                "request": "POST {base}/login",
                "form": {"user": "{user|lower}", "word": "{word}"},
                "get": {"sid": {"json": "/sid"}},
            }
        ],
        "send": {"headers": {"X-Session": "{sid}"}},
    },
}
OWN = {"base_url": "https://own.example.com", "credential": {"user": "u", "word": {"value": WORD}}}


def loaded(upstream: dict[str, Any], *overrides: str, **environ: str) -> Settings:
    """Return the configuration of one upstream, as it comes from a file, options and the environment."""
    base = {"upstreams": {"arena": upstream}}
    return load(base=base, overrides=overrides, environ={"AUTH_SIDECAR_CONFIG": "", **environ})


def refused(upstream: dict[str, Any], *overrides: str) -> str:
    """Return why a configuration is refused, without where it came from."""
    with pytest.raises(ConfigurationError) as raised:
        loaded(upstream, *overrides)
    assert WORD not in str(raised.value)
    return str(raised.value).removeprefix("configuration: upstreams.arena")


def own(**changes: Any) -> dict[str, Any]:
    """Return an upstream with a recipe of its own, changed."""
    return {**OWN, "recipe": merged(SYSTEM, changes)}


def test_a_preset_gives_the_base_url_and_the_recipe() -> None:
    """What the recipe has as `base` is the base URL, unless the upstream says another."""
    upstream = loaded(ARENA).upstreams["arena"]
    assert upstream.base_url == "https://api.arenasolutions.com/v1"
    assert upstream.system == resolved({"extends": "arena"})
    elsewhere = loaded({**ARENA, "base_url": "https://api.arenagov.com/v1"}).upstreams["arena"]
    assert elsewhere.origin.host == "api.arenagov.com"


def test_only_what_was_given_is_in_credential() -> None:
    """Defaults stay with the recipe; a number is text where text is wanted, and text a number where a number is."""
    credential = loaded({"preset": "arena", "credential": {**CREDENTIAL, "email": 7, "workspace_id": "12"}})
    found = credential.upstreams["arena"].credential
    assert {name: value for name, value in found.items() if name != "password"} == {"email": "7", "workspace_id": 12}
    assert isinstance(found["password"], SecretReference)


def test_secrets_of_a_credential_are_secrets_as_all_others(tmp_path: Path) -> None:
    """They are found by their key path, read, watched, and hidden in what `check` prints."""
    file = tmp_path / "word"
    file.write_text(WORD)
    settings = loaded({"preset": "arena", "credential": {"email": "a", "password": {"file": str(file)}}})
    assert [path for path, _ in secret_references(settings)] == ["upstreams.arena.credential.password"]
    assert files_of(settings) == {file}
    check_secrets(settings)
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"^upstreams\.arena\.credential\.password: "):
        check_secrets(settings)
    inline = loaded(ARENA)
    assert list(plain_secrets(inline)) == ["upstreams.arena.credential.password"]
    shown = effective(inline)["upstreams"]["arena"]
    assert shown["credential"] == {"email": "svc@example.com", "password": {"value": "***"}}
    assert WORD not in repr(inline)


def test_environment_and_options_reach_a_credential() -> None:
    """A key of `credential` is a key path as all others."""
    settings = loaded(
        {"preset": "arena"},
        "upstreams.arena.credential.email=a",
        AUTH_SIDECAR__UPSTREAMS__ARENA__CREDENTIAL__PASSWORD__FILE="/run/secrets/arena",
    )
    assert files_of(settings) == {Path("/run/secrets/arena")}


EXACTLY = ": expected exactly one of oauth2, preset and recipe"
OAUTH2 = {"token_url": "https://x/t", "client_id": "c", "client_auth": "none"}


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        ({"base_url": "https://x"}, EXACTLY),
        ({**ARENA, "oauth2": OAUTH2}, EXACTLY),
        ({**ARENA, "recipe": {"extends": "arena"}}, EXACTLY),
        ({"base_url": "https://x", "oauth2": OAUTH2, "credential": {"a": 1}}, ".credential: is what preset"),
        ({"preset": "nope"}, ".preset: unknown; expected one of 3dexperience, api-key, aras, "),
        (
            {"preset": "basic", "credential": OWN["credential"]},
            ".credential: user: unknown key; basic accepts",
        ),
        ({"preset": "arena", "credential": {"email": "a"}}, ".credential: password: missing; expected {file"),
        ({"preset": "arena", "credential": {"password": {"env": "A"}}}, ".credential: email: missing; expected a text"),
        ({"preset": "arena", "credential": {**CREDENTIAL, "password": WORD}}, ".credential: password: expected {file"),
        (
            {"preset": "arena", "credential": {**CREDENTIAL, "email": {"file": "x"}}},
            ".credential: email: expected a text; it is no secret",
        ),
        (
            {"preset": "arena", "credential": {**CREDENTIAL, "workspace_id": "x"}},
            ".credential: workspace_id: expected a whole number",
        ),
        ({"preset": "basic", "credential": {"username": "u", "password": {"env": "A"}}}, ".base_url: missing"),
        ({**ARENA, "base_url": "http://x"}, ": base_url is http://"),
        (
            {
                "preset": "arena-oauth",
                "credential": {
                    "client_id": "a",
                    "client_secret": {"env": "A"},
                    "workspace_id": 1,
                    "token_url": "http://x/t",
                },
            },
            ": login.oauth2.token_url is http://",
        ),
        (own(trust=["http://login.example.com"]), ": trust is http://"),
    ],
)
def test_a_wrong_upstream_is_told_of(upstream: dict[str, Any], message: str) -> None:
    """One line names the key path and what is accepted."""
    assert refused(upstream).startswith(message)


def step(**changes: Any) -> dict[str, Any]:
    """Return a recipe whose one step is changed."""
    return own(login={"steps": [{**SYSTEM["login"]["steps"][0], **changes}]})


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        (own(id="Own"), "id: String should match"),
        (own(logn={}), "logn: unknown key; expected one of: recipe, id"),
        ({**OWN, "recipe": {"id": "x", "login": {}}}, "recipe: missing; expected recipe: 1"),
        ({**OWN, "recipe": {"extends": "nope"}}, "extends: unknown; expected one of 3dexperience, api-key"),
        ({**OWN, "recipe": {"extends": "arena", "id": "x"}}, "id: not with extends"),
        (step(request="POST"), "login.steps.0.request: expected METHOD and a URL"),
        (step(request="PUT|POST {base}/x"), "login.steps.0.request: expected one METHOD and a URL"),
        (step(request="POST {base"), "login.steps.0.request: a template has a { without its }"),
        (step(request="POST {bas}/x"), "login.steps.0.request: nothing gives {bas} a value"),
        (
            step(request="POST https://evil.example/x"),
            "login.steps.0.request: expected {base}, or an origin",
        ),
        (step(form={"a": "{user|rot13}"}), "login.steps.0.form: {user|rot13} has the unknown filter"),
        (step(text="x"), "login.steps.0: expected at most one body"),
        (step(headers={"{nobody}": "x"}), "login.steps.0.headers: nothing gives {nobody}"),
        (step(json=None, get={"sid": {"json": "sid"}}), "login.steps.0.get.sid.0.json: expected a pointer"),
        (step(get={"sid": {"xml": "a["}}), "login.steps.0.get.sid.0.xml: expected a path"),
        (step(get={"sid": {"header": "A", "json": "/a"}}), "login.steps.0.get.sid.0: expected exactly one of json"),
        (step(get={"sid": {"unit": "s"}}), "login.steps.0.get.sid.0: expected exactly one of json"),
        (step(get={"sid": {"body": "no group"}}), "login.steps.0.get.sid.0.body: expected a pattern with exactly one"),
        (step(get={"sid": {"header": "A", "time": "%Q"}}), "login.steps.0.get.sid.0.time: expected a format"),
        (step(get={"base": {"json": "/a"}}), "base: expected a name of letters"),
        (step(ok={"status": 99}), "login.steps.0.ok.0.status.0: expected a status"),
        (step(ok={"status": "2x"}), "login.steps.0.ok.0.status.0: expected a status"),
        (step(ok={}), "login.steps.0.ok.0: expected at least one key"),
        (step(ok={"body": "(?=a)"}), "login.steps.0.ok.0.body: expected a pattern in RE2 syntax"),
        (step(ok={"json": {"/a": {"regex": "(a"}}}), "login.steps.0.ok.0.json./a"),
        (step(pause=[{"when": {"status": 429}}]), "login.steps.0.pause.0: expected exactly one of for and wait"),
        (step(unless="nobody"), "unless: nothing gives nobody a value"),
        (own(login={"oauth2": {"token_url": "x"}}), "login: expected one of steps and oauth2"),
        (own(login={"ok": {"status": 200}}), "login: ok: is that of oauth2"),
        (own(login={"life": {"idle": "soon"}}), "login.life.idle: expected a duration"),
        (own(shim=[{"match": {"method": "POST"}}]), "shim.0: match: expected a path"),
        (own(shim=[{"match": "POST {base}/{nobody}"}]), "shim.0.match.path: nothing gives {nobody}"),
        (own(shim=[{"match": "POST {base}/x", "reply": {"json": 1, "text": "x"}}]), "shim.0.reply: expected at most"),
        (own(shim=[{"match": "GET {base}/x", "onward": True, "reply": {"status": 201}}]), "shim.0: reply: with onward"),
        (own(add={"X": "{request:/a}"}), "add: nothing gives {request:/a} a value"),
        (own(exclude=["{a"]), "exclude: a template has a {"),
    ],
)
def test_a_wrong_recipe_is_told_of(upstream: dict[str, Any], message: str) -> None:
    """One line names the key path inside the recipe and what is expected."""
    assert refused(upstream).startswith(f".recipe: {message}")


@pytest.mark.parametrize(
    "upstream",
    [
        own(),
        own(exclude=["*/{get,load}*"], trust=["https://login.example.com"]),
        own(shim=[{"match": "PUT|POST {base}/login", "reply": {"json": {"name": "{request:/user}", "sid": "{sid}"}}}]),
        own(login={"life": {"idle": "30m", "max": "{expires_in}"}}),
        step(ok={"json": {"/a/*/[key=/other]": {"regex": "x$"}}, "status": ["2xx", 302]}),
        {**own(trust=["https://sso.example.com"]), "read_only": True},
    ],
)
def test_a_sound_recipe_is_accepted(upstream: dict[str, Any]) -> None:
    """Alternatives in globs, names of the request in replies, templates of durations, and pointers with conditions."""
    assert loaded(upstream).upstreams["arena"].system is not None


def test_an_override_is_merged_and_null_removes() -> None:
    """Mappings are merged key by key, lists and scalars replaced; the id stays that of the extended recipe."""
    recipe = resolved({"extends": "arena", "login": {"life": {"idle": "30m"}}, "quota": None, "shim": []})
    plain = resolved({"extends": "arena"})
    assert recipe.login == plain.login.model_copy(update={"life": recipe.login.life})
    assert recipe.login.life.idle == 1800.0
    assert (recipe.id, recipe.quota, recipe.shim) == ("arena", None, ())


def test_a_host_whose_login_is_answered_here_cannot_pass_through() -> None:
    """The token endpoint of `arena-oauth` is intercepted, so that it cannot be tunnelled too."""
    credential = {"client_id": "a", "client_secret": {"env": "A"}, "workspace_id": 1}
    upstream = {"preset": "arena-oauth", "credential": credential}
    with pytest.raises(ConfigurationError, match=r"passthrough: oauth\.bom\.com is the host of upstream arena"):
        loaded(upstream, "passthrough=[oauth.bom.com]")


def test_a_key_of_the_upstream_is_told_from_its_default() -> None:
    """What is set may replace the recipe's, also when it says the default."""
    assert "sessions" not in loaded(ARENA).upstreams["arena"].model_fields_set
    assert "sessions" in loaded({**ARENA, "sessions": {"pool": 1}}).upstreams["arena"].model_fields_set


def test_the_schema_for_editors_knows_recipes() -> None:
    """It lists the presets, and has the keys of a recipe."""
    schema = Settings.model_json_schema()
    upstream = schema["$defs"]["Upstream"]["properties"]
    assert "teamcenter" in upstream["preset"]["enum"]
    assert "steps" in schema["$defs"]["Layer"]["properties"]
    assert {"$ref": "#/$defs/Recipe"} in upstream["recipe"]["anyOf"]
