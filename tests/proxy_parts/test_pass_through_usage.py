"""Finding the usage in an answer's bytes, in chunks of any size and in any encoding, without false finds."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.proxy.json_members import MemberScanner
from usage_plugin.proxy.pass_through_usage import PassThroughReport

USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
WANTED = ("usage", "model", "choices")
TEXTS = st.sampled_from(['say "hi"\\', "{[]}:,", "é\n\u2028", "usage", "x" * 400, '"usage": {"prompt_tokens": 1}'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0, 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["usage", 'a"k', "x:y", "choices"]), inner),
)  # fmt: skip
OBJECTS = st.dictionaries(st.sampled_from([*WANTED, "data", 'z"q', "pad\\"]), VALUES)


def without_long_texts(value: Any) -> Any:
    if isinstance(value, str):
        return "" if len(json.dumps(value)) > 302 else value
    if isinstance(value, list):
        return [without_long_texts(item) for item in value]
    if isinstance(value, dict):
        return {name: without_long_texts(item) for name, item in value.items()}
    return value


@given(st.lists(OBJECTS, min_size=1, max_size=3), st.integers(1, 60), st.sampled_from([None, 2]))
def test_the_scanner_finds_what_a_parser_finds(objects: list[dict[str, Any]], size: int, indent: int | None) -> None:
    """The wanted members of all objects of an array, in chunks of any size, are those that a JSON parser finds."""
    content, scanner = json.dumps(objects, indent=indent).encode(), MemberScanner()
    found = [answer for at in range(0, len(content), size) for answer in scanner.feed(content[at : at + size])]
    assert found == [
        {name: without_long_texts(value) for name, value in answer.items() if name in WANTED} for answer in objects
    ]


def read(content: bytes, size: int, kind: str = "application/json", **headers: str) -> PassThroughReport:
    """Read an answer in chunks of a size, and return its report."""
    report = PassThroughReport()
    named = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    report.begin(200, [(name.encode(), value.encode()) for name, value in named.items()])
    for at in range(0, len(content), size):
        report.read_bytes(content[at : at + size])
    report.end()
    return report


ANSWER = json.dumps({"model": "m", "data": [{"b64_json": "A" * 50_000}], "usage": USAGE}).encode()


@pytest.mark.parametrize("size", [1, 1000, 10**9])
@pytest.mark.parametrize(
    ("encoding", "compress"), [("identity", bytes), ("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_answer_is_read(encoding: str, compress: Any, size: int) -> None:
    """A compressed answer, in one chunk or in many, yields the usage of the plain one."""
    report = read(compress(ANSWER), size, content_encoding=encoding)
    assert (report.usage, report.model) == (USAGE, "m")


@pytest.mark.parametrize("size", [1000, 10**9])
def test_what_cannot_be_read_says_nothing(size: int) -> None:
    """Unsupported and corrupt encodings, errors, audio and truncated answers yield no usage, and raise nothing."""
    assert not read(ANSWER, size, content_encoding="br").usage
    assert not read(ANSWER, size, content_encoding="gzip").usage
    assert not read(ANSWER, size, kind="audio/mpeg").usage
    assert not read(b"no JSON: " + b"x" * 5000, size).usage
    assert not read(ANSWER[:-1], size).usage
    refused = PassThroughReport()
    refused.begin(429, [(b"content-type", b"application/json")])
    refused.read_bytes(ANSWER)
    refused.end()
    assert not refused.usage


def test_memory_does_not_grow_with_an_answer_in_parts() -> None:
    """An answer of five megabytes in chunks is read in less than two, because none of it is kept."""
    part = b'{"embedding": [0.123456, 0.234567], "text": "a \\" b"}, ' * 2000
    report = PassThroughReport()
    report.begin(200, [(b"content-type", b"application/json")])
    report.read_bytes(b'{"data": [')
    tracemalloc.start()
    try:
        for _ in range(50):
            report.read_bytes(part)
        report.read_bytes(b"0], " + json.dumps({"usage": USAGE}).encode()[1:])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.usage == USAGE
    assert most < 2_000_000


@pytest.mark.parametrize("size", [100_000, 10**9])
def test_the_last_frame_of_a_stream_may_be_huge(size: int) -> None:
    """The last frame of a stream of pictures contains all of them, and its usage is found after them."""
    output = [{"type": "image_generation_call", "result": "A" * 3_000_000}, {"type": "web_search_call"}]
    response = {"model": "gpt-5", "output": output, "usage": {"input_tokens": 7, "output_tokens": 5}}
    frames = [{"type": "response.created", "response": {"model": "gpt-5"}}, {"type": "response.completed", "response": response}]  # fmt: skip
    content = b"".join(b"event: x\ndata: " + json.dumps(frame).encode() + b"\n\n" for frame in frames)
    report = read(content, size, kind="text/event-stream; charset=utf-8")
    assert (report.usage, report.model, report.tools.searches) == (response["usage"], "gpt-5", 1)


@pytest.mark.parametrize("size", [5, 10**9])
def test_a_gateway_that_sends_back_what_the_client_wrote_is_not_believed(size: int) -> None:
    """Usage counts only in the places where a provider writes it, not in the client's own echoed fields."""
    told = {"metadata": {"usage": {"prompt_tokens": 1}}, "message": {"usage": {"prompt_tokens": 2}}, "usage": USAGE}
    assert read(json.dumps(told).encode(), size).usage == USAGE
    assert not read(json.dumps({"metadata": {"usage": {"prompt_tokens": 1}}}).encode(), size).usage


def test_frames_of_providers_that_write_usage_elsewhere() -> None:
    """Usage is found in Cohere's last frame, Groq's own field, an array of Gemini's frames, and a reranking answer."""
    billed = {"billed_units": {"input_tokens": 5, "output_tokens": 2}}
    cohere = json.dumps({"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": billed}}).encode()
    assert read(cohere + b"\n", 9, kind="application/stream+json").usage == billed
    groq = b"data: " + json.dumps({"choices": [], "x_groq": {"usage": USAGE}}).encode() + b"\n\n"
    assert read(groq, 9, kind="text/event-stream").usage == USAGE
    counted = {"promptTokenCount": 4, "candidatesTokenCount": 3, "totalTokenCount": 7}
    gemini = json.dumps([{"candidates": []}, {"candidates": [], "usageMetadata": counted}], indent=2).encode()
    assert [read(gemini, size).usage for size in (9, 10**9)] == [counted, counted]
    rerank = json.dumps({"results": [], "meta": {"billed_units": {"search_units": 3}}}).encode()
    assert [read(rerank, size).units.queries for size in (9, 10**9)] == [3, 3]
