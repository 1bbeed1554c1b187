"""Streams: a provider's own report on a stream.

LiteLLM reassembles the answer after a stream and loses parts that it does not know: a total above the parts, the billed
amount, searches, tiers. So the usage is read from the provider's own frames: those that LiteLLM's stream has kept.
Where the client gets the provider's frames, it is read from the bytes that are sent.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import orjson
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.llms.anthropic.chat import handler as anthropic
from litellm.llms.bedrock.chat.invoke_handler import AWSEventStreamDecoder
from litellm.llms.vertex_ai.gemini import vertex_and_google_ai_studio_gemini as gemini
from litellm.responses.streaming_iterator import BaseResponsesAPIStreamingIterator

from usage_plugin.domain.prices import NO_TOOL_CALLS, ToolCalls
from usage_plugin.pricing.usage import field, fields_of, grounding_calls, mapping, tier_of
from usage_plugin.proxy.json_members import MemberScanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Stream: TypeAlias = Any
"""A stream as one of LiteLLM's calls made it: one of `_STREAMS`."""

_STREAMS = (CustomStreamWrapper, BaseResponsesAPIStreamingIterator)
_PARSERS = (
    (anthropic.ModelResponseIterator, "chunk_parser"),
    (gemini.ModelResponseIterator, "chunk_parser"),
    (AWSEventStreamDecoder, "converse_chunk_parser"),
    (BaseResponsesAPIStreamingIterator, "_process_chunk"),
)
"""The parsers of providers whose fields LiteLLM's own frames lack, or replace with LiteLLM's numbers."""
_TELLING = frozenset({"usageMetadata", "usage", "serviceTier", "message"})

_LONGEST_LINE = 1_000_000
"""The maximum line length in bytes. A longer one, such as the last frame of a stream of images, is scanned and not
kept.
"""
_MARKS = (b'"usage', b'"modelVersion"', b'"url_citation"')
"""A frame without these reports nothing that is billed."""
_HOLDERS = ("message", "response", "metadata")
"""The members in which a frame may hold its report, besides itself: Anthropic's, OpenAI's Responses', Bedrock's."""


NATIVE = frozenset({"agenerate_content_stream"})
"""Call types of streams for which LiteLLM creates no object: their frames are read from the bytes sent to the
client.
"""


