"""`python -m tests.faults.mutants`: take guards out of the code one by one; the tests of their rows must notice.

Each is tried in a copy of the tree, and by its one test. A guard whose test passes without it guards nothing, or the
test does not look.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]
PARTS = ("sidecar", "tests", "pyproject.toml")
_SECONDS = 180
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """A guard: *text* in *file*, which is to become *instead*, and the *test* of a row that has to notice."""

    what: str
    file: str
    text: str
    instead: str
    test: str


@dataclass(frozen=True)
class Tried:
    """How a run of tests ended: the exit code of pytest, and what it printed."""

    code: int
    output: str


_LIMITS, _MESSAGES, _PROCESS, _UPSTREAM = (
    f"tests/faults/test_{name}.py::test_flt_"
    for name in ("upstream_limits", "upstream_messages", "process", "upstream")
)
_ISSUER, _STORE = (f"tests/faults/test_{name}.py::test_flt_" for name in ("issuer", "store"))

MUTANTS = (
    Mutant(
        "a redirect of the token endpoint is not followed",
        "sidecar/auth/token_endpoint.py",
        "follow_redirects=False",
        "follow_redirects=True",
        f"{_ISSUER}as_14_redirect_is_not_followed",
    ),
    Mutant(
        "an answer of the token endpoint is read up to a limit",
        "sidecar/auth/token_endpoint.py",
        "if len(body) > MAX_BODY:",
        "if False:",
        f"{_ISSUER}as_07_answer_that_is_none_is_weather",
    ),
    Mutant(
        "an older generation does not replace a newer one",
        "sidecar/tokens/redis/scripts.py",
        "if generation() ~= ARGV[1] then return answer(0) end",
        "",
        f"{_STORE}rd_08_frozen_holder_finds_itself_overtaken",
    ),
    Mutant(
        "times in the store are those of its own clock",
        "sidecar/tokens/redis/store.py",
        "self._offset = ahead if abs(ahead) > _SKEW else 0.0",
        "self._offset = 0.0",
        f"{_STORE}rd_11_clocks_minutes_apart_make_no_difference",
    ),
    Mutant(
        "a 401 that no token helps against causes no renewal",
        "sidecar/policy/classify.py",
        "return Sign.SCOPE",
        "return Sign.EXPIRED",
        f"{_UPSTREAM}up_04_challenge_decides_whether_a_new_token_can_help",
    ),
    Mutant(
        "a date in Retry-After is compared with the upstream's own clock",
        "sidecar/policy/classify.py",
        "max(0.0, when - (now if own_date is None else own_date))",
        "max(0.0, when - now)",
        f"{_LIMITS}up_06_asked_for_wait_is_kept",
    ),
    Mutant(
        "the breaker opens",
        "sidecar/policy/breaker.py",
        "if not ok and (failing := self._failing(now)):",
        "if failing := set():",
        f"{_LIMITS}up_07_burst_opens_the_breaker_and_closes_again",
    ),
    Mutant(
        "a POST that may have been done is not sent again",
        "sidecar/policy/decide.py",
        'return _again(attempt, policy, jitter, "failure") if repeatable else never',
        'return _again(attempt, policy, jitter, "failure")',
        f"{_UPSTREAM}up_10_reset_before_the_answer_repeats_what_may_be_repeated[POST-502-1]",
    ),
    Mutant(
        "a write that nobody answered for is called unknown",
        "sidecar/policy/decide.py",
        "return Past(None, unknown=True) if attempt.sent else past",
        "return past",
        f"{_UPSTREAM}up_13_silence_is_a_504[POST]",
    ),
    Mutant(
        "an answer that breaks off breaks off for the script",
        "sidecar/exchange/relay.py",
        "        await client.abort()\n        return\n",
        "",
        f"{_MESSAGES}up_11_answer_that_breaks_off_is_broken_for_the_script",
    ),
    Mutant(
        "the head of an answer is bounded as a whole",
        "sidecar/policy/answer.py",
        "_MAX_HEAD = 64 << 10",
        "_MAX_HEAD = 64 << 20",
        f"{_MESSAGES}up_16_head_that_cannot_be_read_is_a_502",
    ),
    Mutant(
        "an upstream waits for a slow script",
        "sidecar/proxy/reply.py",
        "        self._wire.write(self._framed(data))\n        await self._wire.room(self.patience)\n",
        "        self._wire.write(self._framed(data))\n",
        f"{_MESSAGES}up_18_large_answer_waits_for_a_slow_script",
    ),
    Mutant(
        "no connection is taken after SIGTERM",
        "sidecar/proxy/listener.py",
        "            self._server.close()\n",
        "            pass\n",
        f"{_PROCESS}pr_01_sigterm_leaves_time_for_what_is_under_way",
    ),
    Mutant(
        "work for a client that left is given up",
        "sidecar/proxy/http1.py",
        "            self._task.cancel()\n",
        "            pass\n",
        f"{_PROCESS}pr_08_work_for_a_client_that_left_stops",
    ),
    Mutant(
        "a body that finds no place on the disk is still passed on",
        "sidecar/exchange/body.py",
        "except OSError:",
        "except KeyError:",
        f"{_PROCESS}pr_10_full_disk_costs_replays_of_large_bodies",
    ),
)


def mutated(source: str, mutant: Mutant) -> str:
    """Return *source* without the guard; ValueError unless its text is there exactly once."""
    if (found := source.count(mutant.text)) != 1:
        raise ValueError(f"{mutant.file} has the text of {mutant.what!r} {found} times; expected once")
    return source.replace(mutant.text, mutant.instead)


def copy(to: Path) -> None:
    """Copy of the tree what the tests need."""
    for part in PARTS:
        if (TOP / part).is_dir():
            shutil.copytree(TOP / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(TOP / part, to / part)


def run(tree: Path, *tests: str) -> Tried:
    """Run *tests* in *tree*, with its own code; that they take too long counts as failed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "90", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        within = _SECONDS * len(tests)
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=within, check=False
        )
    except subprocess.TimeoutExpired:
        return Tried(_FAILED, "no end in time")
    return Tried(done.returncode, done.stdout + done.stderr)


