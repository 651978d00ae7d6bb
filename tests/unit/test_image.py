"""The Dockerfile is held against the package, the manifests and the locks. No image is built here."""

import email
import fnmatch
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sidecar import __version__
from tests.unit.test_deploy import BASE, PODS, SERVICES, container, rendered, settings_of
from tests.unit.test_repository import lock_lines, unlocked, unpinned

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ROOT / "deploy/image"

Step = tuple[str, str]


def steps(text: str) -> list[Step]:
    """Return the instructions of a Dockerfile with their arguments, comments away and continuations joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    pairs = (line.split(maxsplit=1) for line in joined if line.strip())
    return [(instruction, " ".join(rest.split())) for instruction, rest in pairs]


def stages(found: list[Step]) -> list[list[Step]]:
    """Return the instructions of each stage, its FROM first."""
    starts = [number for number, (instruction, _) in enumerate(found) if instruction == "FROM"]
    return [found[start:end] for start, end in zip(starts, [*starts[1:], len(found)], strict=True)]


STEPS = steps((ROOT / "Dockerfile").read_text(encoding="utf-8"))
BUILD, FINAL = stages(STEPS)


def of(stage: list[Step], instruction: str) -> list[str]:
    """Return the arguments of all such instructions."""
    return [rest for name, rest in stage if name == instruction]


def only(instruction: str) -> str:
    """Return the argument of the one such instruction of the last stage."""
    (rest,) = of(FINAL, instruction)
    return rest


def variables_of(stage: list[Step]) -> dict[str, str]:
    """Return what ENV sets."""
    return dict(pair.split("=", 1) for rest in of(stage, "ENV") for pair in rest.split())


def let_in(path: str, ignore: str) -> bool:
    """Tell whether a `.dockerignore` of this simple form lets *path* into the build: the last match decides."""
    inside = True
    for line in ignore.splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and _matches(path, pattern):
            inside = line.startswith("!")
    return inside


def _matches(path: str, pattern: str) -> bool:
    parts = path.split("/")
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
    return fnmatch.fnmatch("/".join(parts[: pattern.count("/") + 1]), pattern)


def test_base_images_are_exact_and_the_same() -> None:
    """Both stages stand on one tag that names Python's minor version and the system, of no registry by name."""
    bases = [rest.split()[0] for rest in of(STEPS, "FROM")]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", bases[0])
    minor = bases[0].split(":")[1].split("-")[0]
    assert f"Programming Language :: Python :: {minor}" in PROJECT["project"]["classifiers"]
    (compiled,) = set(re.findall(r"/usr/local/lib/python(3\.\d+)", " ".join(of(FINAL, "RUN"))))
    assert compiled == minor
    assert f"--python-version {minor} --constraint" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_is_installed_is_pinned_by_hash() -> None:
    """Each `pip install` demands hashes or uses no index; only the first step of the build has a network."""
    for rest in of(STEPS, "RUN"):
        for call in re.findall(r"pip (?:--python \S+ )?(?:install|wheel) (.*?)(?: && |$)", rest):
            assert "--require-hashes --only-binary :all: --no-deps" in call or "--no-index" in call, call
    networks = ["--network=none" in rest for rest in of(STEPS, "RUN")]
    assert networks == [False, True, True]
    assert not of(STEPS, "ADD")


