"""The rules of the house: who may import whom, and what no module may hold.

Each rule is a function from one module to its violations. Each is tried on a small bad example as well, and on a
near one that is allowed: a rule that cannot fail is no rule.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BASE = frozenset({"errors", "secret", "clock", "events"})
SETTINGS = BASE | {"policy", "settings"}
AUTH = SETTINGS | {"auth"}
TOKENS = AUTH | {"tokens"}
EXCHANGE = TOKENS | {"exchange"}
RUN = EXCHANGE | {"ca", "proxy", "batch", "observe"}

# What each room may import beside itself. A folder of sidecar that is not here is not in the plan of the house.
ROOMS: dict[str, frozenset[str]] = {
    "errors": frozenset({"secret"}),
    "secret": frozenset(),
    "clock": frozenset(),
    "events": frozenset({"errors"}),
    "policy": frozenset({"errors"}),
    "settings": BASE | {"policy"},
    "ca": BASE | {"policy"},
    "auth": SETTINGS,
    "tokens": AUTH,
    "exchange": TOKENS,
    "proxy": EXCHANGE,
    "batch": EXCHANGE,
    "observe": BASE | {"settings", "tokens"},
    "emulator": BASE | {"ca"},
    "run": RUN,
    "learn": RUN | {"run"},
    "cli": RUN | {"run", "emulator", "learn"},
    "__main__": frozenset({"cli"}),
    "__init__": frozenset(),
    "addons": RUN | {"run"},
}
INNER_FOLDERS = frozenset(
    {
        "auth/recipes",
        "emulator/scripts",
        "emulator/systems",
        "settings/presets",
        "observe/dashboard",
        "run/doctor",
        "run/exec",
        "tokens/redis",
    }
)

# Of the tokens, observe may know the plain records, not the parts that do something.
RECORDS = ("sidecar.tokens.token", "sidecar.tokens.store")

# Which files may import a foreign package; everybody else may not.
OWNERS: dict[str, tuple[str, ...]] = {
    "OpenSSL": ("sidecar/ca/authority.py", "sidecar/proxy/"),
    "aiohttp": ("sidecar/exchange/upstream.py", "sidecar/exchange/connection.py"),
    "aiohttp.HttpVersion11": ("sidecar/emulator/",),
    "aiohappyeyeballs": ("sidecar/exchange/passthrough.py",),
    "aiohttp.web": ("sidecar/observe/admin.py", "sidecar/emulator/"),
    "cryptography": ("sidecar/tokens/seal.py", "sidecar/ca/"),
    "idna": ("sidecar/policy/hosts.py",),
    "httpx": ("sidecar/auth/", "sidecar/cli/", "sidecar/learn/", "sidecar/run/"),
    "mitmproxy": ("sidecar/proxy/", "addons/"),
    "prometheus_client": ("sidecar/observe/metrics.py",),
    "random": ("sidecar/clock.py",),
    "redis": ("sidecar/tokens/redis/client.py",),
    "time": ("sidecar/clock.py",),
}

PURE = frozenset({"idna"})
"""Foreign packages that only compute."""
IMPURE = frozenset({"asyncio", "os", "random", "socket", "ssl", "threading", "time"})

# A longer module needs its reason here.
LINES = 250
LONG_MODULES: dict[str, str] = {}

MUTABLE_CALLS = re.compile(
    "Counter|OrderedDict|Weak(KeyDictionary|Set|ValueDictionary)|bytearray|defaultdict|deque|dict|list|set"
)
MUTATING_METHODS = re.compile(
    "add|append(left)?|clear|discard|extend|insert|pop(item|left)?|remove|reverse|setdefault|sort|update"
)
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*|__[a-z]+__")
EMPTY_NAMES = ("Handler", "Helper", "Helpers", "Manager", "Util", "Utils")


@dataclass(frozen=True)
class Module:
    """One source file: its path from the top of the repository, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        """The first name under sidecar, or `addons`."""
        parts = self.path.removesuffix(".py").split("/")
        return parts[1] if parts[0] == "sidecar" else parts[0]

    @cached_property
    def imports(self) -> tuple[str, ...]:
        """Every dotted name that this module imports anywhere; `from a import b` gives `a.b`."""
        return tuple(_imports(self.tree, self.path.split("/")[:-1]))


