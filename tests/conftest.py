"""What every test shares: an environment without proxies, and a place for outputs that must hold no secret."""

import faulthandler
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.canary import leaks

PROXY_VARIABLES = ("ALL_PROXY", "FTP_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


_TEARDOWN_SECONDS = 120

# A property is judged by its examples, not by the time that they took, and they are the same until the test changes:
# what fails is the change that was made. `make test-long` looks for others.
settings.register_profile(
    "tests", max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", settings.get_profile("tests"), max_examples=4000, derandomize=False)
settings.load_profile("tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """End the process of a test whose fixtures do not end: its time-out is spent when the test itself has hung."""
    faulthandler.dump_traceback_later(_TEARDOWN_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _hide(patch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper() in PROXY_VARIABLES or name.upper().startswith("AUTH_SIDECAR"):
            patch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def _clean_session() -> Iterator[None]:
    """Hide the proxies and the configuration of whoever runs the tests, from what a whole session shares too."""
    # What a script runs in its background ignores it, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        _hide(patch)
        yield


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test without what an earlier one left in the environment."""
    _hide(monkeypatch)


@pytest.fixture(autouse=True, scope="module")
def _leaks_are_found_where_they_were_made() -> Iterator[None]:
    """Collect what a file's tests left open before another file's tests are blamed for it."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One directory for the logs and dumps of processes that tests start; name each file after its test.

    When the session ends and everything that writes there has stopped, a secret of a test in any file fails the run.
    """
    directory = tmp_path_factory.mktemp("outputs")
    yield directory
    if found := leaks(directory):
        pytest.fail(f"a secret was written to {directory}: {', '.join(found)}", pytrace=False)
