"""Chunks, and a body in them taken apart as it comes (RFC 9112 section 7.1)."""

import re

_EXTENSION = rb"[ \t]*+(?:;[^\x00-\x08\x0a-\x1f\x7f]*+)?"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})" + _EXTENSION + rb"\r\n")
_BEGUN_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}" + _EXTENSION + rb"\r?")
_MAX_SIZE_LINE = 4 << 10
_MAX_TRAILERS = 16 << 10
_END = b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return *data* as one chunk; nothing for none, since an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class ChunkReader:
    """Takes chunks apart, however they are cut into packets; extensions and trailers are dropped.

    *ended*: the last chunk and the trailers are here; *rest*: what came after them. *fault*: what is wrong with the
    chunks, in words that quote nothing of them, empty for nothing; what was read before is good.
    """

    __slots__ = ("_begun", "_left", "_trailers", "ended", "fault", "rest")

    def __init__(self) -> None:
        self.ended = False
        self.rest = b""
        self.fault = ""
        self._begun = b""  # of a line
        self._left = 0  # of the chunk, its line end included
        self._trailers = -1  # how many bytes of them are here, -1: before the last chunk

    def feed(self, data: bytes) -> bytes:
        """Return the content that *data* brings, empty for none; not to be called after the end or a fault.

        Faults: no size, a chunk longer than its size, a line feed alone, a size line over 4 KiB, trailers over 16 KiB.
        """
        if self._begun:
            data, self._begun = self._begun + data, b""
        parts, at, size = [], 0, len(data)
        while at < size and not self.ended:
            if self._left > len(_END):
                part = data[at : at + self._left - len(_END)]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
            elif self._left:
                at = self._take_end(data, at)
            elif self._trailers < 0:
                at = self._take_size(data, at)
            else:
                at = self._take_trailer(data, at)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take_end(self, data: bytes, at: int) -> int:
        if data[at] != _END[-self._left]:
            return self._stop(data, "a chunk is longer than its size")
        self._left -= 1
        return at + 1

    def _take_size(self, data: bytes, at: int) -> int:
        line = _SIZE.match(data, at)
        end = line.end() if line else len(data)
        if end - at > _MAX_SIZE_LINE or not (line or _BEGUN_SIZE.fullmatch(data, at)):
            return self._stop(data, "a chunk has no size that can be read")
        if line is None:
            self._begun = data[at:]
        elif length := int(line[1], 16):
            self._left = length + len(_END)
        else:
            self._trailers = 0
        return end

    def _take_trailer(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        line = data[at : end or len(data)]
        if self._trailers + len(line) > _MAX_TRAILERS:
            return self._stop(data, "the trailers are over 16 KiB")
        if not end:
            self._begun = line
            return len(data)
        if not line.endswith(_END):
            return self._stop(data, "a trailer ends in a line feed alone")
        self._trailers += len(line)
        if line == _END:
            self.ended, self.rest = True, data[end:]
        return end

    def _stop(self, data: bytes, fault: str) -> int:
        self.fault = fault
        return len(data)
