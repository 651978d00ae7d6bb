"""What the documentation says is held against the product: keys, reasons, events, switches, samples and links."""

import copy
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from sidecar.emulator import Switches
from sidecar.errors import REASONS, Reason
from sidecar.events import Event, StoreTrouble
from sidecar.observe import log
from sidecar.policy.headers import CREDENTIAL_PARAMETERS, CREDENTIALS, HOP, HOP_BY_HOP, READABLE, VIA, normal_name
from sidecar.policy.mirror import ANSWER_FIELDS, FORWARDED, OF_THE_BYTES, REQUEST_FIELDS
from sidecar.settings import SecretReference, Settings, load
from tests.canary import canary

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
EXAMPLE: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "docs/example.yaml").read_text(encoding="utf-8"))
HOW_IT_WORKS = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
DEBUGGING = (ROOT / "docs/debugging.md").read_text(encoding="utf-8")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
KEY_TABLE = re.compile(r"^\| key \| type, default .*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
CODE = re.compile(r"`(\w+)`")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks in *language*."""
    return [body for kind, body in FENCE.findall(text) if kind == language]


def key_rows(text: str) -> list[str]:
    """Return the rows of all tables of keys."""
    return [row for table in KEY_TABLE.findall(text) for row in table.splitlines()]


def codes(text: str) -> list[str]:
    """Return the words in backticks in the first column of every table in *text*."""
    return [word for cell in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for word in CODE.findall(cell)]


def section(text: str, heading: str) -> str:
    """Return what stands under *heading*, up to the next heading of any level."""
    return re.split(r"^#+ ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def normal_names(text: str) -> set[bytes]:
    """Return the names in backticks in *text*, spelled for comparison."""
    return {normal_name(name.encode()) for name in re.findall(r"`([\w-]+)`", text)}


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every key path of *model*; a name in a mapping of models is NAME, a secret is one key."""
    for name, field in model.model_fields.items():
        found = [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        inner = next((part for part in found if part is not SecretReference), None)
        if inner is None:
            yield prefix + name
        else:
            is_mapping = getattr(field.annotation, "__origin__", None) is dict
            yield from key_paths(inner, f"{prefix}{name}.NAME." if is_mapping else f"{prefix}{name}.")


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def anchors(text: str) -> set[str]:
    """Return the fragments that lead to the headings of a page, spelled as GitHub does."""
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(FENCE.sub("", text))]
    return {heading.strip().replace(" ", "-") for heading in plain}


def dead_links(page: Path) -> list[str]:
    """Return the links of *page* to files or headings of this repository that are not there."""
    dead = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "://" in link:
            continue
        if not target.exists() or (fragment and fragment not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    """The page of the configuration has one row per key path of the model, and no other."""
    documented = [row.split("`")[1] for row in key_rows(CONFIGURATION)]
    assert sorted(documented) == sorted(key_paths(Settings))


def with_key(base: dict[str, Any], path: str, text: str) -> Settings:
    """Return the configuration *base* with one key set to *text*, as `--set` does."""
    override = f"{path.replace('NAME', 'plm')}={text}"
    return load(base=base, overrides=[override], environ={"AUTH_SIDECAR_CONFIG": "/nowhere"})


def test_documented_defaults_are_the_defaults() -> None:
    """What a row gives as the default, other than none or required, makes no difference when it is set."""
    example: dict[str, Any] = copy.deepcopy(EXAMPLE)
    example["upstreams"]["plm"]["keepalive"] = {"path": "/health"}
    found = (re.match(r"\| `([\w.]+)` \| [^|]*, `([^`|]+)` \|", row) for row in key_rows(CONFIGURATION))
    defaults = [match.groups() for match in found if match]
    assert len(defaults) > 30
    assert [path for path, text in defaults if with_key(example, path, text) != Settings.model_validate(example)] == []


def test_documented_examples_are_accepted() -> None:
    """The last cell of each row is a value for its key, where everything that it needs beside it is given."""
    secret = {"value": canary("example")}
    example: dict[str, Any] = copy.deepcopy(EXAMPLE)
    example["upstreams"]["plm"]["keepalive"] = {"path": "/health"}
    example["upstreams"]["plm"]["tls"] = {"client_cert": "cert.pem", "client_key": secret}
    secrets = ("client_secret", "private_key", "client_assertion", "password", "refresh_token", "subject_token")
    example["upstreams"]["plm"]["oauth2"] |= dict.fromkeys(secrets, secret)
    example["upstreams"]["plm"]["oauth2"] |= {"username": "sync", "client_auth": "private_key_jwt"}
    example["listen"] = {"auth": {"username": "app", "password": secret}}
    example["store"] = {"url": "redis://redis", "keys": [secret]}
    rows = [row.split("`") for row in key_rows(CONFIGURATION)]
    arena: dict[str, Any] = {"email": "svc@example.com", "password": secret}
    for cells in rows:
        plm = dict(example["upstreams"]["plm"])
        key = cells[1].rpartition(".")[2]
        if key in ("preset", "recipe", "credential"):
            del plm["oauth2"]
            plm |= {"credential": arena} | ({"preset": "arena"} if key == "credential" else {})
        with_key({**example, "upstreams": {"plm": plm}}, cells[1], cells[-2])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_samples_load(page: Path, tmp_path: Path) -> None:
    """Whoever copies a configuration out of a page has one that is accepted."""
    for number, sample in enumerate(blocks(page.read_text(encoding="utf-8"), "yaml")):
        if "upstreams:" in sample:
            file = tmp_path / f"{number}.yaml"
            file.write_text(sample, encoding="utf-8")
            load(file, environ={})


def test_the_example_is_the_one_of_the_readme() -> None:
    """The file that the README names and the sample it shows are the same."""
    assert blocks(README, "yaml")[1:] == [(ROOT / "docs/example.yaml").read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    """Every link to a file or a heading of this repository leads somewhere."""
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    """A missing file and a missing heading are both found, what is there is not."""
    (tmp_path / "b.md").write_text("# One `two`, three\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md) [x](b.md#one-two-three) [x](https://example.com/c.md) [x](c.md) [x](b.md#four) [x](#a)\n"
    )
    assert dead_links(page) == ["c.md", "b.md#four", "#a"]


def test_reasons_are_the_closed_list() -> None:
    """Reason, status and Proxy-Status error stand in the page as they do in the code, all of them and in order."""
    table = section(HOW_IT_WORKS, "## Our own answers")
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| `(\w+)` \|", table, re.MULTILINE)
    assert rows == [(reason.value, str(REASONS[reason].status), REASONS[reason].error) for reason in Reason]


def test_what_is_changed_is_listed() -> None:
    """The closed list names every field and parameter that is removed from a message, mapped in it or added."""
    listed = HOW_IT_WORKS.split("## What we change in a message")[1].split("\n## ")[0]
    request, answer = listed.split("### Names and addresses")[0].split("### In an answer")
    added = {normal_name(name) for name in (HOP, VIA[0], b"accept-encoding")}
    assert normal_names(request) >= HOP_BY_HOP | CREDENTIALS | CREDENTIAL_PARAMETERS
    assert normal_names(request) >= READABLE | {b"br", b"zstd"}
    assert normal_names(request) >= REQUEST_FIELDS.keys() | FORWARDED | added
    assert normal_names(answer) >= HOP_BY_HOP | ANSWER_FIELDS.keys() | OF_THE_BYTES


def test_every_event_has_a_name_in_the_log() -> None:
    """A line without one could not be told from another."""
    assert set(get_args(Event)) <= set(log._NAMES)


def test_log_events_have_their_fields_documented() -> None:
    """The fields of each event stand under its heading, all of them and in order."""
    for event, name in log._NAMES.items():
        if event is StoreTrouble:  # a `trouble` with two more, told below its table
            continue
        heading = next(line for line in DEBUGGING.splitlines() if line.startswith(f"### `{name}`"))
        documented = codes(section(DEBUGGING, heading))
        assert documented == [field.name for field in dataclasses.fields(event)], name


def test_switches_of_the_emulator_are_documented() -> None:
    """Every switch has its place in the table, and the table knows no other."""
    documented = codes(section(DEBUGGING, "## The emulator by hand").split("| switch |")[1])
    assert sorted(documented) == sorted(field.name for field in dataclasses.fields(Switches))


def test_readme_is_short() -> None:
    """Two screens: who wants more follows a link."""
    assert README.count("\n") <= 100


def test_decisions_are_numbered_and_linked_by_their_headings() -> None:
    """The number in a record's heading is that of its file, and none is missing."""
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [record.name[:4] for record in records]
    assert numbers == [f"{number:04d}" for number in range(1, len(records) + 1)]
    headings = [record.read_text(encoding="utf-8").splitlines()[0] for record in records]
    assert [heading[:8] for heading in headings] == [f"# {number}: " for number in numbers]
