"""Read JSON as a stream out of a file: progress, numbers that no JSON has, and errors in one line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO

import ijson

if TYPE_CHECKING:
    from collections.abc import Callable

BUFFER = 1 << 16
# SystemError: the C parser's word for a number with thousands of digits.
BROKEN = (ijson.JSONError, UnicodeDecodeError, SystemError, RecursionError, OSError)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line."""
    text = str(error) or type(error).__name__
    # The parser draws an arrow to what it stopped at.
    return " ".join(text.partition("(right here)")[0].split())


class Watched:
    """A file whose reading is watched."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        """Take the open file, and a function that gets the number of bytes read."""
        self._file = file
        self._advance = advance

    def read(self, size: int = -1) -> bytes:
        """Read bytes, and report how many."""
        data = self._file.read(size)
        if data:
            self._advance(len(data))
        return data

    def has(self, *words: bytes) -> bool:
        """Say whether one of some words stands anywhere in the file, and begin anew."""
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
    """Let a parser read what Python writes for numbers that are none, which no JSON has."""
    return _Numbers(file) if file.has(b"NaN", b"Infinity") else file


_STRING_END = re.compile(rb'(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_NUMBER = re.compile(rb"-?(?:NaN|Infinity)")
_LONGEST_WORD = len(b"-Infinity")


class _Numbers:
    """Puts quotes around `NaN`, `Infinity` and `-Infinity` outside of strings, so that they come as texts."""

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
                    # Half an escape belongs to what comes next.
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
            # A word may be cut where the data ends: keep what has no sign behind it.
            end = len(data) if is_end else max(at, _last_break(data, at))
            parts.append(_NO_NUMBER.sub(rb'"\g<0>"', data[at:end]))
            self._rest = data[end:]
            break
        return b"".join(parts)


def _last_break(data: bytes, at: int) -> int:
    """Find where a word that reaches the end begins."""
    end = len(data)
    while end > at and len(data) - end < _LONGEST_WORD and data[end - 1 : end].isalpha():
        end -= 1
    return end - 1 if end > at and data[end - 1 : end] == b"-" else end
