"""The configuration: what it takes, who overrides whom, and errors in one line that never show a secret."""

import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from sidecar.errors import ConfigurationError
from sidecar.settings import HostPort, SecretReference, Settings, default_paths, effective, load, parse_token_url
from sidecar.settings.secrets import EXPECTED
from sidecar.settings.values import Margin, parse_address, parse_duration, parse_margin, parse_share, parse_size
from tests.canary import WORD, canary

MINIMAL = """\
upstreams:
  plm:
    base_url: https://plm.example.com/api
    oauth2:
      token_url: https://plm.example.com/oauth/token
      client_id: sync
      client_secret: {env: PLM_SECRET}
"""
BASE: dict[str, Any] = YAML(typ="safe", pure=True).load(MINIMAL)
TOP = "listen, state_dir, store, workers, passthrough, grace, limits, upstreams, log"
PLM = "upstreams.plm"
SECRET = f"{PLM}.oauth2.client_secret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    return path


def load_text(path: Path, text: str | bytes, *overrides: str) -> Settings:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, overrides=overrides, environ={})


def loaded(*overrides: str, **environ: str) -> Settings:
    return load(base=BASE, overrides=overrides, environ={"AUTH_SIDECAR_CONFIG": ""} | environ)


def refused(*overrides: str, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(*overrides, **environ)
    return checked(caught.value)


def checked(error: ConfigurationError) -> str:
    """Return the message of *error*, which is one printable line without a secret, and has no cause that has one."""
    message = str(error)
    assert message.isprintable()
    assert WORD not in message
    assert error.__suppress_context__ or error.__context__ is None
    return message


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the files of whoever runs the tests out of them."""
    monkeypatch.chdir(tmp_path)


def test_minimal_configuration_has_the_defaults_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not said is what the documentation says."""
    monkeypatch.setenv("HOME", "/home/app")
    found = effective(loaded())
    upstream = found["upstreams"]["plm"]

    assert {key: value for key, value in found.items() if key != "upstreams"} == {
        "listen": {"proxy": "127.0.0.1:8080", "admin": "127.0.0.1:8081", "admin_token": None, "auth": None},
        "state_dir": "/home/app/.local/state/auth-sidecar",
        "store": {"url": "sqlite", "username": None, "password": None, "ca": None, "keys": [], "timeout": 0.1},
        "workers": 1,
        "passthrough": [],
        "grace": 25.0,
        "limits": {"header": 65536, "connections": 1000, "header_timeout": 10.0, "idle_connection": 75.0},
        "log": {"format": "json", "level": "info"},
    }
    assert upstream.pop("oauth2") == {
        "token_url": "https://plm.example.com/oauth/token",
        "grant": "client_credentials",
        "lifetime": 300.0,
        "client_id": "sync",
        "client_secret": {"env": "PLM_SECRET"},
        "client_auth": "client_secret_basic",
        "private_key": None,
        "key_id": None,
        "algorithm": "RS256",
        "assertion": {"audience": None, "headers": []},
        "client_assertion": None,
        "username": None,
        "password": None,
        "refresh_token": None,
        "subject": None,
        "assertion_file": None,
        "subject_token": None,
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "scope": None,
        "resource": [],
        "extra": {},
    }
    assert sorted(upstream["retry"].pop("statuses")) == [429, 502, 503, 504]
    assert sorted(upstream["retry"].pop("methods")) == ["GET", "HEAD", "OPTIONS", "PUT"]
    assert sorted(upstream["retry"].pop("unapplied")) == [421, 425, 429]
    assert upstream == {
        "preset": None,
        "recipe": None,
        "credential": {},
        "base_url": "https://plm.example.com/api",
        "insecure_http": False,
        "listen": None,
        "renew": {"margin": "20%", "min_interval": 60.0, "check_every": 300.0, "timeout": 10.0, "startup": "required"},
        "strip": {"headers": [], "cookies": [], "query": [], "keep": []},
        "retry": {"attempts": 3, "base": 0.1, "cap": 20.0, "max_retry_after": 30.0, "budget": "20%"},
        "timeout": {"token": 30.0, "connect": 5.0, "first_byte": 3600.0, "idle": 3600.0},
        "breaker": {"failures": "50%", "min_requests": 20, "window": 10.0, "open_for": 15.0, "unauthorized": 5},
        "sessions": {"pool": 1, "max_in_flight": 0},
        "keepalive": None,
        "replay": {"memory": 1 << 20, "spool": 256 << 20},
        "tls": {"ca": None, "client_cert": None, "client_key": None},
        "via": False,
        "links": {"forwarded": False, "rewrite": []},
        "addresses": [],
        "read_only": False,
    }


def test_effective_configuration_loads_again(file: Path, tmp_path: Path) -> None:
    """What `check` prints is a configuration with the same meaning, odd shares and sizes included."""
    first = load(
        file,
        overrides=[f"{PLM}.renew.margin=12.5%", f"{PLM}.replay.memory=3KiB", f"{PLM}.retry.budget=7.5%"],
        environ={},
    )
    again = tmp_path / "again.yaml"
    with again.open("w") as stream:
        YAML(typ="safe", pure=True).dump(effective(first), stream)

    assert load(again, environ={}) == first
    assert json.loads(json.dumps(effective(first))) == effective(first)


def test_effective_configuration_hides_inline_secrets() -> None:
    """Wherever they are; where a secret comes from is no secret."""
    value = f"{{value: {canary('inline')}}}"
    found = loaded(
        f"{SECRET}={value}",
        f"{PLM}.oauth2.password={value}",
        f"{PLM}.tls={{client_cert: c.pem, client_key: {value}}}",
        f"store.keys=[{value}, {{file: /run/key}}, {{keyring: a/b}}]",
        "listen.admin_token={command: [./program]}",
        f"listen.auth={{username: app, password: {{command: [vault, -token, {canary('argument')}]}}}}",
    )
    shown = effective(found)

    assert WORD not in json.dumps(shown)
    assert shown["store"]["keys"] == [{"value": "***"}, {"file": "/run/key"}, {"keyring": "a/b"}]
    assert shown["listen"]["auth"]["password"] == {"command": ["vault", "..."]}
    assert shown["listen"]["admin_token"] == {"command": ["./program"]}
    assert shown["upstreams"]["plm"]["oauth2"]["client_secret"] == {"value": "***"}
    assert WORD not in repr(found)
    assert WORD not in str(found.upstreams["plm"].oauth2)


SOURCES = "file, env, command, keyring, value"
A_COMMAND = "expected a list of a program and its arguments, each a text"
NOT_PLAIN = f"{EXPECTED}, not a plain value"
UNKNOWN = [
    "audit",
    "proxy",
    "listen.proxxy",
    "store.ttl",
    "log.file",
    *(f"{PLM}.{key}" for key in ("proxy", "x")),
    f"{PLM}.breaker.threshold",
    f"{PLM}.sessions.size",
    f"{PLM}.renew.jitter",
    f"{PLM}.timeout.read",
    f"{PLM}.replay.disk",
    f"{PLM}.strip.body",
    f"{PLM}.tls.verify",
    f"{PLM}.tls.insecure",
    f"{PLM}.oauth2.secret",
    f"{PLM}.oauth2.Client_id",
]


@pytest.mark.parametrize("key", UNKNOWN)
def test_unknown_key_is_refused(key: str) -> None:
    """A misspelt key, or one of a part that is not built, would be a setting that has no effect."""
    message = refused(f"{key}=1")
    known = message.partition("unknown key; expected one of: ")[2].partition("; did you mean ")[0].split(", ")

    assert message.startswith(f"configuration: {key}: unknown key; expected one of: ")
    assert len(known) >= 2
    assert all(name.isidentifier() for name in known)


def test_a_slip_of_the_pen_is_guessed() -> None:
    """What is near is asked for; what is not is no guess."""
    assert refused("listen.proxxy=1").endswith("; did you mean proxy?")
    assert "did you mean" not in refused("x=1")


def test_known_keys_are_those_of_the_place() -> None:
    """On the top, in a mapping of upstreams, in an optional secret, in a list."""
    assert refused("x=1").endswith(f"expected one of: {TOP}")
    assert refused(f"{PLM}.renew.x=1").endswith("one of: margin, min_interval, check_every, timeout, startup")
    assert refused(f"{SECRET}.x=1").endswith(
        "client_secret: unknown key; expected one of: file, env, command, keyring, value"
    )
    assert refused("store.keys=[{file: a}, {x: b}]") == (
        "configuration: store.keys.1: unknown key; expected one of: file, env, command, keyring, value"
    )


ERRORS = [
    (f"{PLM}.base_url=ftp://x", f"{PLM}: base_url: expected a URL such as https://plm.example.com/api"),
    (f"{PLM}.base_url=https://u:{canary('p')}@x", f"{PLM}: base_url: expected a URL without user, query and fragment"),
    (
        f"{PLM}.base_url=https://u:{canary('p')}/x@y",
        f"{PLM}: base_url: expected a URL such as https://plm.example.com/api",
    ),
    (f"{PLM}.base_url=https://x/?k={canary('p')}", f"{PLM}: base_url: expected a URL without user, query and fragment"),
    (
        f"{PLM}.base_url=https://x/a/../b",
        f"{PLM}: base_url: expected a plain path, without dot segments, doubled slashes and escapes",
    ),
    (
        f"{PLM}.base_url=http://x",
        f"{PLM}: base_url is http://, which would send the credential in clear; use https:// or insecure_http: true",
    ),
    (
        f"{PLM}.oauth2.token_url=http://x",
        f"{PLM}: oauth2.token_url is http://, which would send the credential in clear; use https://",
    ),
    *(
        (f"{PLM}.oauth2.token_url={url!r}", f"{PLM}.oauth2.token_url: expected a URL such as https://sso.example.com/")
        for url in (
            "x",
            "ftp://x/t",
            "https:///t",
            "https://x:0/t",
            "https://u:p@x/t",
            "https://x/t#f",
            "https://x/t#",
            "https://x/a b",
            f"https://x/{'a' * 8192}",
        )
    ),
    (
        f"{PLM}.oauth2.token_url=http://x/t?p=q",
        f"{PLM}: oauth2.token_url is http://, which would send the credential in clear; use https://",
    ),
    (
        f"{PLM}.listen=0.0.0.0:80",
        f"{PLM}.listen: expected a loopback address or unix:/path: whoever reaches this port can use the credential",
    ),
    (f"{PLM}.links.forwarded=true", f"{PLM}: links needs listen: it is about answers of the reverse port"),
    (f"{PLM}.links.rewrite=[text/xml]", f"{PLM}: links needs listen"),
    *(
        (f"{PLM}.links.rewrite=['{wrong}']", f"{PLM}.links.rewrite.0: expected a media type such as application/json")
        for wrong in ("json", "text/*", "*/*", "text/xml; charset=utf-8", "text/", "/xml", "text/x ml", "a/b/c", "")
    ),
    (f"{PLM}.links.rewrite=[Multipart/mixed]", f"{PLM}.links.rewrite.0: a multipart body cannot be rewritten"),
    ("listen.proxy=8080", "listen.proxy: expected host:port such as 127.0.0.1:8080"),
    ("listen.proxy=127.0.0.1:8081", "listen.admin is the same address as listen.proxy; expected each once"),
    (f"{PLM}.listen=127.0.0.1:8080", f"{PLM}.listen is the same address as listen.proxy; expected each once"),
    ("listen=1", "listen: expected a mapping of proxy, admin, admin_token"),
    ("listen=[1]", "listen: expected a mapping of proxy, admin, admin_token"),
    ("store.url=mysql://x", "store.url: expected sqlite, memory, or a URL that begins with redis://"),
    ("store.url=redis://x", "store: keys: a Redis store needs at least one; expected what `auth-sidecar keys new`"),
    ("store.username=x", "store: username, password and ca are those of a Redis"),
    (
        "store.keys=[a]",
        f"store.keys.0: {NOT_PLAIN}",
    ),
    ("log.level=loud", "log.level: Input should be 'debug', 'info', 'warning' or 'error'"),
    ("log.format=xml", "log.format: Input should be 'json' or 'text'"),
    (
        f"{SECRET}={canary('plain')}",
        f"{SECRET}: {NOT_PLAIN}",
    ),
    (
        f"{SECRET}=[{canary('listed')}]",
        f"{SECRET}: {NOT_PLAIN}",
    ),
    (f"{SECRET}={{{canary('braces')}}}", f"{SECRET}: unknown key; expected one of: file, env, command, keyring, value"),
    (
        f"{SECRET}={{{canary('braces')}: 1, file: x}}",
        f"{SECRET}: unknown key; expected one of: file, env, command, keyring, value",
    ),
    (
        f"{SECRET}={{5: {canary('number')}}}",
        f"{SECRET}: unknown key; expected one of: file, env, command, keyring, value",
    ),
    (
        f"{SECRET}={{file: a, value: {canary('two')}}}",
        f"{SECRET}: expected exactly one of file, env, command, keyring, value",
    ),
    (f"{SECRET}={{command: []}}", f"{SECRET}.command: {A_COMMAND}"),
    (f"{SECRET}={{command: vault read x}}", f"{SECRET}.command: {A_COMMAND}"),
    (f"{SECRET}={{command: ['', x]}}", f"{SECRET}.command: {A_COMMAND}"),
    (f"{SECRET}={{command: [{canary('word')}, 5]}}", f"{SECRET}.command: {A_COMMAND}"),
    (f'{SECRET}={{command: ["{canary("word")}\\0"]}}', f"{SECRET}.command: {A_COMMAND}"),
    (f"{SECRET}={{keyring: plm}}", f"{SECRET}.keyring: expected SERVICE/USER"),
    (f"{SECRET}={{keyring: /sync}}", f"{SECRET}.keyring: expected SERVICE/USER"),
    (f"{SECRET}={{keyring: plm/}}", f"{SECRET}.keyring: expected SERVICE/USER"),
    (f"{SECRET}={{keyring: [plm, sync]}}", f"{SECRET}.keyring: expected SERVICE/USER"),
    (f"{SECRET}={{keyring: plm/sync, command: [x]}}", f"{SECRET}: expected exactly one of {SOURCES}"),
    (f"{SECRET}={{}}", f"{SECRET}: expected exactly one of file, env, command, keyring, value"),
    (f"{SECRET}={{value: [{canary('deep')}]}}", f"{SECRET}.value: Input should be a valid string"),
    (f"{SECRET}={{value: 7}}", f"{SECRET}.value: Input should be a valid string"),
    (f"{SECRET}=", f"{PLM}.oauth2: client_auth client_secret_basic needs client_secret"),
    (f"{PLM}.oauth2.client_id=", f"{PLM}.oauth2.client_id: Input should be a valid string"),
    (f"{PLM}.oauth2.client_id=''", f"{PLM}.oauth2.client_id: String should have at least 1 character"),
    (f"{PLM}.oauth2.client_auth=private_key_jwt", f"{PLM}.oauth2: client_auth private_key_jwt needs private_key"),
    (
        f"{PLM}.oauth2.client_auth=tls_client_auth",
        f"{PLM}: client_auth tls_client_auth needs tls.client_cert and tls.client_key",
    ),
    (f"{PLM}.oauth2.grant=password", f"{PLM}.oauth2: grant password needs username and password"),
    (
        f"{PLM}.oauth2={{token_url: 'https://x', client_id: a, client_auth: none, grant: password, username: u}}",
        f"{PLM}.oauth2: grant password needs username and password",
    ),
    (
        f"{PLM}.oauth2.grant=refresh_token",
        f"{PLM}.oauth2: grant refresh_token needs refresh_token, the first one",
    ),
    (
        f"{PLM}.oauth2.grant=implicit",
        f"{PLM}.oauth2.grant: Input should be 'client_credentials', 'password', 'refresh_token', 'jwt_bearer' or",
    ),
    (
        f"{PLM}.oauth2.extra={{scope: x, client_assertion: {canary('jwt')}, a: b}}",
        f"{PLM}.oauth2: extra cannot set client_assertion, scope; use the key of that name",
    ),
    (
        f"{PLM}.oauth2.extra={{resource: x, subject_token: {canary('subject')}, assertion: x}}",
        f"{PLM}.oauth2: extra cannot set assertion, resource, subject_token; use the key of that name",
    ),
    (f"{PLM}.oauth2.client_auth=assertion", f"{PLM}.oauth2: client_auth assertion needs client_assertion"),
    (
        f"{PLM}.oauth2.assertion.audience=https://x",
        f"{PLM}.oauth2: assertion needs client_auth private_key_jwt, or grant jwt_bearer with subject",
    ),
    (f"{PLM}.oauth2.assertion.headers=[x5u]", f"{PLM}.oauth2.assertion.headers.0: Input should be 'x5t#S256'"),
    (f"{PLM}.oauth2.grant=token_exchange", f"{PLM}.oauth2: grant token_exchange needs subject_token"),
    (
        f"{PLM}.oauth2.grant=jwt_bearer",
        f"{PLM}.oauth2: grant jwt_bearer needs exactly one of subject and assertion_file",
    ),
    (
        f"{PLM}.oauth2={{token_url: 'https://x', client_id: a, client_auth: none, grant: jwt_bearer, subject: u}}",
        f"{PLM}.oauth2: grant jwt_bearer with subject needs private_key, which signs its assertion",
    ),
    (f"{PLM}.oauth2.resource=['']", f"{PLM}.oauth2.resource.0: String should have at least 1 character"),
    (f"{PLM}.oauth2.extra={{a: [1]}}", f"{PLM}.oauth2.extra.a: Input should be a valid string"),
    (f"{PLM}.oauth2.lifetime=0", f"{PLM}.oauth2.lifetime: Input should be greater than 0"),
    (f"{PLM}.oauth2.lifetime=x", f"{PLM}.oauth2.lifetime: expected a duration such as 90s, 15m, 2h, or seconds"),
    (f"{PLM}.renew.margin=x", f"{PLM}.renew.margin: expected a share such as 20% or a duration such as 5m"),
    (f"{PLM}.renew.timeout=0s", f"{PLM}.renew.timeout: Input should be greater than 0"),
    (f"{PLM}.renew.startup=maybe", f"{PLM}.renew.startup: Input should be 'required' or 'optional'"),
    *(
        (f"{PLM}.timeout.{key}=0", f"{PLM}.timeout.{key}: Input should be greater than 0")
        for key in ("token", "connect", "first_byte", "idle")
    ),
    (f"{PLM}.timeout.total=60s", f"{PLM}.timeout: total is gone: no time bounds a whole request; the wait for a"),
    (f"{PLM}.retry.unapplied=[399]", f"{PLM}.retry.unapplied.0: Input should be greater than or equal to 400"),
    (f"{PLM}.retry.attempts=0", f"{PLM}.retry.attempts: Input should be greater than or equal to 1"),
    (f"{PLM}.retry.attempts=11", f"{PLM}.retry.attempts: Input should be less than or equal to 10"),
    (f"{PLM}.retry.base=0", f"{PLM}.retry.base: Input should be greater than 0"),
    (
        f"{PLM}.retry.base=21s",
        f"{PLM}.retry: base is over cap, the longest random wait; expected a base of at most cap",
    ),
    (
        f"{PLM}.retry.cap=99ms",
        f"{PLM}.retry: base is over cap, the longest random wait; expected a base of at most cap",
    ),
    (f"{PLM}.retry.statuses=[399]", f"{PLM}.retry.statuses.0: Input should be greater than or equal to 400"),
    (f"{PLM}.retry.statuses=[600]", f"{PLM}.retry.statuses.0: Input should be less than or equal to 599"),
    (f"{PLM}.retry.methods=['A B']", f"{PLM}.retry.methods.0: expected an HTTP method"),
    (f"{PLM}.retry.budget=0.2", f"{PLM}.retry.budget: expected a share such as 20%, at most 100%"),
    (f"{PLM}.retry.budget=101%", f"{PLM}.retry.budget: expected a share such as 20%, at most 100%"),
    (f"{PLM}.breaker.failures=0%", f"{PLM}.breaker.failures: Input should be greater than 0"),
    (f"{PLM}.breaker.min_requests=0", f"{PLM}.breaker.min_requests: Input should be greater than or equal to 1"),
    (f"{PLM}.breaker.window=0", f"{PLM}.breaker.window: Input should be greater than 0"),
    (f"{PLM}.breaker.open_for=0", f"{PLM}.breaker.open_for: Input should be greater than 0"),
    (f"{PLM}.breaker.unauthorized=0", f"{PLM}.breaker.unauthorized: Input should be greater than or equal to 1"),
    (f"{PLM}.sessions.pool=0", f"{PLM}.sessions.pool: Input should be greater than or equal to 1"),
    (f"{PLM}.sessions.max_in_flight=-1", f"{PLM}.sessions.max_in_flight: Input should be greater than or equal to 0"),
    (
        f"{PLM}.keepalive={{path: /x, method: HEAD}}",
        f"{PLM}.keepalive.method: unknown key; expected one of: path, every",
    ),
    (f"{PLM}.keepalive={{every: 5m}}", f"{PLM}.keepalive.path: missing; expected a value"),
    (f"{PLM}.keepalive={{path: /x, every: 0}}", f"{PLM}.keepalive.every: Input should be greater than 0"),
    *(
        (
            f"{PLM}.keepalive={{path: /x, {times}}}",
            f"{PLM}.keepalive: every is not below only_if_used_within, so that none would be sent; expected less",
        )
        for times in ("every: 1h", "every: 2h", "only_if_used_within: 10m", "every: 9s, only_if_used_within: 8s")
    ),
    *(
        (f"{PLM}.keepalive.path={path}", f"{PLM}.keepalive.path: expected a path such as /api/v1/health")
        for path in ("health", "https://x/health", "//x/health", "/a b", "/a#b", "/ä")
    ),
    (f"{PLM}.replay.memory=1MB", f"{PLM}.replay.memory: expected a size such as 64KiB, 1MiB, or bytes"),
    (f"{PLM}.strip.headers=['a:b']", f"{PLM}.strip.headers.0: expected a header, cookie or parameter name"),
    (f"{PLM}.strip.cookies=['a;b']", f"{PLM}.strip.cookies.0: expected a header, cookie or parameter name"),
    (f"{PLM}.strip.query=['']", f"{PLM}.strip.query.0: expected a header, cookie or parameter name"),
    *(
        (
            f"{PLM}.strip.keep=[{name}]",
            f"{PLM}.strip: keep cannot name authorization: the sidecar sends exactly one, its own",
        )
        for name in ("Authorization", "AUTHORIZATION", "Proxy-Authorization", "proxy_authorization")
    ),
    *(
        (
            f"{PLM}.strip={{{key}: [a, {name}], keep: [{kept}]}}",
            f"{PLM}.strip: {key} and keep both name {name}; expected each name in one of them",
        )
        for key in ("headers", "query")
        for name, kept in (("X-Api-Key", "x_api_key"), ("access_token", "Access-Token"))
    ),
    *(
        (
            f"{PLM}.strip.headers=[{name}]",
            f"{PLM}.strip: headers cannot name host or content-length: the message would be another one without",
        )
        for name in ("Host", "content-length", "Content_Length")
    ),
    (f"{PLM}.tls.client_cert=a", f"{PLM}.tls: client_cert and client_key go together"),
    (f"{PLM}.tls.client_key={{file: a}}", f"{PLM}.tls: client_cert and client_key go together"),
    (f"{PLM}.addresses=[x]", f"{PLM}.addresses.0: expected a network such as 10.1.0.0/16 or an address"),
    (f"{PLM}.read_only=maybe", f"{PLM}.read_only: Input should be a valid boolean, unable to interpret input"),
    ("upstreams={}", "upstreams: expected at least one, such as plm: {base_url: ..., oauth2: {...}}"),
    ("upstreams=1", "upstreams: Input should be a valid dictionary"),
    (f"{PLM}=1", f"{PLM}: expected a mapping of preset, recipe, credential, base_url, insecure_http"),
    ("upstreams.Plm={}", "upstreams.Plm.base_url: missing; expected a value"),
    ("upstreams.Plm={base_url: https://x}", "upstreams.Plm: expected exactly one of oauth2, preset and recipe"),
]


@pytest.mark.parametrize(("override", "message"), ERRORS, ids=[override for override, _ in ERRORS])
def test_error_names_the_key_and_what_is_accepted(override: str, message: str) -> None:
    """One line: where it came from, key path, what is expected; never the value."""
    assert refused(override).startswith(f"configuration: {message}")


@pytest.mark.parametrize("name", ["Plm", "1plm", "_plm", "plm-x", "plm.x", "proxy", "admin", "plm\nx", "", "plm\u0660"])
def test_upstream_name_is_plain(name: str) -> None:
    """It is a label of metrics and part of a variable's name; proxy and admin are taken."""
    with pytest.raises(ConfigurationError) as caught:
        load(base={"upstreams": {name: BASE["upstreams"]["plm"]}}, environ={})
    shown = name.replace("\n", "?")

    assert checked(caught.value) == (
        f"configuration: upstreams.{shown}: expected a name like [a-z][a-z0-9_]*, not proxy or admin"
    )


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("https://a.example", "https://A.example:443/", True),
        ("https://a.example/v1", "https://a.example/v1/", True),
        ("https://a.example/v1", "https://a.example/v2", False),
        ("https://a.example", "https://a.example:444", False),
    ],
)
def test_upstreams_are_distinct(one: str, other: str, clash: bool) -> None:
    """Two with the same base URL would be one of two credentials by chance."""
    upstreams = {name: BASE["upstreams"]["plm"] | {"base_url": url} for name, url in (("a", one), ("b", other))}
    if not clash:
        assert len(load(base={"upstreams": upstreams}, environ={}).upstreams) == 2
        return
    with pytest.raises(ConfigurationError) as caught:
        load(base={"upstreams": upstreams}, environ={})

    assert checked(caught.value).endswith("upstreams.b.base_url is the same as that of a; expected each once")


