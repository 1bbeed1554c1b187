"""JSON members: extract a few members from a large JSON object, without keeping the object.

An answer with an image or with thousands of embeddings has ten megabytes or more, and its usage is one small member at
either end. The scanner only looks at quotes and brackets, which it finds with regular expressions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOLD = frozenset({
    b"usage", b"usageMetadata", b"meta", b"model", b"modelVersion", b"service_tier", b"serviceTier", b"tool_usage",
    b"output", b"choices", b"candidates", b"response", b"message", b"metadata", b"delta", b"x_groq", b"type",
})  # fmt: skip
"""Members of an answer that may contain billed amounts, directly or nested."""

_LONGEST_TEXT = 300
_LONGEST_MEMBER = 200_000
_SLICE = 65_536
"""Bytes that are matched at a time: a match's memory for escapes grows with it."""
_TOKEN = re.compile(rb'["{}\[\],:]')
_BRACKET = re.compile(rb'["{}\[\]]')
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_PLAIN = rb'[^"{}\[\]]*(?:%s[^"{}\[\]]*)*' % _STRING
_UNWANTED = re.compile(rb'(?:[^"{}\[\]]+|%s|[{\[]%s[}\]])*' % (_STRING, _PLAIN), re.DOTALL)
"""Everything up to the next bracket with nested brackets, or up to a text that does not end here."""
_TEXT = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class MemberScanner:
    """Extracts the members of JSON objects that may contain billed amounts, from bytes split into any parts.

    Objects may come alone, in an array or in lines. Long texts are omitted, and so are members that are long even
    without them.
    """

    __slots__ = ("_depth", "_escaped", "_in_text", "_is_key", "_key", "_member", "_members", "_text")

    def __init__(self) -> None:
        """Start outside of any object."""
        self._depth = 0
        self._in_text = self._escaped = self._is_key = False
        self._text = bytearray()
        self._key = b""
        self._member: bytearray | None = None
        self._members: list[bytes] = []

    def feed(self, part: bytes) -> Iterator[dict[str, Any]]:
        """Read a part; yield the kept members of each object that ends in it."""
        for start in range(0, len(part), _SLICE):
            yield from self._feed(part[start : start + _SLICE])

    def _feed(self, part: bytes) -> Iterator[dict[str, Any]]:
        at, end = 0, len(part)
        while at < end:
            if self._in_text:
                at = self._feed_text(part, at)
            elif not self._depth:
                # Skip anything between objects, such as the brackets of an array.
                at = part.find(b"{", at) + 1
                if not at:
                    return
                self._depth, self._is_key, self._members = 1, True, []
            else:
                if self._depth > 1 and self._member is None:
                    at = _UNWANTED.match(part, at).end()  # type: ignore[union-attr]  # it matches nothing as well
                token = (_TOKEN if self._depth == 1 else _BRACKET).search(part, at)
                stop = token.start() if token is not None else end
                self._keep(part, at, stop)
                if token is None:
                    return
                at = token.end()
                yield from self._take(token.group())

    def _take(self, token: bytes) -> Iterator[dict[str, Any]]:
        """Process one token outside of texts."""
        if token == b'"':
            self._in_text = True
            self._text.clear()
        elif token in b"{[":
            self._depth += 1
            self._keep(token, 0, 1)
        elif token in b"}]":
            self._depth -= 1
            if self._depth:
                self._keep(token, 0, 1)
            else:
                self._end_member()
                yield from self._end_object()
        elif token == b":":
            self._is_key = False
            self._member = bytearray() if self._key in _TOLD else None
        else:
            self._end_member()
            self._is_key = True

    def _feed_text(self, part: bytes, at: int) -> int:
        """Continue in a text; return the position after it."""
        if self._escaped:
            self._escaped = False
            self._add(part, at, at + 1)
            at += 1
        stop = _TEXT.match(part, at).end()  # type: ignore[union-attr]  # it matches nothing as well
        self._add(part, at, stop)
        if part[stop : stop + 1] == b'"':
            self._in_text = False
            self._end_text()
        elif stop < len(part):
            # The escaped byte is the first of the next slice.
            self._escaped = True
            self._add(part, stop, stop + 1)
        return stop + 1

    def _add(self, part: bytes, start: int, stop: int) -> None:
        """Keep a piece of a wanted text, as long as it is short."""
        is_wanted = self._member is not None or (self._depth == 1 and self._is_key)
        if is_wanted and len(self._text) <= _LONGEST_TEXT:
            self._text += part[start : min(stop, start + _LONGEST_TEXT + 1)]

    def _end_text(self) -> None:
        if self._depth == 1 and self._is_key:
            self._key = bytes(self._text)
        elif self._member is not None:
            text = b"" if len(self._text) > _LONGEST_TEXT else bytes(self._text)
            self._keep(b'"%s"' % text, 0, len(text) + 2)

    def _keep(self, part: bytes, start: int, stop: int) -> None:
        if self._member is None or start >= stop:
            return
        if len(self._member) + stop - start > _LONGEST_MEMBER:
            self._member = None
        else:
            self._member += part[start:stop]

    def _end_member(self) -> None:
        if self._member is not None:
            self._members.append(b'"%s":%s' % (self._key, bytes(self._member)))
        self._key, self._member = b"", None

    def _end_object(self) -> Iterator[dict[str, Any]]:
        try:
            yield orjson.loads(b"{%s}" % b",".join(self._members))
        except orjson.JSONDecodeError:
            return
        finally:
            self._members = []