def _imports(tree: ast.Module, package: list[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (name.name for name in node.names)
            case ast.ImportFrom():
                above = package[: len(package) + 1 - node.level] if node.level else []
                origin = ".".join([*above, *filter(None, [node.module])])
                yield from (f"{origin}.{name.name}" for name in node.names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def within(name: str, parent: str) -> bool:
    """Tell whether the dotted *name* is *parent* or lies in it."""
    return name == parent or name.startswith(f"{parent}.")


Rule = Callable[[Module], list[str]]


def direction(module: Module) -> list[str]:
    allowed = ROOMS.get(module.room, frozenset()) | {module.room, "__version__"}
    rooms = {name: name.removeprefix("sidecar").split(".")[1:2] for name in module.imports if within(name, "sidecar")}
    return [f"{module.room} imports {name}" for name, room in rooms.items() if not allowed.issuperset(room or ["*"])]


def observe_knows_records_only(module: Module) -> list[str]:
    if module.room != "observe":
        return []
    tokens = [name for name in module.imports if within(name, "sidecar.tokens")]
    return [f"imports {name}" for name in tokens if not any(within(name, record) for record in RECORDS)]


def policy_is_pure(module: Module) -> list[str]:
    if module.room != "policy":
        return []
    pure = (sys.stdlib_module_names | PURE) - IMPURE
    foreign = [
        f"imports {name}"
        for name in module.imports
        if name.split(".")[0] not in pure and not within(name, "sidecar.errors") and not within(name, "sidecar.policy")
    ]
    waiting = (ast.AsyncFor, ast.AsyncFunctionDef, ast.AsyncWith, ast.Await)
    return foreign + [f"waits in line {node.lineno}" for node in ast.walk(module.tree) if isinstance(node, waiting)]


def libraries_stay_with_their_owners(module: Module) -> list[str]:
    found = []
    for name in module.imports:
        parents = [parent for parent in OWNERS if within(name, parent)]
        if parents and not module.path.startswith(OWNERS[max(parents, key=len)]):
            found.append(f"imports {name}")
    return found


def dates_come_from_the_clock(module: Module) -> list[str]:
    return [
        f"reads the wall time in line {node.lineno}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"now", "today", "utcnow"}
        and ast.unparse(node.value).rpartition(".")[2] in {"date", "datetime"}
    ]


def no_assert(module: Module) -> list[str]:
    return [f"asserts in line {node.lineno}" for node in ast.walk(module.tree) if isinstance(node, ast.Assert)]


def _is_mutable(value: ast.expr | None) -> bool:
    match value:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return MUTABLE_CALLS.fullmatch(name) is not None
    return False


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run at import outside functions and classes, those inside `if` and `try` too."""
    for statement in body:
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _module_level(getattr(statement, field, []))
            for part in getattr(statement, "handlers", getattr(statement, "cases", [])):
                yield from _module_level(part.body)


def _mutables(module: Module) -> dict[str, int]:
    """Return the module-level names bound to something mutable, with their lines."""
    found = {}
    for statement in _module_level(module.tree.body):
        match statement:
            case ast.Assign(targets=targets, value=value) if _is_mutable(value):
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if _is_mutable(value):
                names = [name]
            case _:
                continue
        found |= dict.fromkeys(names, statement.lineno)
    return found


def no_module_state(module: Module) -> list[str]:
    mutables = _mutables(module)
    if module.room == "addons":
        mutables.pop("addons", None)  # the name that mitmproxy reads
    found = [f"{name} in line {line} is mutable" for name, line in mutables.items() if not CONSTANT.fullmatch(name)]
    for node in ast.walk(module.tree):
        match node:
            case ast.Global():
                found.append(f"`global` in line {node.lineno}")
            case (
                ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del())
                | ast.AugAssign(target=ast.Name(id=name))
            ) if name in mutables:
                found.append(f"{name} is changed in line {node.lineno}")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if name in mutables:
                if MUTATING_METHODS.fullmatch(method):
                    found.append(f"{name} is changed in line {node.lineno}")
    return found


def short_enough(module: Module) -> list[str]:
    lines = module.text.count("\n")
    if module.path in LONG_MODULES:
        return [] if lines > LINES else ["is short again: take it off the list of long modules"]
    return [f"has {lines} lines, more than {LINES}"] if lines > LINES else []


def names_say_something(module: Module) -> list[str]:
    classes = [node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    found = [f"class {name}" for name in classes if name.endswith(EMPTY_NAMES)]
    stem = module.path.rpartition("/")[2].removesuffix(".py")
    return [*found, f"module {stem}"] if stem.title().endswith(EMPTY_NAMES) else found


def circles(modules: Sequence[Module]) -> list[str]:
    """Return each group of modules that import each other, directly or not; for the types alone counts as well."""
    by_name = {each.path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): each for each in modules}
    reached = {
        name: {found for imported in each.imports if (found := _owner(imported, by_name)) is not None} - {name}
        for name, each in by_name.items()
    }
    for _ in reached:  # a way is at most as long as there are modules
        further = {name: each.union(*(reached[other] for other in each)) for name, each in reached.items()}
        if further == reached:
            break
        reached = further
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in reached}
    return [" <-> ".join(group) for group in sorted(groups) if group]


def _owner(imported: str, modules: Container[str]) -> str | None:
    """Return the module that *imported* names: it, or the one that the name is in."""
    return next((name for name in (imported, imported.rpartition(".")[0]) if name in modules), None)


def in_the_plan(folder: str) -> bool:
    """Tell whether *folder*, named from sidecar on with slashes, is one of the rooms or a known folder in one."""
    return folder in ROOMS or folder in INNER_FOLDERS


def third_party(module: Module) -> set[str]:
    """Return the top names of foreign packages that *module* imports."""
    return {name.split(".")[0] for name in module.imports} - sys.stdlib_module_names - {"sidecar", "addons"}


SCRIPTS = ROOT / "sidecar/emulator/scripts"
"""Programs of their own, that stand for what people have."""
MODULES = [
    Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for top in ("sidecar", "addons")
    for path in sorted((ROOT / top).rglob("*.py"))
    if path.parent != SCRIPTS
]


def check(rule: Rule) -> None:
    found = [f"{module.path}: {what}" for module in MODULES for what in rule(module)]
    assert not found, "\n".join(["", *found])


def test_rooms_import_downwards_only() -> None:
    """No module imports a room above its own, or one beside it."""
    check(direction)


def test_observe_knows_only_plain_records_of_tokens() -> None:
    """What observes cannot reach a store, an issuer or a key."""
    check(observe_knows_records_only)


def test_policy_is_pure() -> None:
    """The deciding code knows neither time nor chance nor sockets, and never waits."""
    check(policy_is_pure)


def test_libraries_stay_with_their_owners() -> None:
    """A library that shapes the code around it is imported in its own place only."""
    check(libraries_stay_with_their_owners)


def test_dates_come_from_the_clock() -> None:
    """Nobody asks `datetime` for the present: a test could not own it."""
    check(dates_come_from_the_clock)


def test_no_assert_guards_anything() -> None:
    """`python -O` removes asserts, and the product runs under it."""
    check(no_assert)


def test_no_module_level_state() -> None:
    """What a module binds at import to something mutable is a constant, and nobody changes it."""
    check(no_module_state)


def test_modules_are_short() -> None:
    """A module fits in one reading, or says why not."""
    check(short_enough)


def test_long_modules_exist() -> None:
    """The list of long modules names no module that has gone."""
    assert set(LONG_MODULES) <= {module.path for module in MODULES}


def test_scripts_know_nothing_of_the_product() -> None:
    """They import the standard library, and what they have in common."""
    scripts = [Module(path.relative_to(ROOT).as_posix(), path.read_text()) for path in SCRIPTS.glob("*.py")]
    assert set().union(*(third_party(script) for script in scripts)) == {"sync"}
    assert not [script.path for script in scripts if re.search(r"^(from|import) sidecar", script.text, re.MULTILINE)]


def test_names_say_something() -> None:
    """No class or module is named for being in the middle of things."""
    check(names_say_something)


def test_no_module_is_in_a_circle() -> None:
    """Every module can be read, and deleted, after those it knows."""
    assert circles(MODULES) == []


def test_every_folder_is_a_room() -> None:
    """A new folder of sidecar is a decision: it gets its place in the order first."""
    top = ROOT / "sidecar"
    files = [path.relative_to(top) for path in top.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    folders = {path.parent.as_posix() for path in files} - {"."}
    assert [folder for folder in sorted(folders) if not in_the_plan(folder)] == []


def test_every_module_is_in_a_room() -> None:
    """A new module at the top of sidecar is a decision too."""
    assert {module.room for module in MODULES} <= set(ROOMS)


def test_imported_libraries_are_the_declared_ones() -> None:
    """What is imported is a dependency of our own, not by luck one of somebody else's; none is there for nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in project["dependencies"]}
    names = {
        "jwt": "pyjwt",
        "re2": "google-re2",
        "OpenSSL": "pyopenssl",
        "ruamel": "ruamel-yaml",
        "prometheus_client": "prometheus-client",
    }
    imported = {names.get(name, name) for module in MODULES for name in third_party(module)}
    assert imported == declared


def test_there_is_something_to_check() -> None:
    """An empty list of modules would satisfy every rule."""
    assert len(MODULES) > 10


BAD = [
    (direction, "sidecar/policy/x.py", "from sidecar.settings import Settings"),
    (direction, "sidecar/tokens/x.py", "from sidecar.exchange.upstream import Pool"),
    (direction, "sidecar/exchange/x.py", "from sidecar import proxy"),
    (direction, "sidecar/exchange/x.py", "from ..proxy import http1"),
    (direction, "sidecar/exchange/x.py", "from .. import observe"),
    (direction, "sidecar/batch/x.py", "import sidecar.proxy.listener"),
    (direction, "sidecar/proxy/x.py", "def f():\n    from sidecar.observe import log"),
    (direction, "sidecar/proxy/x.py", "import importlib\nimportlib.import_module('sidecar.run.app')"),
    (direction, "sidecar/proxy/x.py", "if TYPE_CHECKING:\n    import sidecar.cli.main"),
    (direction, "sidecar/run/x.py", "from sidecar.emulator import Emulator"),
    (direction, "sidecar/emulator/x.py", "from sidecar.auth import oauth2"),
    (direction, "sidecar/observe/x.py", "from sidecar.exchange import exchange"),
    (direction, "sidecar/errors.py", "from sidecar.events import Ready"),
    (direction, "addons/x.py", "from sidecar.emulator import Emulator"),
    (direction, "sidecar/unknown/x.py", "from sidecar import errors"),
    (direction, "sidecar/exchange/x.py", "import sidecar"),
    (observe_knows_records_only, "sidecar/observe/x.py", "from sidecar.tokens.broker import Broker"),
    (observe_knows_records_only, "sidecar/observe/x.py", "from sidecar.tokens import broker"),
    (policy_is_pure, "sidecar/policy/x.py", "import asyncio"),
    (policy_is_pure, "sidecar/policy/x.py", "from os import environ"),
    (policy_is_pure, "sidecar/policy/x.py", "import pydantic"),
    (policy_is_pure, "sidecar/policy/x.py", "from sidecar.clock import Clock"),
    (policy_is_pure, "sidecar/policy/x.py", "async def f(): ..."),
    (libraries_stay_with_their_owners, "sidecar/tokens/sqlite.py", "import redis.asyncio"),
    (libraries_stay_with_their_owners, "sidecar/auth/oauth2.py", "from cryptography import x509"),
    (libraries_stay_with_their_owners, "sidecar/run/app.py", "import mitmproxy"),
    (libraries_stay_with_their_owners, "sidecar/policy/routing.py", "import idna"),
    (libraries_stay_with_their_owners, "sidecar/exchange/exchange.py", "import aiohttp"),
    (libraries_stay_with_their_owners, "sidecar/exchange/upstream.py", "from aiohttp import web"),
    (libraries_stay_with_their_owners, "sidecar/emulator/x.py", "from aiohttp import ClientSession"),
    (libraries_stay_with_their_owners, "sidecar/proxy/x.py", "import time"),
    (libraries_stay_with_their_owners, "sidecar/emulator/x.py", "from random import random"),
    (libraries_stay_with_their_owners, "sidecar/exchange/x.py", "import httpx"),
    (dates_come_from_the_clock, "sidecar/auth/x.py", "import datetime\ndatetime.datetime.now(datetime.UTC)"),
    (dates_come_from_the_clock, "sidecar/auth/x.py", "from datetime import date\ndate.today()"),
    (no_assert, "sidecar/x.py", "def f(x):\n    assert x"),
    (no_module_state, "sidecar/x.py", "cache = {}"),
    (no_module_state, "sidecar/x.py", "cache: dict[str, int] = dict()"),
    (no_module_state, "sidecar/x.py", "if True:\n    seen = collections.deque()"),
    (no_module_state, "sidecar/x.py", "try:\n    import a\nexcept ImportError:\n    names = [1]"),
    (no_module_state, "sidecar/x.py", "NAMES = []\ndef f():\n    NAMES.append(1)"),
    (no_module_state, "sidecar/x.py", "NAMES = {}\ndef f():\n    NAMES['a'] = 1"),
    (no_module_state, "sidecar/x.py", "NAMES = {}\ndef f():\n    del NAMES['a']"),
    (no_module_state, "sidecar/x.py", "NAMES = set()\nNAMES |= {1}"),
    (no_module_state, "sidecar/x.py", "count = 0\ndef f():\n    global count\n    count += 1"),
    (short_enough, "sidecar/x.py", "\n" * (LINES + 1)),
    (names_say_something, "sidecar/x.py", "class TokenManager: ..."),
    (names_say_something, "sidecar/x.py", "def f():\n    class RequestHandler: ..."),
    (names_say_something, "sidecar/exchange/utils.py", ""),
]

GOOD = [
    (direction, "sidecar/policy/x.py", "from sidecar.errors import Reason\nfrom sidecar.policy import decide"),
    (direction, "sidecar/proxy/x.py", "from . import http1\nfrom ..exchange import exchange"),
    (direction, "sidecar/run/x.py", "from sidecar import __version__\nfrom sidecar.observe import log"),
    (direction, "sidecar/cli/x.py", "from sidecar.emulator import Emulator"),
    (observe_knows_records_only, "sidecar/observe/x.py", "from sidecar.tokens.token import Token"),
    (observe_knows_records_only, "sidecar/run/x.py", "from sidecar.tokens.broker import Broker"),
    (policy_is_pure, "sidecar/policy/x.py", "import idna"),
    (policy_is_pure, "sidecar/policy/x.py", "import re\nfrom email.utils import parsedate_to_datetime"),
    (policy_is_pure, "sidecar/run/x.py", "import asyncio"),
    (libraries_stay_with_their_owners, "sidecar/exchange/upstream.py", "import aiohttp"),
    (libraries_stay_with_their_owners, "sidecar/emulator/x.py", "from aiohttp import web"),
    (libraries_stay_with_their_owners, "sidecar/clock.py", "import time, random"),
    (dates_come_from_the_clock, "sidecar/auth/x.py", "clock.now()\ndatetime.fromtimestamp(0, UTC)"),
    (no_assert, "sidecar/x.py", "assert_never(x)"),
    (
        no_module_state,
        "sidecar/x.py",
        "_NAMES = {'a': 1}\n__all__ = ['f']\ndef f():\n    names = []\n    names.append(1)",
    ),
    (no_module_state, "addons/x.py", "addons = [Sidecar()]"),
    (no_module_state, "sidecar/x.py", "names = frozenset({'a'})\npattern = re.compile('a')"),
    (short_enough, "sidecar/x.py", "\n" * LINES),
    (names_say_something, "sidecar/x.py", "class Handled: ..."),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_rule_refuses(rule: Rule, path: str, text: str) -> None:
    """Every rule finds what it is there to find."""
    assert rule(Module(path, text))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_rule_allows(rule: Rule, path: str, text: str) -> None:
    """No rule is so wide that it refuses what is right."""
    assert rule(Module(path, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "from sidecar.proxy.a import A",
        "from . import a",
        "def f():\n    import sidecar.proxy.a",
        "if TYPE_CHECKING:\n    from sidecar.proxy.a import A",
    ],
)
def test_circle_is_found(text: str) -> None:
    """However long it is, and however the last import that closes it is written."""
    first = Module("sidecar/proxy/a.py", "from sidecar.proxy.b import B")
    second = Module("sidecar/proxy/b.py", "from sidecar.proxy import c")
    assert circles([first, second, Module("sidecar/proxy/c.py", text)]) == [
        "sidecar.proxy.a <-> sidecar.proxy.b <-> sidecar.proxy.c"
    ]


def test_diamond_is_no_circle() -> None:
    """Two ways to the same module are none, nor is a package that hands on what is in it."""
    texts = {
        "a": "from sidecar.proxy import b, c",
        "b": "from sidecar.proxy.d import D",
        "c": "from sidecar.proxy.d import D",
        "d": "from sidecar.settings import Settings",
    }
    modules = [Module(f"sidecar/proxy/{name}.py", text) for name, text in texts.items()]
    handing_on = Module("sidecar/settings/__init__.py", "from sidecar.settings.model import Settings")
    assert circles([*modules, handing_on, Module("sidecar/settings/model.py", "import re")]) == []


def test_every_rule_is_tried_on_both() -> None:
    """A rule without a bad and a good example proves nothing."""
    signature = {"module": Module, "return": list[str]}
    rules = {value for value in globals().values() if getattr(value, "__annotations__", None) == signature}
    assert rules == {rule for rule, _, _ in BAD} == {rule for rule, _, _ in GOOD}


def test_a_stale_exemption_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that became short leaves the list of long ones."""
    monkeypatch.setitem(LONG_MODULES, "sidecar/x.py", "for the test")
    assert short_enough(Module("sidecar/x.py", "\n"))
    assert short_enough(Module("sidecar/x.py", "\n" * (LINES + 1))) == []


def test_an_unknown_folder_is_found() -> None:
    """A folder is in the plan by its whole path, not by a part of it."""
    assert in_the_plan("settings/presets")
    assert not in_the_plan("helpers")
    assert not in_the_plan("policy/presets")


def test_an_undeclared_library_is_found() -> None:
    """The standard library and our own packages are no dependencies, all else is."""
    module = Module("sidecar/x.py", "import json, numpy.linalg\nfrom sidecar import errors")
    assert third_party(module) == {"numpy"}