def test_free_ports_may_be_asked_for_twice() -> None:
    """Port 0 is another one each time."""
    assert loaded("listen.proxy=127.0.0.1:0", "listen.admin=127.0.0.1:0").listen.proxy.port == 0


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LOCALHOST:1", "[::ffff:127.0.0.1]:1"]
)
def test_loopback_addresses_are_taken(address: str) -> None:
    """Whoever can connect to them is on this machine."""
    assert loaded(f"listen.proxy={address}").listen.proxy.port == 1


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.evil.example:1", "127.0.0.1.evil.example:1", "2130706433:1"],
)
def test_other_addresses_are_not(address: str) -> None:
    """The port gives the use of a credential to whoever reaches it."""
    assert "proxy is neither loopback nor unix:/path" in refused(f"listen.proxy={address}")
    assert str(loaded(f"listen.admin={address}").listen.admin) == address  # it guards itself
    assert "expected a loopback address or unix:/path" in refused(f"{PLM}.listen={address}")


def test_clear_text_needs_to_be_said() -> None:
    """For the upstream and for its token endpoint; it is said once for both."""
    found = loaded(f"{PLM}.base_url=http://x", f"{PLM}.oauth2.token_url=http://x/t", f"{PLM}.insecure_http=true")

    assert found.upstreams["plm"].origin.scheme == "http"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://t.b2clogin.com/t/oauth2/v2.0/token?p=b2c_1_x", b"/t/oauth2/v2.0/token?p=b2c_1_x"),
        ("https://api.example.com/oauth?grant_type=x&a=%2F#", None),
        ("https://sso.example.com/realms/My%20Realm//token", b"/realms/My%20Realm//token"),
        ("https://sso.example.com", b"/"),
        ("https://sso.example.com?p=/x", b"/?p=/x"),
        ("https://sso.example.com/a/../b/./c;x=%zz?", b"/a/../b/./c;x=%zz?"),
        ("https://sso.example.com/straße", b"/stra%C3%9Fe"),
        ("https://sso.example.com//evil.example/t", b"//evil.example/t"),
        ("https://user@sso.example.com/t", None),
        ("https://sso.example.com\\@evil.example/t", None),
        ("https://sso.example.com/a\tb", None),
        ("HTTPS://SSO.example.com:443/T", b"/T"),
    ],
)
def test_a_token_url_is_taken_as_it_was_published(url: str, target: bytes | None) -> None:
    """Its query, escapes and doubled slashes are kept (RFC 6749 section 3.2); user, fragment and blanks are refused."""
    if target is None:
        with pytest.raises(ValueError, match=r"expected a URL such as https://sso\.example\.com/oauth/token") as caught:
            parse_token_url(url)
        assert "evil" not in str(caught.value)
    else:
        origin, found = parse_token_url(url)
        assert found == target
        assert (origin.scheme, origin.port, origin.path) == ("https", 443, b"")
        assert not origin.host.startswith("evil")


