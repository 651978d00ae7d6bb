"""The recipes that come with the product: sound, read alike by every YAML reader, and honest."""

import re
import subprocess
import sys
from datetime import datetime
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sidecar.auth.recipes.bound import Bound
from sidecar.auth.recipes.lint import lint
from sidecar.emulator.systems.known import NAMES, system_class
from sidecar.policy.routing import parse_base_url
from sidecar.settings import load
from sidecar.settings.shipped import PRESETS, preset_data, preset_text, resolved, starting
from sidecar.settings.yaml_text import parse
from tests.stage import SCRIPTED

ROOT = Path(__file__).parents[2]
STATIC = {"api-key", "basic"}
"""Nothing dies there that a script could outlive."""
HEADINGS = [
    "What the system does",
    "What the sidecar does",
    "What to ask the administrator for",
    "What is often said, and wrong",
    "What cannot be had",
]
VENDOR_KEYS = ("add", "csrf", "exclude", "keepalive", "login", "logout", "quota", "retry", "shim", "throttle")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_sound_recipe_of_its_name(name: str) -> None:
    """It validates, its id is its name, and it has a title."""
    recipe = resolved({"extends": name})
    assert recipe.id == name
    assert recipe.title


def test_the_list_is_the_folder() -> None:
    """Every file of the folder is a preset, and comes with the package."""
    folder = files("sidecar.settings") / "presets"
    assert sorted(Path(str(each)).stem for each in folder.iterdir() if each.name.endswith(".yaml")) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_1_1_and_1_2_agree(name: str) -> None:
    """Readers of both versions give equal data: no yes, no, on, off and no octal number."""

    def read(version: str) -> Any:
        yaml = YAML(typ="safe", pure=True)
        yaml.version = version
        return yaml.load(StringIO(preset_text(name)))

    assert read("1.1") == read("1.2") == preset_data(name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_who_says_so(name: str) -> None:
    """Each key that tells of a system is named at the head of one fact, or more."""
    facts = resolved({"extends": name}).facts
    told = [*facts.documented, *facts.vendor_code, *facts.client_code, *facts.inferred]
    heads = {fact.partition(":")[0] for fact in told}
    assert heads >= set(VENDOR_KEYS) & preset_data(name).keys()
    assert heads <= {*VENDOR_KEYS, "sessions"}


@pytest.mark.parametrize("name", PRESETS)
def test_the_configuration_to_begin_with_is_accepted(name: str) -> None:
    """It loads as it stands, its secrets are files, and it has what is not optional."""
    found = load(base=starting(resolved({"extends": name})), environ={"AUTH_SIDECAR_CONFIG": ""})
    (upstream,) = found.upstreams.values()
    assert upstream.preset == name
    assert upstream.system == resolved({"extends": name})


def test_what_has_a_default_is_not_asked_for() -> None:
    """The hash of Aras' password is made of it, unless it is given instead."""
    (upstream,) = starting(resolved({"extends": "aras"}))["upstreams"].values()
    assert upstream["credential"].keys() == {"username", "password", "database"}


@pytest.mark.parametrize("name", ["arena", "arena-oauth"])
def test_the_reset_of_the_quota_is_read_as_the_vendor_writes_it(name: str) -> None:
    """Arena's date is none of RFC 9110: `Fri, 02-May-2014 14:22:13 GMT-0700 (PDT)`."""
    quota = resolved({"extends": name}).quota
    assert quota is not None
    (source,) = quota.reset
    assert source.regex is not None
    assert source.time is not None
    found = re.match(source.regex, "Fri, 02-May-2014 14:22:13 GMT-0700 (PDT)")
    assert found is not None
    moment = datetime.strptime(found[1], source.time)  # noqa: DTZ007  the format has %z
    assert moment.timestamp() == 1399065733.0


def test_arena_stands_for_one_session_of_one_user() -> None:
    """A second login ends the first, and a session ends 90 minutes after its last use."""
    recipe = resolved({"extends": "arena"})
    assert recipe.sessions.per_account == "one"
    assert recipe.login.life.idle == 5400.0


def test_who_has_no_recipe_loads_nothing_of_them() -> None:
    """Neither their engine nor the libraries that it needs: a start is not to be slower for it."""
    code = (
        "import sys; from pathlib import Path; from sidecar.settings import load; import sidecar.run.running;"
        " load(Path('docs/example.yaml'), environ={});"
        " print([name for name in sys.modules if name.startswith(('re2', 'defusedxml', 'sidecar.auth.recipes'))])"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in STATIC])
def test_a_preset_is_whole(name: str) -> None:
    """It has an emulator, a demo, scripts in two languages, and a page with the headings of all pages."""
    assert system_class(name).preset == name
    assert (ROOT / f"sidecar/emulator/scripts/{name.replace('-', '_')}.py").exists()
    assert len([client for each, client in SCRIPTED if each == name]) >= 2
    pages = [
        page.read_text() for page in (ROOT / "docs/systems").glob("*.md") if f"preset: {name}\n" in page.read_text()
    ]
    assert pages
    for page in pages:
        assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == HEADINGS


def test_every_emulator_has_a_preset() -> None:
    """A system that is demonstrated is one that can be configured."""
    assert set(NAMES) <= set(PRESETS) - STATIC


def test_the_template_is_a_sound_recipe() -> None:
    """Who begins with it begins with something that works."""
    data = parse((ROOT / "docs/systems/template.yaml").read_text())
    recipe = resolved(data)
    bound = Bound("plm", recipe, {"username": "svc", "password": "x"}, parse_base_url("https://plm.example.com"))
    assert lint(bound) == []
    told = [fact for facts in data["facts"].values() for fact in facts]
    assert {fact.partition(":")[0] for fact in told} == set(VENDOR_KEYS) & data.keys()