class Report:
    """The report of one stream's frames.

    Attributes:
        usage: The usage of all frames: later numbers replace earlier ones, but a zero never replaces a number.
        model: The provider's model, as the frames name it.
        service: The service tier.
        tools: The tools that the provider ran, as far as frames show them.
        lacks_output: Whether Anthropic's first frame has arrived, and none yet that counts the output.
    """

    __slots__ = ("_long_line", "_partial", "lacks_output", "model", "service", "tools", "usage")

    def __init__(self) -> None:
        """Start with an empty report."""
        self.usage: dict[str, Any] = {}
        self.model: str | None = None
        self.service: str | None = None
        self.tools: ToolCalls = NO_TOOL_CALLS
        self.lacks_output = False
        self._partial = b""
        self._long_line: MemberScanner | None = None

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Receive the head of the answer; here it is ignored, since the frames of a native stream are always read."""

    def read_bytes(self, body: bytes) -> None:
        """Read a part of a stream of server-sent events; an incomplete line is kept for the next part."""
        if self._long_line is not None:
            rest, is_ended, body = body.partition(b"\n")
            self._scan(self._long_line, rest)
            if not is_ended:
                return
            self._long_line = None
        *lines, self._partial = (self._partial + body).split(b"\n")
        for line in lines:
            self.read_line(line)
        if len(self._partial) > _LONGEST_LINE:
            self._long_line = MemberScanner()
            self._scan(self._long_line, self._partial)
            self._partial = b""

    def _scan(self, scanner: MemberScanner, part: bytes) -> None:
        for frame in scanner.feed(part):
            self.read(frame)

    def end(self) -> None:
        """Read the remaining bytes: the last line may not be terminated."""
        self.read_line(self._partial)
        self._partial = b""

    def read_line(self, line: bytes) -> None:
        """Read one line of server-sent events, or a frame of JSON."""
        if not any(mark in line for mark in _MARKS):
            return
        text = line.strip().removeprefix(b"data:").strip().lstrip(b"[,").rstrip(b",]")
        try:
            frame = orjson.loads(text)
        except orjson.JSONDecodeError:
            return
        self.read(frame)

    def read(self, frame: Any) -> None:  # a dict, or any of LiteLLM's and OpenAI's frames
        """Read one frame."""
        for holder in (frame, *(field(frame, name) for name in _HOLDERS)):
            if holder is None:
                continue
            usage = mapping(field(holder, "usage")) or mapping(field(holder, "usageMetadata"))
            if usage:
                self.lacks_output = field(frame, "type") == "message_start"
                self.add_usage(usage)
            model = field(holder, "model") or field(holder, "modelVersion")
            if isinstance(model, str) and model:
                self.model = model
            self.service = tier_of(fields_of(holder)) or self.service
        candidates = field(frame, "candidates")
        if isinstance(candidates, list):
            self.add_tools(grounding_calls(candidates))

    def add_usage(self, usage: Mapping[str, Any]) -> None:
        """Add the fields of a later usage; an empty one does not replace a number."""
        self.usage.update({name: value for name, value in usage.items() if value or not self.usage.get(name)})

    def add_tools(self, found: ToolCalls) -> None:
        """Take the larger count of each tool: frames report the same calls again."""
        if found is not NO_TOOL_CALLS:
            self.tools = ToolCalls._make(map(max, self.tools, found))


class StreamedRequest(Protocol):
    """A request, as far as its stream matters."""

    stream: Stream | None
    report: Report | None


def report_of(request: StreamedRequest) -> Report | None:
    """Return the report on a stream; None if there is none."""
    if request.stream is None:
        return request.report
    kept = _kept_by(request.stream)
    if request.report is None:
        return kept
    # The provider's own frames have more fields than LiteLLM's.
    request.report.model = request.report.model or kept.model
    return request.report


def _kept_by(stream: Stream) -> Report:
    """Read the frames that LiteLLM has kept of a stream."""
    report = Report()
    if isinstance(stream, BaseResponsesAPIStreamingIterator):
        report.read(stream.completed_response)
        return report
    for frame in stream.chunks:
        # Nearly all frames have only text.
        if getattr(frame, "usage", None) is not None or getattr(frame, "service_tier", None) is not None:
            report.read(frame)
    hidden = mapping(getattr(stream.chunks[-1], "_hidden_params", None)) if stream.chunks else {}
    named = hidden.get("provider_response_model")
    report.model = named if isinstance(named, str) and named else report.model
    return report


def remember_streams(requests_here: Callable[[], Sequence[StreamedRequest]]) -> None:
    """Wrap LiteLLM's streams so that requests know their streams; done once in a process.

    `requests_here` returns the unsettled requests of the current request scope.
    """
    for kind in _STREAMS:
        if not hasattr(kind.__init__, "__wrapped__"):
            _remember(kind, requests_here)
    for kind, name in _PARSERS:
        if not hasattr(getattr(kind, name), "__wrapped__"):
            _read_frames(kind, name, requests_here)


def _remember(kind: type[Any], requests_here: Callable[[], Sequence[StreamedRequest]]) -> None:
    make = kind.__init__

    @wraps(make)
    def remembered(self: Stream, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        for request in requests_here():
            # Where one API is served through another, the inner stream is made first, and only that one is kept.
            if request.stream is None:
                request.stream = self

    kind.__init__ = remembered


def _read_frames(kind: type[Any], name: str, requests_here: Callable[[], Sequence[StreamedRequest]]) -> None:
    parse = getattr(kind, name)

    @wraps(parse)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        frame = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(frame, dict) and not _TELLING.isdisjoint(frame):
            for report in _reports_of(requests_here()):
                report.read(frame)
        elif isinstance(frame, str) and '"usage"' in frame:
            for report in _reports_of(requests_here()):
                report.read_line(frame.encode())
        return parse(self, *args, **kwargs)

    setattr(kind, name, reading)


def _reports_of(requests: Sequence[StreamedRequest]) -> list[Report]:
    for request in requests:
        if request.report is None:
            request.report = Report()
    return [request.report for request in requests if request.report is not None]