def test_combinations_that_are_possible() -> None:
    """Each grant and each way of a client to authenticate has a configuration."""
    for override in (
        "client_auth=none",
        "client_auth=client_secret_basic_raw",
        "client_auth=client_secret_post",
        "client_auth=assertion",
        "grant=password",
        "grant=refresh_token",
        "grant=jwt_bearer",
        "grant=token_exchange",
        "client_auth=private_key_jwt",
        "client_auth=tls_client_auth",
    ):
        assert loaded(
            f"{PLM}.oauth2.{override}",
            f"{PLM}.oauth2.username=u",
            f"{PLM}.oauth2.password={{env: P}}",
            f"{PLM}.oauth2.refresh_token={{env: R}}",
            f"{PLM}.oauth2.private_key={{env: K}}",
            f"{PLM}.oauth2.client_assertion={{file: A}}",
            f"{PLM}.oauth2.subject=u",
            f"{PLM}.oauth2.subject_token={{file: T}}",
            f"{PLM}.tls={{client_cert: c, client_key: {{env: K}}}}",
        )


def test_nothing_can_be_changed_after() -> None:
    """What was checked is what is used."""
    found = loaded()

    with pytest.raises(ValidationError):
        found.upstreams["plm"].base_url = "https://evil.example"


# Where values come from.


