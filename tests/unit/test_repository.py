"""What the repository promises as a whole: its top level, its lock, its licence, and nothing of anybody's machine."""

import base64
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.canary import canary, leaks

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
BENCH_LOCK = (ROOT / "bench/requirements.lock").read_text(encoding="utf-8")

TOP_LEVEL = re.compile(
    r"sidecar|addons|tests|deploy|docs|bench|\.ci|\.git.*|\.editorconfig|\.dockerignore"
    r"|pyproject\.toml|requirements\.lock|Dockerfile|Makefile|LICENSE|(README|CHANGELOG|CONTRIBUTING|SECURITY)\.md"
)
LEFTOVER = re.compile(r".*(\.orig|\.rej|\.bak|\.sw[a-p]|~)")
HOME = re.compile(r"(?<![\w.])/(?:home|Users)/(?!app\b|nonroot\b)\w+/|(?<![\w.])/root/\w")
REGISTRY = re.compile(r"://|--(?:extra-)?index-url|--find-links|--trusted-host|\s@\s")
PINNED = re.compile(r"[a-z0-9-]+==[\w.!+]+( ; .+)?( --hash=sha256:[0-9a-f]{64})+")


def tracked() -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout.decode()
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def strangers(names: list[str]) -> list[str]:
    """Return the top-level names that are not part of the plan."""
    return sorted({name.split("/")[0] for name in names if not TOP_LEVEL.fullmatch(name.split("/")[0])})


def leftovers(names: list[str]) -> list[str]:
    """Return what an editor, a merge or a patch left behind."""
    return [name for name in names if LEFTOVER.fullmatch(name)]


def homes(text: str) -> list[str]:
    """Return the paths into somebody's home directory."""
    return HOME.findall(text)