def test_runs_as_the_user_of_the_manifests() -> None:
    """The number of the image's user is that of the pods and of the compose file, and owner of the volumes."""
    user = only("USER")
    context = container(PODS[0].values[1], "auth-sidecar")["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}" == SERVICES["auth-sidecar"]["user"]
    uid, gid = user.split(":")
    made = re.findall(r"install -d -o (\d+) -g (\d+) -m (\d+) (\S+)", " ".join(of(FINAL, "RUN")))
    assert made == [(uid, gid, "0700", "/var/lib/auth-sidecar"), (uid, gid, "0755", "/run/auth-sidecar")]
    # What stands after it runs as this user, and what makes directories must not.
    names = [name for name, _ in FINAL]
    assert names.index("USER") > max(number for number, name in enumerate(names) if name in ("RUN", "COPY"))


def test_places_and_ports_are_those_of_the_settings() -> None:
    """The volume is the state directory, which is also the default without a home; the ports are the defaults."""
    settings = settings_of(rendered(BASE))
    assert json.loads(only("VOLUME")) == [str(settings.state_dir)]
    assert variables_of(FINAL)["STATE_DIRECTORY"] == str(settings.state_dir)
    assert only("EXPOSE").split() == [str(address[-1]) for address in (settings.listen.proxy, settings.listen.admin)]


def test_starts_the_installed_command_without_a_shell() -> None:
    """Entry point and command are lists; the first is the script of the package, found through PATH."""
    (script,) = PROJECT["project"]["scripts"]
    assert json.loads(only("ENTRYPOINT")) == [script]
    assert json.loads(only("CMD")) == ["run"] == SERVICES["auth-sidecar"]["command"]
    assert only("STOPSIGNAL") == "SIGTERM"
    variables = variables_of(FINAL)
    (copied,) = of(FINAL, "COPY")
    place = copied.split()[-1]
    assert variables["PATH"] == f"{place}/bin:$PATH"
    assert copied == f"--from=build {place} {place}"
    assert (variables["PYTHONOPTIMIZE"], variables["PYTHONDONTWRITEBYTECODE"]) == ("1", "1")


def test_everything_is_compiled_as_it_runs() -> None:
    """Nothing can be written at run time, so both libraries are compiled before, for `-O`."""
    compiled = re.findall(r"python -O -m compileall -q .*?(/[\w./-]+)(?= &&|$)", " && ".join(of(STEPS, "RUN")))
    assert compiled == ["/opt/auth-sidecar/lib", "/usr/local/lib/python3.13"]


def test_labels_are_those_of_the_package() -> None:
    """Version, licence and description are the package's own."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', only("LABEL")))
    project = PROJECT["project"]
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": __version__,
        "licenses": project["license"],
        "base.name": of(FINAL, "FROM")[0],
    }
    assert project["version"] == __version__


def test_what_is_copied_is_there_and_nothing_else_is_let_in() -> None:
    """The build sees what it copies: no test, no history, no environment, no secret beside the compose file."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    sources = [source for rest in of(BUILD, "COPY") for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    assert all(let_in(source.rstrip("/"), ignore) for source in sources)
    assert let_in("sidecar/run/app.py", ignore)
    kept = {line[1:] for line in ignore.splitlines() if line.startswith("!")}
    assert kept == {source.rstrip("/") for source in sources}
    out = [
        ".git",
        ".venv/bin/python",
        "tests/rig.py",
        "deploy/secrets/x",
        "deploy/compose.yaml",
        "sidecar/__pycache__/x.pyc",
        ".env",
    ]
    assert [path for path in out if let_in(path, ignore)] == []


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_locks_of_the_image_are_pinned_and_those_that_are_tested(name: str) -> None:
    """Each line has one version and its hashes, those of the lock that the tests run with: else run `make lock`."""
    lock = (LOCKS / name).read_text(encoding="utf-8")
    assert unpinned(lock) == []
    tested = {_plain(line) for line in lock_lines((ROOT / "requirements.lock").read_text(encoding="utf-8"))}
    assert [line for line in map(_plain, lock_lines(lock)) if line not in tested] == []


def _plain(line: str) -> str:
    """Return a line of a lock without its marker."""
    pin, _, hashes = line.partition(" --hash")
    return f"{pin.split(' ;')[0]} --hash{hashes}"


def test_locks_of_the_image_hold_what_runs_and_no_tools() -> None:
    """All dependencies of the package are there, for the image's Python; what only tests or builds need is not."""
    lock = (LOCKS / "requirements.lock").read_text(encoding="utf-8")
    wanted = [line for line in PROJECT["project"]["dependencies"] if _applies(line)]
    assert unlocked(wanted, lock) == []
    assert unlocked(PROJECT["build-system"]["requires"], (LOCKS / "build.lock").read_text(encoding="utf-8")) == []
    names = {canonicalize_name(line.split("==")[0]) for line in lock_lines(lock)}
    tools = {Requirement(line).name for group in PROJECT["dependency-groups"].values() for line in group}
    assert names & (tools - {Requirement(line).name for line in wanted}) == set()


def _applies(line: str) -> bool:
    marker = Requirement(line).marker
    return marker is None or marker.evaluate({"python_version": "3.13", "python_full_version": "3.13.0"})


def test_the_package_builds_without_network(tmp_path: Path) -> None:
    """The step that makes the wheel, run on what the image's build sees, gives the command and all modules."""
    pytest.importorskip("hatchling")  # in requirements.lock, so `make test` has it
    for source in (source for rest in of(BUILD, "COPY")[1:] for source in rest.split()[:-1]):
        target = tmp_path / "src" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ROOT / source)
    (call,) = re.findall(r"-m (pip wheel .*?) --wheel-dir /wheels \.", " ".join(of(BUILD, "RUN")))
    command = [sys.executable, "-m", *call.split(), "--wheel-dir", str(tmp_path), "."]
    subprocess.run(command, cwd=tmp_path / "src", check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("auth_sidecar-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"auth_sidecar-{__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sidecar").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if name.startswith(("tests/", "deploy/"))]
    assert metadata["Version"] == __version__
    assert "auth-sidecar = sidecar.cli.main:main" in scripts