def test_override_beats_environment_beats_file_beats_base(file: Path) -> None:
    """In this order, key by key: the rest of a mapping stays."""
    base = {"log": {"level": "error", "format": "text"}, "store": {"url": "memory"}}
    file.write_text(f"{MINIMAL}log: {{level: warning}}\n")
    variable = {"AUTH_SIDECAR__LOG__LEVEL": "info"}
    found = [
        load(base=BASE | base, environ={}).log.level,
        load(file, base=base, environ={}).log.level,
        load(file, base=base, environ=variable).log.level,
        load(file, base=base, environ=variable, overrides=["log.level=error", "log.level=debug"]).log.level,
    ]
    merged = load(file, base=base, environ={})

    assert found == ["error", "warning", "info", "debug"]
    assert (merged.log.format, merged.store.url) == ("text", "memory")
    assert base == {"log": {"level": "error", "format": "text"}, "store": {"url": "memory"}}


def test_environment_names_are_key_paths() -> None:
    """Upper case, two underscores between keys, one stays; other variables do not count."""
    found = loaded(
        AUTH_SIDECAR__UPSTREAMS__PLM__OAUTH2__CLIENT_ID="other",
        AUTH_SIDECAR__UPSTREAMS__PLM__READ_ONLY="true",
        AUTH_SIDECAR_LOG__LEVEL="nonsense",
        XAUTH_SIDECAR__LOG__LEVEL="nonsense",
    ).upstreams["plm"]

    assert (found.oauth2.client_id, found.read_only) == ("other", True)


