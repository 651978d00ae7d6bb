"""Node and Python packages of exact versions, installed once per machine by npm and pip."""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

NODE = "24.21.0"
"""A Node that can read proxy variables by itself; npm has its binary as a package per system."""
AXIOS = "1.21.1"
OLD_AXIOS = "1.7.9"
"""One that asks a proxy for `https://` in plain, without CONNECT."""
SOAP = "1.13.0"
CLOUD_SDK = "4.9.1"
JSFORCE = "3.10.26"


def program(name: str) -> str:
    """Return the path of a program; the test fails without it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not on PATH: .ci/install-tools installs what the clients need", pytrace=False)
    return path


def modern_node() -> str:
    """Return the path of Node NODE."""
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine())
    name = f"node-{platform.system().lower()}-{machine}"
    return str(node_modules(name, NODE) / name / "bin/node")


def node_modules(name: str, version: str) -> Path:
    """Return the node_modules with one package; the first use installs it, several at once do no harm."""
    return _cached(f"{name}/{version}", lambda new: _install(f"{name}@{version}", new)) / "node_modules"


def python_home(name: str, *rounds: Sequence[str], prepare: Callable[[Path], None] = lambda _: None) -> Path:
    """Return a virtual environment with what *rounds* require, each a run of pip that may overrule those before.

    *prepare* adds to it what takes long and does not change, once. Scripts in `bin` are run by its `bin/python`.
    """
    version = hashlib.sha256(repr(rounds).encode()).hexdigest()[:16]

    def make(new: Path) -> None:
        _run([sys.executable, "-m", "venv", str(new)], name)
        for requirements in rounds:
            options = ["--quiet", "--disable-pip-version-check"]
            _run([str(new / "bin/python"), "-m", "pip", "install", *options, *requirements], name)
        prepare(new)

    return _cached(f"{name}/{version}", make)


def _cached(place: str, make: Callable[[Path], None]) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = caches / "auth-sidecar-tests" / place
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            make(Path(scratch) / "new")
            with contextlib.suppress(OSError):  # another run was faster
                (Path(scratch) / "new").rename(home)
    return home


def _run(command: Sequence[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.fail(f"{name} cannot be installed by pip: {done.stderr[-2000:]}", pytrace=False)


def _install(package: str, directory: Path) -> None:
    directory.mkdir()
    options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(directory)]
    command = [program("npm"), "install", *options, package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.fail(f"{package} cannot be installed by npm: {done.stderr}", pytrace=False)
