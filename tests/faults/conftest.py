"""What the tests of faults share: a log for the processes of a test."""

import re
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def log(outputs: Path, request: pytest.FixtureRequest) -> Path:
    """The file where the processes of this test write what they report."""
    return outputs / f"{re.sub(r'[^a-z0-9]+', '-', request.node.name)}.log"


@pytest.fixture
def fake_time() -> dict[str, str]:
    """The variables that give a process a clock of the test's own; what it shows is said by FAKETIME beside them."""
    library = subprocess.run(["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, check=True)
    return {"LD_PRELOAD": library.stdout.decode().strip()}