def test_order_of_variables_does_not_matter() -> None:
    """A mapping first, then its keys, whatever order the system has them in."""
    environ = {"AUTH_SIDECAR__LOG__LEVEL": "debug", "AUTH_SIDECAR__LOG": "{format: text, level: error}"}

    assert loaded(**environ).log == loaded(**dict(reversed(environ.items()))).log
    assert (loaded(**environ).log.level, loaded(**environ).log.format) == ("debug", "text")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("abc", "abc"),
        ("007", "007"),
        ("123", "123"),
        ("1e3", "1e3"),
        ("true", "true"),
        ("2024-13-45", "2024-13-45"),
        ("a #b", "a #b"),
        ("a: b", "a: b"),
        ("&a b", "&a b"),
        ("*a", "*a"),
        ("!a b", "!a b"),
        ("!!int x", "!!int x"),
        ("a=b==", "a=b=="),
        (" a ", " a "),
        ("- a", "- a"),
        ("|", "|"),
        ("%a", "%a"),
        ("{a", "{a"),
        ("[a", "[a"),
        ("'a'", "a"),
        ('"a\\n"', "a\n"),
        ("'it", "'it"),
    ],
)
def test_text_is_taken_as_it_is(text: str, value: str) -> None:
    """A secret with a `#` is not cut off, and one of digits keeps its zeros; quotes are for what looks like more."""
    variable = {"AUTH_SIDECAR__UPSTREAMS__PLM__OAUTH2__SCOPE": text}
    found = loaded(f"{SECRET}.env=null", f"{SECRET}.value={text}", **variable).upstreams["plm"].oauth2

    assert found.scope == value
    assert found.client_secret == SecretReference(value=value)


def test_lists_mappings_and_nothing_are_read_as_yaml() -> None:
    """What a line cannot say otherwise."""
    found = loaded(
        f"{PLM}.addresses=[10.0.0.0/8, 192.0.2.1]",
        f"{PLM}.oauth2.extra={{audience: a b}}",
        f"{PLM}.retry.statuses=[429]",
        f"{PLM}.retry.attempts=5",
        f"{PLM}.listen=127.0.0.1:1",
        f"{PLM}.listen=null",
        f"{PLM}.oauth2.scope=x",
        f"{PLM}.oauth2.scope=~",
    ).upstreams["plm"]

    assert found.addresses == ("10.0.0.0/8", "192.0.2.1/32")
    assert found.oauth2.extra == {"audience": "a b"}
    assert (set(found.retry.statuses), found.retry.attempts) == ({429}, 5)
    assert (found.listen, found.oauth2.scope) == (None, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "--set a: expected key.path=value"),
        ("=v", "--set : expected key.path=value"),
        ("", "--set : expected key.path=value"),
        ("a\nb", "--set a?b: expected key.path=value"),
        ("state_dir.x=1", "--set state_dir.x: state_dir is not a mapping; expected a key path of the configuration"),
        ("a..b=v", f"configuration: a: unknown key; expected one of: {TOP}"),
        (
            "\x1b[31mx=1",
            f"configuration: ?[31mx: unknown key; expected one of: {TOP}",
        ),
    ],
)
def test_override_that_cannot_be_read(override: str, message: str) -> None:
    """The option is named, and what it should look like; what a terminal would act on is not printed."""
    assert refused("state_dir=/x", override) == message


def test_variable_that_leads_into_a_value_is_named() -> None:
    """By its own name, for that is what there is to change."""
    assert refused("log.level=info", AUTH_SIDECAR__LOG="x", AUTH_SIDECAR__LOG__LEVEL="info") == (
        "AUTH_SIDECAR__LOG__LEVEL: log is not a mapping; expected a key path of the configuration"
    )


@pytest.mark.parametrize("text", ["[" * 1000, "{a: " * 1000, "[&a [*a]]", "{a: &a {b: *a}}", "{a: 1, a: 2}", "[!x y]"])
def test_override_that_is_no_yaml_is_text(text: str) -> None:
    """Nothing in it makes the program fail in another way than any wrong value."""
    assert loaded(f"{PLM}.oauth2.scope={text}").upstreams["plm"].oauth2.scope == text


