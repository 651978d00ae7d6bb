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

from sidecar.settings import load
from sidecar.settings.shipped import PRESETS, preset_data, preset_text, resolved, starting

ROOT = Path(__file__).parents[2]
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