def judge(mutant: Mutant) -> tuple[bool, str]:
    """Try *mutant* in a copy of its own; return whether its test noticed, and a word for it."""
    with tempfile.TemporaryDirectory(prefix="auth-sidecar-mutant-") as folder:
        tree = Path(folder)
        copy(tree)
        file = tree / mutant.file
        file.write_text(mutated(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        tried = run(tree, mutant.test)
    if tried.code == _PASSED:
        return False, "NOT NOTICED"
    return (True, "noticed") if tried.code == _FAILED else (False, f"could not be run:\n{tried.output}")


def main() -> int:
    """Try all; return 0 when the tests pass as the code is and notice every mutant."""
    for mutant in MUTANTS:
        mutated((TOP / mutant.file).read_text(encoding="utf-8"), mutant)
    with tempfile.TemporaryDirectory(prefix="auth-sidecar-mutant-") as folder:
        copy(Path(folder))
        print(f"{len(MUTANTS)} guards; first their tests as the code is", flush=True)
        if (tried := run(Path(folder), *(mutant.test for mutant in MUTANTS))).code != _PASSED:
            print(f"they do not pass without any mutant:\n{tried.output}")
            return 1
    missed = 0
    for mutant in MUTANTS:
        began = time.monotonic()
        noticed, word = judge(mutant)
        missed += not noticed
        name = mutant.test.partition("::")[2]
        print(f"{time.monotonic() - began:5.0f} s  {word:<11}  {mutant.what}  [{mutant.file}; {name}]", flush=True)
    print(f"{missed} of {len(MUTANTS)} not noticed" if missed else "every mutant was noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