def test_default_files() -> None:
    """A variable names one; else here, then where the system keeps it."""
    assert default_paths({"AUTH_SIDECAR_CONFIG": "/x/y.yaml"}) == [Path("/x/y.yaml")]
    assert default_paths({"AUTH_SIDECAR_CONFIG": ""}) == [
        Path("auth-sidecar.yaml"),
        Path("/etc/auth-sidecar/config.yaml"),
    ]


def test_first_default_file_that_exists_is_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable first, then the directory; a file that was named beats both."""
    (tmp_path / "auth-sidecar.yaml").write_text(f"{MINIMAL}log: {{level: debug}}\n")
    file.write_text(f"{MINIMAL}log: {{level: error}}\n")

    assert load(environ={}).log.level == "debug"
    assert load(environ={"AUTH_SIDECAR_CONFIG": str(file)}).log.level == "error"
    assert load(file, environ={"AUTH_SIDECAR_CONFIG": "/nowhere"}).log.level == "error"
    monkeypatch.setenv("AUTH_SIDECAR_CONFIG", str(file))
    assert load().log.level == "error"


def test_no_file_says_where_it_was_looked_for() -> None:
    """Unless the caller brought a configuration of its own."""
    with pytest.raises(ConfigurationError) as caught:
        load(environ={"AUTH_SIDECAR_CONFIG": "/nowhere/x.yaml"})

    assert checked(caught.value) == (
        "no configuration file; looked for /nowhere/x.yaml; expected -c FILE or one of these"
    )
    assert load(base=BASE, environ={"AUTH_SIDECAR_CONFIG": "/nowhere/x.yaml"})


def test_default_file_that_cannot_be_seen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not skipped: another file might hold another credential."""

    def hidden(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", hidden)
    monkeypatch.setattr(Path, "open", hidden)
    with pytest.raises(ConfigurationError) as caught:
        load(environ={})

    assert checked(caught.value) == "auth-sidecar.yaml: cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["missing.yaml", ".", "c.yaml/x"])
def test_file_that_cannot_be_read_says_why(file: Path, tmp_path: Path, name: str) -> None:
    """With the words of the system, and without a traceback."""
    assert file.exists()
    with pytest.raises(
        ConfigurationError, match=r"cannot be read: (No such file|Is a directory|Not a directory)"
    ) as caught:
        load(tmp_path / name, environ={})

    checked(caught.value)


YAML_ERRORS = [
    ("", "expected a mapping with the key upstreams"),
    ("5", "expected a mapping with the key upstreams"),
    ("[a]", "expected a mapping with the key upstreams"),
    (b"\xff\xfe", "cannot be read: not UTF-8"),
    (b"a: \x00", "it cannot be read, or is nested too deeply; expected YAML"),
    ("a: [", "line 1: "),
    ("a: b: c", "line 1: mapping values are not allowed here; expected YAML"),
    ("a: 1\nb: 2\na: 3", "line 3: found duplicate key; expected YAML"),
    ("---\na: 1\n---\nb: 2", "line 3: but found another document; expected YAML"),
    ("\ta: 1", "line 1: found character"),
    ("%YAML 1.9\n---\na: 1", "it cannot be read, or is nested too deeply; expected YAML"),
    ("[" * 1000, "it cannot be read, or is nested too deeply; expected YAML"),
    ("{a: " * 1000, "it cannot be read, or is nested too deeply; expected YAML"),
    ("a: !!python/object:os.system x", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("a: !!python/object/apply:os.system [id]", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("a: !!python/object/new:os.system [id]", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("a: !!python/name:os.system", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("a: !!python/module:os", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("a: !include /etc/passwd", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("? {a: 1}\n: b", "line 1: found unhashable key; expected YAML"),
    ("x" * (1 << 20) + "y", "over 1 MiB; expected a configuration file"),
    # a secret, in a place where the reader's own words would quote it
    ("a: {value: CANARY-1, value: CANARY-2}", "line 1: found duplicate key; expected YAML"),
    ("a: {value: *CANARY}", "line 1: found undefined alias; expected YAML"),
    ("a: {value: !CANARY x}", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("a: {value: !<CANARY> x}", "line 1: could not determine a constructor for the tag; expected YAML"),
    ("a: {value: !!int CANARY}", "it cannot be read, or is nested too deeply; expected YAML"),
    ("a: {value: !!float CANARY}", "it cannot be read, or is nested too deeply; expected YAML"),
    ("a: {value: !!bool CANARY}", "it cannot be read, or is nested too deeply; expected YAML"),
    ("a: {value: !!timestamp CANARY}", "line 1: failed to construct timestamp from; expected YAML"),
    ('a: {value: "CANARY}', "line 1: found unexpected end of stream; expected YAML"),
]


@pytest.mark.parametrize(("text", "message"), YAML_ERRORS)
def test_bad_yaml_is_one_line_without_the_text(file: Path, text: str | bytes, message: str) -> None:
    """The line it was found in, and never a word of the file: it may hold secrets. Tags make no objects."""
    with pytest.raises(ConfigurationError) as caught:
        load_text(file, text)

    assert checked(caught.value).startswith(f"{file}: {message}")


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    """A device or a pipe has no size to look at first."""
    with pytest.raises(ConfigurationError, match="over 1 MiB"):
        load(Path("/dev/zero"), environ={})


def test_secret_in_an_anchor_is_not_warned_about(file: Path) -> None:
    """The reader would warn about the same anchor twice and quote the lines; it is not an error either."""
    found = load_text(file, MINIMAL.replace("base_url: ", "base_url: &CANARY ").replace("sync", "&CANARY y"))

    assert found.upstreams["plm"].oauth2.client_id == "y"


BOMBS = {
    "mappings": "x0: &x0 {a: 1}\n" + "".join(f"x{n}: &x{n} {{a: *x{n - 1}, b: *x{n - 1}}}\n" for n in range(1, 40)),
    "lists": "x0: &x0 [1]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40)),
    "wide": f"x0: &x0 [{'1, ' * 5000}]\nx1: [{'*x0, ' * 5000}]\n",
    "deep": "x0: &x0 {a: 1}\n" + "".join(f"x{n}: &x{n} {'{a: ' * 40}*x{n - 1}{'}' * 40}\n" for n in range(1, 40)),
    "endless mapping": "x: &x {a: *x}\n",
    "endless list": "x: &x [*x, *x]\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_alias_bomb_is_bounded(file: Path, text: str, place: str) -> None:
    """A small file that means a huge or endless configuration is refused before anything follows its aliases."""
    started = time.process_time()
    with pytest.raises(ConfigurationError, match=r"values, with its aliases|is nested deeper than 50") as caught:
        load_text(
            file,
            (text if place == "beside" else "log:\n" + "".join(f"  {line}\n" for line in text.splitlines())) + MINIMAL,
        )

    assert checked(caught.value).endswith("; expected YAML")
    assert time.process_time() - started < 2


def test_ordinary_aliases_and_merges_are_taken(file: Path) -> None:
    """What several upstreams share is written once."""
    text = MINIMAL.replace("oauth2:", "oauth2: &auth") + (
        "  other: {base_url: https://o.example, oauth2: {<<: *auth, scope: s}}\n"
        "  third: {base_url: https://t.example, oauth2: *auth}\n"
    )
    found = load_text(file, text).upstreams

    assert found["third"].oauth2 == found["plm"].oauth2
    assert (found["other"].oauth2.client_id, found["other"].oauth2.scope) == ("sync", "s")


def test_large_configuration_is_taken(file: Path) -> None:
    """The bounds are far from what anybody writes."""
    upstream = MINIMAL.split("plm:\n")[1]
    text = "upstreams:\n" + "".join(
        f"  plm{number}:\n{upstream.replace('plm.example.com/api', f'p{number}.example.com')}" for number in range(500)
    )

    assert len(load_text(file, text).upstreams) == 500


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.text(max_size=40),
        st.text(" \n:-,[]{}&*!|>'\"%@#?a1~.<\t", max_size=40),
        st.lists(
            st.sampled_from(
                ["a: ", "&a ", "*a", "!!int ", "!!set ", "\n", "  ", "- ", "[", "]", "{", "}", "<<: ", ", ", "?"]
            ),
            max_size=12,
        ).map("".join),
    )
)
@example("a: !!omap [x: 1]")
@example("? !!set {a}\n: b")
def test_no_text_makes_it_crash(file: Path, text: str) -> None:
    """Any file is a configuration or a ConfigurationError in one line."""
    secret = f"x: {{value: '{canary('s')}'}}\n"
    for whole in (text, secret + text, f"{MINIMAL}log: {text}"):
        try:
            load_text(file, whole)
        except ConfigurationError as error:
            checked(error)


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=30), st.sampled_from(["state_dir", SECRET, f"{PLM}.oauth2.extra", f"{PLM}.listen", "a"]))
def test_no_override_makes_it_crash(text: str, key: str) -> None:
    """Any text is a value or a ConfigurationError in one line."""
    try:
        loaded(f"{key}={text}")
    except ConfigurationError as error:
        checked(error)


# The state directory.


def test_state_directory_is_under_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user has one."""
    monkeypatch.setenv("HOME", "/home/app")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/private/x")

    assert loaded().state_dir == Path("/home/app/.local/state/auth-sidecar")


@pytest.mark.parametrize(
    ("state_directory", "expected"),
    [(None, "/var/lib/auth-sidecar"), ("", "/var/lib/auth-sidecar"), ("/var/lib/x", "/var/lib/x"), ("/a:/b", "/a")],
)
@pytest.mark.parametrize("home", [None, ""])
def test_state_directory_without_home(
    monkeypatch: pytest.MonkeyPatch, home: str | None, state_directory: str | None, expected: str
) -> None:
    """A service has none: systemd says which, the first of several; else it is the usual one."""
    for name, value in (("HOME", home), ("STATE_DIRECTORY", state_directory)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)

    assert loaded().state_dir == Path(expected)


def test_state_directory_may_begin_with_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the documentation writes it; without a home that is an error of the key, not a crash."""
    monkeypatch.setenv("HOME", "/home/app")
    assert loaded("state_dir=~/state").state_dir == Path("/home/app/state")
    assert loaded("state_dir=/x/~").state_dir == Path("/x/~")

    assert refused("state_dir=~nobody-of-this-name/x") == (
        "configuration: state_dir: expected a directory; there is no home to stand for ~"
    )


# Values.


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("90s", 90.0),
        ("15m", 900.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("100ms", 0.1),
        ("1.5h", 5400.0),
        ("90", 90.0),
        (" 90 s ", 90.0),
        (90, 90.0),
        (0, 0.0),
        (0.25, 0.25),
        ("0", 0.0),
    ],
)
def test_duration(value: object, seconds: float) -> None:
    """A number with a unit, or seconds."""
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "s",
        "-1",
        "+1",
        "-1s",
        "1 x",
        "1S",
        "1M",
        "1min",
        "1.s",
        ".5",
        "1e3",
        "1m30s",
        "1,5s",
        "0x10",
        "٣s",
        "inf",
        "nan",
        *[None, True, False, [], {}, -1, -0.5, math.inf, math.nan, "9" * 400, "9" * 305 + "d", b"1"],
    ],
)
def test_no_duration(value: object) -> None:
    """Nothing negative, nothing endless, no guess at a unit."""
    with pytest.raises(ValueError, match=r"^expected a duration such as 90s, 15m, 2h, or seconds$"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("64KiB", 65536),
        ("1MiB", 1 << 20),
        ("2GiB", 2 << 30),
        ("12B", 12),
        ("12", 12),
        (12, 12),
        (0, 0),
        (" 1 KiB ", 1024),
    ],
)
def test_size(value: object, size: int) -> None:
    """A whole number with a binary unit, or bytes."""
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "KiB", "-1", "1.5MiB", "1KB", "1kib", "1K", "٣", 1.5, True, None, [], "1 TiB"])
def test_no_size(value: object) -> None:
    """A decimal unit could be meant either way, so it is none."""
    with pytest.raises(ValueError, match=r"^expected a size such as 64KiB, 1MiB, or bytes$"):
        parse_size(value)


