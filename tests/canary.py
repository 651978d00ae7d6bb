"""Secrets that can be searched for: every secret of a test says so itself, and none may show in any output."""

from base64 import b64encode
from pathlib import Path

WORD = "CANARY"


def canary(name: str) -> str:
    """Return the test secret *name*: the same for the same name, safe in a URL, a header and a form."""
    return f"{WORD}-{name}"


def _base64_forms(word: bytes) -> list[bytes]:
    """Return what *word* becomes inside a longer Base64 text, at each of the three places it can start."""
    bits = len(word) * 8
    return [b64encode(bytes(before) + word)[-(-before * 8 // 6) : (before * 8 + bits) // 6] for before in range(3)]


SPELLINGS = (WORD.encode(), WORD.lower().encode())  # the bundled emulator marks the tokens it issues in lower case
NEEDLES = (
    *SPELLINGS,
    *(spelling.hex().encode() for spelling in SPELLINGS),
    *(form for spelling in SPELLINGS for form in _base64_forms(spelling)),
)


def leaks(directory: Path) -> list[str]:
    """Return `file:line` of every line under *directory* that shows a canary: as it is, in hexadecimal or in Base64."""
    return [
        f"{file.relative_to(directory)}:{number}"
        for file in sorted(directory.rglob("*"))
        if file.is_file()
        for number, line in enumerate(file.read_bytes().splitlines(), start=1)
        if any(needle in line for needle in NEEDLES)
    ]