def lock_lines(text: str) -> list[str]:
    """Return one line per requirement, comments away and continuations joined."""
    lines = [line.strip() for line in text.splitlines() if not line.strip().startswith("#")]
    return [" ".join(line.split()) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def unpinned(text: str) -> list[str]:
    """Return the requirements without an exact version and a hash, and the lines that name a registry."""
    loose = [line for line in lock_lines(text) if not PINNED.fullmatch(line)]
    return loose + [line for line in text.splitlines() if REGISTRY.search(line)]


def unlocked(requirements: list[str], text: str) -> list[str]:
    """Return the requirements that no line of the lock satisfies."""
    pins = [Requirement(line.split(" --hash")[0]) for line in lock_lines(text)]
    versions = [(canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")) for pin in pins]
    return [
        line
        for line in requirements
        for wanted in [Requirement(line)]
        if not any(
            name == canonicalize_name(wanted.name) and wanted.specifier.contains(version) for name, version in versions
        )
    ]


def fetched_from(text: str) -> list[str]:
    """Return where the packages of a package-lock.json were fetched from."""
    packages = json.loads(text).get("packages", {})
    return [package["resolved"] for package in packages.values() if "resolved" in package]


def test_top_level_is_fixed() -> None:
    """A new name at the top is a decision, not an accident."""
    assert strangers(tracked()) == []


def test_no_leftovers() -> None:
    """No file is the old version of another, or what did not fit into it."""
    assert leftovers(tracked()) == []


def test_no_path_of_anybodys_machine() -> None:
    """Nothing tracked knows where somebody's home is."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8", errors="replace") for name in tracked()}
    assert [f"{name}: {path}" for name, text in texts.items() for path in homes(text)] == []


def test_lock_is_pinned_and_names_no_registry() -> None:
    """Every requirement has one version and its hashes; where to fetch it from is for the machine to say."""
    assert unpinned(LOCK) == []
    assert len(lock_lines(LOCK)) > 50


def test_lock_is_up_to_date() -> None:
    """Every dependency, of the project and of its groups, is met by the lock: else run `make lock`."""
    groups = [line for name, group in PROJECT["dependency-groups"].items() if name != "bench" for line in group]
    wanted = PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"] + groups
    assert unlocked(wanted, LOCK) == []


def test_bench_lock_is_pinned_and_up_to_date() -> None:
    """What only `make bench` installs has a lock of its own."""
    assert unpinned(BENCH_LOCK) == []
    assert unlocked(PROJECT["dependency-groups"]["bench"], BENCH_LOCK) == []


def test_node_locks_name_no_registry() -> None:
    """A lock of the JavaScript clients has hashes, not addresses."""
    locks = [name for name in tracked() if name.endswith("package-lock.json")]
    assert [url for name in locks for url in fetched_from((ROOT / name).read_text(encoding="utf-8"))] == []


def test_python_versions_agree() -> None:
    """The lower bound, the linters' target and the classifiers say the same."""
    assert PROJECT["project"]["requires-python"] == ">=3.12"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.12"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py312"
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert versions == ["3.12", "3.13", "3.14"]
    script = (ROOT / ".ci" / "python").read_text(encoding="utf-8")
    assert script.count("for minor in 14 13 12;") == 2


def test_license_is_apache() -> None:
    """The licence is the whole Apache License 2.0, and the package says so."""
    text = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").split())
    assert text.startswith("Apache License Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", ["run", "python", "install-tools"])
def test_scripts_can_be_run(name: str) -> None:
    """A script that lost its run bit breaks the build far from here."""
    assert os.access(ROOT / ".ci" / name, os.X_OK)


def test_a_run_ends_by_itself() -> None:
    """In the order of their patience: a test, all tests, the script; the build server gives it 25 minutes."""
    makefile, run = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", ".ci/run"))
    one, every = (int(re.findall(rf"{option} (\d+)", makefile)[0]) for option in ("--timeout", "--session-timeout"))
    script = 60 * int(re.findall(r"(\d+)m make test", run)[0])
    assert 2 * one < every < script - 120
    assert script <= 23 * 60


def test_a_stray_file_is_found() -> None:
    """Only the first part of a path counts."""
    assert strangers(["sidecar/notes.txt", "README.md", ".gitignore"]) == []
    assert strangers(["notes.txt", "sidecar2/x.py", "README.md.orig"]) == ["README.md.orig", "notes.txt", "sidecar2"]


@pytest.mark.parametrize("name", ["a/b.py.orig", "a/b.py.rej", "b.yaml.bak", "a/.b.py.swp", "a/b.py~"])
def test_a_leftover_is_found(name: str) -> None:
    """By the end of its name, in any directory."""
    assert leftovers(["a/original.py", "a/swp.py", name]) == [name]


def test_a_home_is_found() -> None:
    """A user's directory is found, an address that has the word in its path is not."""
    assert homes("see /" + "home/alice/x") != []
    assert homes("see /" + "Users/alice/x") != []
    assert homes("see /" + "root/x") != []
    assert homes("https://example.com/" + "home/alice/") == []
    assert homes("$HOME/x, ~/x, /var/lib/x") == []


@pytest.mark.parametrize(
    "line",
    [
        "idna>=3",
        "idna==3.20",
        "idna @ file:///idna.whl --hash=sha256:" + "0" * 64,
        "--index-url https://registry.example/simple",
        "# via https://registry.example/simple",
    ],
)
def test_a_loose_requirement_is_found(line: str) -> None:
    """A range, a missing hash and the name of a registry are all refused."""
    assert unpinned(f"{line}\n") != []


def test_a_pinned_requirement_is_allowed() -> None:
    """The form that the tool writes passes, with a marker and over several lines."""
    text = "idna==3.20 ; python_version < '4' \\\n    --hash=sha256:" + "0" * 64 + "\n    # via httpx\n"
    assert unpinned(text) == []
    assert unlocked(["IDNA>=3.10"], text) == []
    assert unlocked(["idna>=4", "h11"], text) == ["idna>=4", "h11"]


def test_a_node_address_is_found() -> None:
    """The field that npm writes by itself is the one that must go."""
    assert fetched_from('{"packages": {"": {}, "a": {"resolved": "x", "integrity": "y"}}}') == ["x"]


@pytest.mark.parametrize("before", ["", "a", "ab"])
def test_a_leak_is_found(tmp_path: Path, before: str) -> None:
    """A secret shows as it is, in hexadecimal, and in Base64 at each place it can start there."""
    secret = (before + canary("client")).encode()
    (tmp_path / "inner").mkdir()
    shown = [secret, secret.hex().encode(), base64.b64encode(secret + b":more"), secret.lower(), b"nothing"]
    (tmp_path / "inner" / "log").write_bytes(b"\n".join(shown))
    assert leaks(tmp_path) == [f"inner/log:{line}" for line in range(1, 5)]


def test_canaries_differ_by_name() -> None:
    """The same name gives the same secret, so that both ends of a test agree on it."""
    assert canary("a") == canary("a") != canary("b")