@pytest.mark.parametrize(
    ("value", "margin", "of_100"),
    [
        ("20%", Margin(0.2, None), 20.0),
        ("12.5 %", Margin(0.125, None), 12.5),
        ("0%", Margin(0.0, None), 0.0),
        ("50%", Margin(0.5, None), 50.0),
        ("90%", Margin(0.9, None), 50.0),
        ("30s", Margin(None, 30.0), 30.0),
        ("5m", Margin(None, 300.0), 50.0),
        (0, Margin(None, 0.0), 0.0),
        (10, Margin(None, 10.0), 10.0),
        (Margin(None, 7.0), Margin(None, 7.0), 7.0),
    ],
)
def test_margin(value: object, margin: Margin, of_100: float) -> None:
    """A share of the lifetime or a duration; never more than half of the lifetime."""
    assert parse_margin(value) == margin
    assert parse_margin(value).of(100.0) == pytest.approx(of_100)


@pytest.mark.parametrize(("value", "share"), [("20%", 0.2), ("0%", 0.0), ("100 %", 1.0), (" 12.5% ", 0.125)])
def test_share(value: object, share: float) -> None:
    """A part of a whole."""
    assert parse_share(value) == pytest.approx(share)


@pytest.mark.parametrize("value", ["", "%", "100.1%", "-1%", "20", 20, 0.2, 1, True, None, [], "٣%", "9" * 400 + "%"])
def test_no_share(value: object) -> None:
    """A plain number could be meant either way."""
    with pytest.raises(ValueError, match=r"^expected a share such as 20%, at most 100%$"):
        parse_share(value)


@pytest.mark.parametrize("value", ["", "%", "-5%", "x%", "20 percent", "٣%", True, None, [], -1])
def test_no_margin(value: object) -> None:
    """The error names both forms."""
    with pytest.raises(ValueError, match=r"^expected a share such as 20% or a duration such as 5m$"):
        parse_margin(value)


