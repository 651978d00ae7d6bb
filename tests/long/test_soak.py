"""The soak of `make soak`, two minutes long."""

import time
from pathlib import Path

import pytest

from tests.long.soak import soak, summary


@pytest.mark.timeout(400)
async def test_two_minutes_of_faults(tmp_path: Path, outputs: Path) -> None:
    """No wrong answer, no write twice, memory flat, and all is well soon after."""
    seed = int(time.time())
    score, problems = await soak(120.0, seed, tmp_path, outputs)
    print(summary(score, 120.0, seed, problems))
    assert problems == []
    assert score.requests > 1000
