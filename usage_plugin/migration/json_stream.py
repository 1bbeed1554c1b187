"""Read JSON from a file as a stream: progress, Python's NaN and Infinity, and errors in one line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO

import ijson

if TYPE_CHECKING:
    from collections.abc import Callable

BUFFER = 1 << 16
# SystemError: raised by the C parser for a number with thousands of digits.
BROKEN = (ijson.JSONError, UnicodeDecodeError, SystemError, RecursionError, OSError)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line."""
    text = str(error) or type(error).__name__
    # The parser draws an arrow to the place of the error.
    return " ".join(text.partition("(right here)")[0].split())


class Watched:
    """A file whose reads are reported."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        """Use an open file, and a function that receives the number of bytes of each read."""
        self._file = file
        self._advance = advance

    def read(self, size: int = -1) -> bytes:
        """Read bytes, and report how many."""
        data = self._file.read(size)
        if data:
            self._advance(len(data))
        return data

    def has(self, *words: bytes) -> bool:
        """Whether the file contains one of some words; rewind to its start."""
        end = b""
        found = False
        while not found and (data := self._file.read(1 << 20)):
            found = any(word in end + data for word in words)
            end = data[-16:]
        self._file.seek(0)
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def readable(file: Watched) -> Watched | _Numbers:
    """Return a file in which Python's `NaN` and `Infinity` are valid JSON."""
    return _Numbers(file) if file.has(b"NaN", b"Infinity") else file


_STRING_END = re.compile(rb'(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_NUMBER = re.compile(rb"-?(?:NaN|Infinity)")
_LONGEST_WORD = len(b"-Infinity")


class _Numbers:
    """A file with quotes around `NaN`, `Infinity` and `-Infinity` outside of strings, so that they become texts."""

    def __init__(self, file: Watched) -> None:
        self._file = file
        self._rest = b""
        self._within = False

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""
        while True:
            data = self._file.read(size)
            read = self._quoted(self._rest + data, is_end=not data)
            if read or not data:
                return read

    def _quoted(self, data: bytes, *, is_end: bool) -> bytes:
        parts = []
        at = 0
        self._rest = b""
        while at < len(data):
            if self._within:
                found = _STRING_END.match(data, at)
                if found is None:
                    # Half an escape belongs to the next block.
                    backslashes = len(data) - len(data.rstrip(b"\\"))
                    end = len(data) - (backslashes % 2 if not is_end else 0)
                    parts.append(data[at:end])
                    self._rest = data[end:]
                    break
                parts.append(found[0])
                at = found.end()
                self._within = False
                continue
            quote_at = data.find(b'"', at)
            if quote_at >= 0:
                parts.append(_NO_NUMBER.sub(rb'"\g<0>"', data[at:quote_at]) + b'"')
                at = quote_at + 1
                self._within = True
                continue
            # A word may be cut where the data ends: keep it for the next block.
            end = len(data) if is_end else max(at, _last_break(data, at))
            parts.append(_NO_NUMBER.sub(rb'"\g<0>"', data[at:end]))
            self._rest = data[end:]
            break
        return b"".join(parts)


def _last_break(data: bytes, at: int) -> int:
    """Return the start of a word that reaches the end."""
    end = len(data)
    while end > at and len(data) - end < _LONGEST_WORD and data[end - 1 : end].isalpha():
        end -= 1
    return end - 1 if end > at and data[end - 1 : end] == b"-" else end