@pytest.mark.parametrize(
    ("value", "address", "text"),
    [
        ("127.0.0.1:8080", HostPort("127.0.0.1", 8080), "127.0.0.1:8080"),
        ("[::1]:8080", HostPort("::1", 8080), "[::1]:8080"),
        ("LocalHost:0", HostPort("localhost", 0), "localhost:0"),
        ("127.0.0.1:65535", HostPort("127.0.0.1", 65535), "127.0.0.1:65535"),
        (HostPort("::1", 1), HostPort("::1", 1), "[::1]:1"),
    ],
)
def test_host_and_port(value: object, address: HostPort, text: str) -> None:
    """As they are written everywhere."""
    assert parse_address(value) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        ":8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "::1:8080",
        "[::1]",
        "[x]:1",
        "a@b:1",
        "a:1/",
        "a:1?",
        "a:1#b",
        "a:1 ",
        " a:1",
        "a:8\n0",
        "http://a:1",
        "a:1:1",
        "a:٣",
        8080,
        None,
    ],
)
def test_no_host_and_port(value: object) -> None:
    """Nothing before, between and behind."""
    with pytest.raises(ValueError, match=r"^expected host:port such as 127.0.0.1:8080, or unix:/path$"):
        parse_address(value)


# The schema.


def _models(model: type[BaseModel], seen: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Return *model* and all below it by name."""
    seen[model.__name__] = model
    for field in model.model_fields.values():
        parts = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel) and part.__name__ not in seen:
                _models(part, seen)
    return seen


@pytest.mark.parametrize("model", _models(Settings, {}).values(), ids=_models(Settings, {}))
def test_every_model_is_strict(model: type[BaseModel]) -> None:
    """Unknown keys are errors, values are fixed, and no error shows its input, in every part."""
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]
    assert model.model_config["hide_input_in_errors"]


def test_schema_is_one_that_editors_read() -> None:
    """It says of every value of our own what it looks like, and holds no default that is secret."""
    schema = Settings.model_json_schema()
    text = json.dumps(schema)

    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Timeouts"]["properties"]["token"]["examples"] == ["90s", "15m"]
    assert schema["$defs"]["Replay"]["properties"]["memory"]["examples"] == ["64KiB", "1MiB"]
    assert schema["$defs"]["Renew"]["properties"]["margin"]["examples"] == ["20%", "5m"]
    assert schema["$defs"]["Listen"]["properties"]["proxy"]["examples"][0] == "127.0.0.1:8080"
    assert WORD not in text


def test_settings_can_cross_to_another_process() -> None:
    """References do, secrets do not: they are read where they are used."""
    found = loaded()

    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(TypeError):
        pickle.dumps(SecretReference(value="x").read())


# Who may use a port, and what is passed through.

AUTH = f"listen.auth={{username: app, password: {{value: {canary('proxy')}}}}}"


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "proxy.example:1"])
def test_proxy_for_others_asks_for_a_password(address: str) -> None:
    """Then it may be reached from elsewhere; the password is no plain value."""
    found = loaded(f"listen.proxy={address}", AUTH)

    assert str(found.listen.proxy) == address
    assert WORD not in json.dumps(effective(found))


@pytest.mark.parametrize("name", ["a:b", "", "a\x00", "a\nb"])
def test_user_of_the_proxy_is_one_of_basic(name: str) -> None:
    """RFC 7617 knows neither a colon nor control characters in it."""
    with pytest.raises(ConfigurationError, match=r"listen\.auth\.username"):
        load(base={"listen": {"auth": {"username": name, "password": {"env": "X"}}}, **BASE}, environ={})


@pytest.mark.parametrize("key", ["listen.proxy", "listen.admin", f"{PLM}.listen"])
def test_unix_socket(key: str) -> None:
    """On any port, by an absolute path that the system takes."""
    found = effective(loaded(f"{key}=unix:/run/sidecar/it.sock"))
    for part in key.split("."):
        found = found[part]

    assert found == "unix:/run/sidecar/it.sock"
    for path in ("unix:it.sock", "unix:", "unix:/a\nb", "unix:/" + "x" * 100):
        assert f"{key}: expected unix: and an absolute path of at most 100 bytes" in refused(f"{key}={path}")


def test_two_ports_on_one_unix_socket() -> None:
    """As with host and port."""
    assert refused("listen.proxy=unix:/a", "listen.admin=unix:/a").endswith("expected each once")


@pytest.mark.parametrize(
    ("pattern", "normal"),
    [
        ("PyPI.org", "pypi.org"),
        ("pypi.org.", "pypi.org"),
        ("*.Example.org", "*.example.org"),
        ("*.B\u00fccher.example", "*.xn--bcher-kva.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("[::1]", "::1"),
    ],
)
def test_passthrough_names_hosts(pattern: str, normal: str) -> None:
    """In one spelling, as hosts of requests are compared."""
    assert loaded(f"passthrough=['{pattern}']").passthrough == (normal,)


@pytest.mark.parametrize("pattern", ["", "*", "*.", "a b", "a:443", "https://a", "a/b", "*.*.a", "a*"])
def test_passthrough_names_nothing_else(pattern: str) -> None:
    """No port and no path: what would be ignored is refused."""
    assert "passthrough.0: expected a host such as pypi.org" in refused(f"passthrough=['{pattern}']")


@pytest.mark.parametrize("pattern", ["plm.example.com", "PLM.example.com", "*.example.com", "*.com"])
def test_host_of_an_upstream_is_not_passed_through(pattern: str) -> None:
    """Which of the two was meant cannot be known."""
    message = refused(f"passthrough=['{pattern}']")

    assert message.endswith(f"passthrough: {pattern.lower()} is the host of upstream plm; expected other hosts")


# The shared store.

KEYS = "store.keys=[{file: /run/key}]"


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis:6379/0",
        "rediss://redis",
        "redis+sentinel://a:26379,b:26379/main",
        "redis+cluster://a:7000",
        "rediss+cluster://a:7000",
    ],
)
def test_shared_store_needs_keys(url: str) -> None:
    """Records leave the machine: the key must be one that the other instances have too."""
    assert loaded(f"store.url={url}", KEYS).store.shared
    assert "store: keys: a Redis store needs at least one" in refused(f"store.url={url}")


def test_password_in_the_url_of_a_store_is_not_shown() -> None:
    """Where `check` prints, and where a traceback would."""
    found = loaded(f"store.url=redis://app:{canary('redis')}@redis:6379/0", KEYS)

    assert effective(found)["store"]["url"] == "redis://app:***@redis:6379/0"
    assert WORD not in repr(found)


# Processes and limits.


def test_workers_cannot_share_memory() -> None:
    """Each would have a token of its own."""
    assert loaded("workers=auto").workers == "auto"
    assert loaded("workers=3").workers == 3
    for number in ("2", "auto"):
        assert "workers: processes cannot share store.url memory" in refused("store.url=memory", f"workers={number}")
    for number in ("0", "257", "many"):
        assert "workers" in refused(f"workers={number}")


@pytest.mark.parametrize(
    "change",
    ["header=1023", "header=2MiB", "connections=0", "header_timeout=0", "idle_connection=0", "requests=1"],
)
def test_limits_have_limits(change: str) -> None:
    """What would refuse everything, or bound nothing, is a mistake."""
    assert f"limits.{change.partition('=')[0]}" in refused(f"limits.{change}")


def test_home_of_nobody_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers say so of a user that they do not know."""
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/private/sidecar:/other")
    assert str(loaded().state_dir) == "/var/lib/private/sidecar"
