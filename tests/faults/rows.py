"""The rows of the fault matrix, and the tests that show what happens in each: what the table is written from.

A row's tests are the functions named for it, `test_flt_up_01_...`; what happens is what their docstrings say.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/operations.md"
HEADING = "## Faults, and what happens"
_ROW = re.compile(r"test_(flt_[a-z]{2}_\d\d)_\w+")
_BEGIN, _END = "<!-- faults -->\n", "<!-- end of faults -->\n"

FAULTS = {
    "FLT-AS-01": "the token endpoint never answers, a token is at hand",
    "FLT-AS-02": "the token endpoint never answers, no token is at hand",
    "FLT-AS-03": "the token endpoint says 500, 502 or 503 for a while",
    "FLT-AS-04": "the token endpoint says 429 with `Retry-After`",
    "FLT-AS-05": "the refresh token is refused (`invalid_grant`)",
    "FLT-AS-06": "the client is refused (`invalid_client`)",
    "FLT-AS-07": "the token endpoint answers 200 with what is no token answer, or far too much of it",
    "FLT-AS-08": "`expires_in` is missing, a string, zero, negative, huge, a fraction or null",
    "FLT-AS-09": "the token is of another type, empty, very long, or no field value",
    "FLT-AS-10": "the token endpoint sends a byte now and then",
    "FLT-AS-11": "the token endpoint resets the connection, before or after it has the request",
    "FLT-AS-12": "the token endpoint's name does not resolve, or resolves to an address where nobody answers",
    "FLT-AS-13": "the token endpoint's certificate is expired, for another name, or of an unknown issuer",
    "FLT-AS-14": "the token endpoint redirects to another host",
    "FLT-AS-15": "the token endpoint gives the same revoked token again",
    "FLT-AS-16": "the token endpoint takes longer than a lease lasts",
    "FLT-RD-01": "Redis is down at the start",
    "FLT-RD-02": "Redis is killed, and comes back empty",
    "FLT-RD-03": "Redis fails when a renewal asks for the lease",
    "FLT-RD-04": "Redis is slow",
    "FLT-RD-05": "Redis is cut off: nothing comes, nothing is refused",
    "FLT-RD-06": "the Sentinels make another server the master in the middle of a renewal",
    "FLT-RD-07": "Redis has become a read-only replica",
    "FLT-RD-08": "an instance is frozen while it has the lease",
    "FLT-RD-09": "a record is damaged, cut short, of a wrong type, version or key",
    "FLT-RD-10": "Redis evicts, is flushed, or has no memory left",
    "FLT-RD-11": "the clocks of the instances differ by five minutes",
    "FLT-RD-12": "Redis refuses the password, the rights or the certificate",
    "FLT-RD-13": "clients leave in the middle of a command to Redis",
    "FLT-RD-14": "fifty instances start at once",
    "FLT-UP-01": "every token is revoked under 200 requests",
    "FLT-UP-02": "one path answers 401 to every token",
    "FLT-UP-03": "a 401 for an old token comes after the renewal",
    "FLT-UP-04": "a 401 with other challenges: `insufficient_scope`, Basic, several, broken ones, none",
    "FLT-UP-05": "403",
    "FLT-UP-06": "429 with all kinds of `Retry-After`",
    "FLT-UP-07": "a burst of 503",
    "FLT-UP-08": "a half-open breaker's probe never ends, or its client leaves",
    "FLT-UP-09": "the upstream's port is closed, or takes no connection",
    "FLT-UP-10": "the connection is reset after the request, before the answer",
    "FLT-UP-11": "the connection breaks after the head of the answer, or in its body",
    "FLT-UP-12": "an idle connection is closed by the upstream just when it is used again",
    "FLT-UP-13": "the upstream takes the request and never answers",
    "FLT-UP-14": "100, 102 and 103 before the answer, or instead of it; 101 unasked",
    "FLT-UP-15": "trailers, broken chunks, a missing end, bytes after the end, two framings, a body where none may be",
    "FLT-UP-16": "a head of a megabyte, 10 000 fields, folded lines, NUL",
    "FLT-UP-17": "HTTP/2: GOAWAY, RST_STREAM, stalled windows, floods",
    "FLT-UP-18": "a very large answer to a slow client",
    "FLT-UP-19": "401 in the middle of a very large upload",
    "FLT-UP-20": "compressed bodies, ranges, 304, HEAD, event streams",
    "FLT-UP-21": "a redirect to another host",
    "FLT-UP-22": "the upstream's name resolves to another address",
    "FLT-UP-23": "the upstream repeats the token in its answer",
    "FLT-PR-01": "SIGTERM with requests in flight, requests waiting to be tried again, and a renewal",
    "FLT-PR-02": "a second SIGTERM",
    "FLT-PR-03": "SIGTERM after the script has ended, or while it still works",
    "FLT-PR-04": "SIGKILL while it has the lease",
    "FLT-PR-05": "SIGKILL between the issuer's answer and the store, with a rotating refresh token",
    "FLT-PR-06": "two instances start at the same moment on an empty store",
    "FLT-PR-07": "the store's key is rotated in operation; instances with different keys",
    "FLT-PR-08": "the client leaves while it waits for a token, a retry or the upstream",
    "FLT-PR-09": "a bug: an exception in the middle of a request",
    "FLT-PR-10": "the process stands still, the disk is full, descriptors run out, a worker is killed",
    "FLT-PR-11": "the machine's clock jumps an hour",
    "FLT-PR-12": "a secret file is replaced; a configuration file is half written",
    "FLT-PR-13": "a configuration that cannot be used",
    "FLT-PR-14": "health and metrics are asked for while everything else is down",
    "FLT-PR-15": "all kinds of faults, for a long time",
}
"""What goes wrong, by the id of the row."""

NOT_APPLICABLE = {"FLT-UP-17": "Does not apply: upstreams are spoken to in HTTP/1.1 only."}


@dataclass(frozen=True)
class Shown:
    """A test of a row: where it is, its name, and what it says happens."""

    file: str
    name: str
    sentence: str

    @property
    def row(self) -> str:
        match = _ROW.fullmatch(self.name)
        assert match, f"{self.file}: {self.name} names no row"
        return match[1].upper().replace("_", "-")


def shown_in(file: str, source: str) -> list[Shown]:
    """Return the tests of rows in *source*, in its order."""
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [
        Shown(file, node.name, " ".join((ast.get_docstring(node) or "").split()))
        for node in functions
        if node.name.startswith("test_flt_")
    ]


def shown() -> list[Shown]:
    """Return the tests of all rows, file by file."""
    return [each for file in sorted(HERE.glob("test_*.py")) for each in shown_in(file.name, file.read_text("utf-8"))]


def table(tests: list[Shown]) -> str:
    """Return the table as the page has it: a line for each row, its tests' sentences one after the other."""
    happens: dict[str, str] = dict(NOT_APPLICABLE)
    for each in tests:
        happens[each.row] = " ".join(filter(None, [happens.get(each.row), each.sentence]))
    lines = [f"| {row} | {fault} | {happens.get(row, '')} |" for row, fault in FAULTS.items()]
    return "\n".join(["| id | what goes wrong | what happens |", "|---|---|---|", *lines]) + "\n"


def table_of(page: str) -> str:
    """Return the table that *page* has."""
    return page.split(_BEGIN, 1)[1].split(_END, 1)[0]


def with_table(page: str, text: str) -> str:
    """Return *page* with *text* for its table."""
    before, rest = page.split(_BEGIN, 1)
    return before + _BEGIN + text + _END + rest.split(_END, 1)[1]
