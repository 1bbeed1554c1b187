"""Answer bytes: read the usage of an answer that LiteLLM forwards unchanged, from the bytes sent to the client.

LiteLLM reads no usage from many such answers, since it relies on the expected host, path and shape.

- A whole answer in one part is parsed when it is sent.
- An answer in many parts, or a very large one, is scanned for the few members with billed amounts. So memory does not
  grow with it.
- Streams are read line by line (`streams.Report`).
- Errors, audio, files and binary streams are not read.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import orjson

from usage_plugin.domain.prices import NO_UNITS, Units
from usage_plugin.pricing.usage import count, is_counted, mapping
from usage_plugin.proxy.json_members import MemberScanner
from usage_plugin.proxy.streams import Report
from usage_plugin.proxy.usage_parsing import tools_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ERROR = 400
_LINES = ("text/event-stream", "application/x-ndjson", "application/jsonl", "application/stream+json")
_WHOLE = ("", "application/json", "text/plain")
_WINDOW = zlib.MAX_WBITS
_WINDOWS = {b"gzip": _WINDOW | 16, b"x-gzip": _WINDOW | 16, b"deflate": _WINDOW}
_AT_ONCE = 1_000_000
"""The maximum bytes that are decompressed at a time; their compressed form may be a thousand times smaller."""
_LARGEST = 32_000_000
"""The largest whole answer that is parsed; LiteLLM has parsed it before. A larger one is scanned."""
_HOLDERS = ("message", "response", "delta", "x_groq")
"""The members in which a frame without usage may hold it, including Cohere's `delta` and Groq's own field."""


class PassThroughReport(Report):
    """The report of an answer that LiteLLM forwards unchanged.

    Attributes:
        path: The path of the route, which names the provider.
        units: Units that are billed by the piece.
        is_stream: Whether the answer arrives in readable frames.
    """

    __slots__ = ("_decoder", "_is_in_parts", "_is_read", "_part", "_scanner", "is_stream", "path", "units")

    def __init__(self, path: str = "") -> None:
        """Start with an empty report, reading nothing until the headers are known."""
        super().__init__()
        self.path = path
        self.units: Units = NO_UNITS
        self.is_stream = False
        self._is_read = self._is_in_parts = False
        self._part: bytes | None = None
        self._scanner = MemberScanner()
        self._decoder: Any = None  # zlib's type, which has no name

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Decide from the answer's headers how its body is read."""
        named = {name.lower(): value for name, value in headers}
        kind = named.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        self.is_stream = kind in _LINES
        self._is_read = status < _ERROR and (self.is_stream or kind in _WHOLE or kind.endswith("+json"))
        encoding = named.get(b"content-encoding", b"identity").strip().lower()
        if encoding in _WINDOWS:
            self._decoder = zlib.decompressobj(_WINDOWS[encoding])
        elif encoding != b"identity":
            self._is_read = False

    def read_bytes(self, body: bytes) -> None:
        """Read a part of the answer; a whole answer in one part is read at its end."""
        if not self._is_read or not body:
            return
        if self.is_stream:
            super().read_bytes(self._plain(body, _LARGEST))
        elif self._part is None and not self._is_in_parts:
            self._part = body
        else:
            self._scan_parts(body)

    def end(self) -> None:
        """Read the remaining bytes: the only part of a whole answer, or a last line that is not terminated."""
        super().end()
        body, self._part = self._part, None
        if body is None:
            return
        plain = self._plain(body, _LARGEST)
        if self._decoder is not None and self._decoder.unconsumed_tail:
            self._scan(self._scanner, plain)
            self._scan_parts(self._decoder.unconsumed_tail)
            return
        try:
            answer = orjson.loads(plain)
        except orjson.JSONDecodeError:
            return
        for found in answer if isinstance(answer, list) else (answer,):
            self.read(found)

    def _scan_parts(self, body: bytes) -> None:
        self._is_in_parts = True
        parts = (self._part or b"", body)
        self._part = None
        for part in parts:
            rest = part
            while rest:
                self._scan(self._scanner, self._plain(rest, _AT_ONCE))
                rest = self._decoder.unconsumed_tail if self._decoder is not None else b""

    def _plain(self, body: bytes, most: int) -> bytes:
        """Decompress a part up to a number of bytes; the rest stays in the decoder's `unconsumed_tail`."""
        if self._decoder is None:
            return body
        try:
            plain: bytes = self._decoder.decompress(body, most)
        except zlib.error:
            self._is_read, self._decoder = False, None
            return b""
        return plain

    def read(self, frame: Any) -> None:  # a dict
        """Read a whole answer, or one frame."""
        if not isinstance(frame, dict):
            return
        # Ignore `metadata`: a gateway returns the client's own text in it, which is never usage.
        told = {name: value for name, value in frame.items() if name != "metadata"}
        if is_counted(mapping(frame.get("usage"))) or is_counted(mapping(frame.get("usageMetadata"))):
            told = {name: value for name, value in told.items() if name not in _HOLDERS}
        super().read(told)
        self._add(mapping(mapping(told.get("delta")).get("usage")))
        self._add(mapping(mapping(told.get("x_groq")).get("usage")))
        self._add(mapping(told.get("meta")))
        for answer in (told, told.get("response")):
            if isinstance(answer, dict):
                self.add_tools(tools_in(answer))

    def _add(self, usage: Mapping[str, Any]) -> None:
        """Add usage from a place where other answers have none."""
        if is_counted(usage):
            self.add_usage(usage)
            queries = count(mapping(usage.get("billed_units")), "search_units")
            self.units = NO_UNITS._replace(queries=queries) if queries else self.units
