"""What servers read out of a path, all of them at once: the worst reading is the one that counts.

They differ in escapes, dot segments, back slashes, empty segments, path parameters, characters that they ignore,
and in which spellings of a dot or a slash they take for one. A letter in any charset is a letter to all of them.
"""

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

UP = b".."

_DECODINGS = 4
"""How often a path may have been encoded; whoever encodes more often hides something."""
_PLAIN = rb"[A-Za-z0-9_~-][A-Za-z0-9._~!$&'()*+,=:@-]*"
_PLAIN_SEGMENT = re.compile(_PLAIN)
_PLAIN_PATH = re.compile(rb"(?:/" + _PLAIN + rb")*/?")
_SEPARATOR = re.compile(rb"[/\\]")
_NAME_END = re.compile(rb"[;?#\x00]")
_IGNORED = bytes(range(0x21)) + b"\x7f"

_DISGUISED = re.compile(
    # the %u of JavaScript's escape()
    rb"%u([0-9a-f]{4})"
    # UTF-8 longer than it may be, and where the characters of _ALIKE lie
    rb"|[\xc0-\xc2][\x80-\xbf]|[\xe0\xe2\xee\xef][\x80-\xbf]{2}|\xf0[\x80-\x8f][\x80-\xbf]{2}"
    rb"|\xf8[\x80-\x87][\x80-\xbf]{3}|\xfc[\x80-\x83][\x80-\xbf]{4}"
    # no UTF-8 at all, but some decoders only add up
    rb"|\xc0(?=[./\\])|\xc1\x1c",
    re.IGNORECASE,
)
_BROKEN = {b"\xc0": b"", b"\xc1\x1c": b"\\", b"\xc1\xaf": b"/"}  # the last is in lists of attacks
_ALIKE = {
    0x00A5: b"\\",  # the yen sign, in its place in Japanese code pages
    0x2024: b".",  # one dot leader, and two, and three
    0x2025: b"..",
    0x2026: b"...",
    0x2044: b"/",  # fraction slash
    0x20A9: b"\\",  # the won sign, in its place in Korean code pages
    0x2215: b"/",  # division slash
    0x2216: b"\\",  # set minus
    0xEFC8: b"/",  # of private use, in lists of attacks too
    0xF025: b"/",
    0xFE52: b".",  # small full stop
    0xFE68: b"\\",  # small reverse solidus
}
"""Characters that best fit (WideCharToMultiByte) or compatibility (NFKC) turn into a dot or a slash."""
_FULL_WIDTH = range(0xFF01, 0xFF5F)
_FULL_WIDTH_OFFSET = 0xFEE0
_ASCII = 0x80


def is_plain(path: bytes) -> bool:
    """Tell whether every server reads *path* as it stands: the usual case, told cheaply."""
    return _PLAIN_PATH.fullmatch(path) is not None


def as_served(path: bytes) -> bytes:
    """Return *path* as most servers read it: decoded, without path parameters, empty and dot segments."""
    if path and is_plain(path):
        return path
    kept: list[bytes] = []
    segments = unquote_to_bytes(b"/".join(part.partition(b";")[0] for part in path.split(b"/")[1:])).split(b"/")
    for segment in segments:
        if segment == UP:
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    end = b"/" if kept and segments[-1] in (b"", b".", UP) else b""
    return b"/" + b"/".join(kept) + end


def readings(segments: Sequence[bytes]) -> list[list[bytes]]:
    """Return for each segment the names that the most generous server finds in it, as `names` has it."""
    return [names(segment) for segment in segments]


def leaves(read: Sequence[Sequence[bytes]]) -> bool:
    """Tell whether a path that was read as *read* may lead above where it begins.

    Each server has its own mixture of readings, so the worst is assumed of every segment: one that may lead up
    does, as often as it may, and one that may be nothing, or up, leads nowhere down.
    """
    depth = 0
    for found in read:
        ups = found.count(UP)
        depth += -ups if ups else bool(found[0])
        if depth < 0:
            return True
    return False


def names(segment: bytes) -> list[bytes]:
    """Return the names that the most generous server finds in one segment: `..` for up, empty for none.

    What hides its meaning may lead up as often as it has bytes.
    """
    if _PLAIN_SEGMENT.fullmatch(segment):
        return [segment]
    for _ in range(_DECODINGS + 1):
        decoded = _DISGUISED.sub(_undisguised, unquote_to_bytes(segment))
        if decoded == segment:
            break
        segment = decoded
    else:
        return [UP] * len(segment)
    return [_name(piece) for piece in _SEPARATOR.split(segment)]


def _name(piece: bytes) -> bytes:
    name = _NAME_END.split(piece, 1)[0].translate(None, _IGNORED)
    if name.strip(b"."):
        return name
    return UP if len(name) > 1 else b""


def _undisguised(found: re.Match[bytes]) -> bytes:
    """Return the ASCII that some server takes for what was found; what none does stays as it is."""
    spelling, escaped = found[0], found[1]
    if spelling in _BROKEN:
        return _BROKEN[spelling]
    if escaped:
        code = int(escaped, 16)
    else:
        code = spelling[0] & 0x7F >> len(spelling)
        for byte in spelling[1:]:
            code = code << 6 | byte & 0x3F
    if code in _FULL_WIDTH:
        code -= _FULL_WIDTH_OFFSET
    return bytes([code]) if code < _ASCII else _ALIKE.get(code, spelling)
