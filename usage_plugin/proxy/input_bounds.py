"""Input bounds: the maximum input tokens of a body, by its bytes.

A token is at least one byte of UTF-8 text. So the bytes bound the input, with an allowance for the text that a
provider's chat template adds to each message and tool. Images and audio in the body have bounds of their own.
References (URLs, files, earlier responses) are not bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from usage_plugin.proxy.body_fields import (
    GEMINI_CONTENTS,
    MESSAGES,
    MOST_PLACES,
    NESTED,
    NOT_COUNTED,
    NOT_COUNTED_IN_BODY,
    PROMPTS,
    REFERENCES,
)
from usage_plugin.proxy.client_tools import is_named, is_run_by_client, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

PER_REQUEST = 64
PER_MESSAGE = 16
PER_PART = 4
PER_TOOL = 32
ANY_TOOLS = 640
"""Anthropic's tool preamble has up to 530 tokens, OpenAI's about 130."""
PER_NAMED_TOOL = 1_500
"""A tool that Anthropic describes itself and the client runs. The largest, `computer`, has 735 tokens, and 499 more of
system prompt.
"""
PER_IMAGE = 50_000
"""The most expensive known image has 768 × 2048 pixels; gpt-4o-mini counts it as 48,169 tokens."""
CHARACTERS_PER_AUDIO_TOKEN = 2
"""Characters of base64. Providers count up to 32 tokens a second, and every codec needs at least 100 bytes for each."""

# The types of message parts that count as their own bytes.
_TEXT_PARTS = frozenset({
    "text", "input_text", "output_text", "summary_text", "refusal", "thinking", "redacted_thinking", "reasoning",
    "tool_use", "tool_result", "function", "function_call", "function_call_output", "message", "custom_tool_call",
    "custom_tool_call_output", "local_shell_call", "local_shell_call_output", "apply_patch_call",
    "apply_patch_call_output",
})  # fmt: skip
_GEMINI_TEXT = frozenset({"text", "thought", "thoughtSignature", "functionCall", "functionResponse"})
_LONG_TEXT = 200
_RANKED = frozenset({"query", "documents"})
_INLINE = ("image_url", "source", "input_audio")


class _NotBoundedError(Exception):
    """The body refers to content outside it."""


class Media:
    """Records whether a body has an image or audio."""

    __slots__ = ("any",)

    def __init__(self) -> None:
        self.any = False


def tokens_of_messages(body: Mapping[str, Any], media: Media) -> int | None:
    """Return the maximum input tokens of messages without tools or nested objects; None if unbounded."""
    try:
        tokens = PER_REQUEST
        tokens += sum([content_size(body[field], PER_MESSAGE, media) for field in MESSAGES if field in body])
        words = [text_size(value) for field, value in body.items() if field not in NOT_COUNTED_IN_BODY]
        # LiteLLM turns a schema into a tool for some providers.
        return tokens + sum(words) + (ANY_TOOLS if words else 0)
    except (_NotBoundedError, RecursionError):
        return None


def input_tokens(body: Mapping[str, Any], places: list[Any], media: Media) -> int | None:
    """Return the maximum input tokens of a body with these places; None if unbounded."""
    if any(place.get(field) for place in places for field in REFERENCES & place.keys()):
        return None
    if isinstance(body.get("prompt"), dict):
        return None
    if len(places) > MOST_PLACES:
        return None
    try:
        return PER_REQUEST + sum(_input_of(place, media, is_body=place is body) for place in places)
    except (_NotBoundedError, RecursionError):
        return None


def _input_of(place: Mapping[str, Any], media: Media, *, is_body: bool) -> int:
    """Count the text of a body, or of an `extra_body` that LiteLLM merges over it."""
    there = place.keys()
    bound = sum([content_size(place[field], PER_MESSAGE, media) for field in MESSAGES & there])
    bound += sum([_prompt(place[field], media) for field in PROMPTS & there])
    bound += sum([_gemini(place[field], media) for field in GEMINI_CONTENTS & there])
    # A nested field that is not an object counts as text of this place.
    bound += sum([text_size(place[field]) for field in NESTED & there if not isinstance(place[field], dict)])
    # Test each field: a difference of sets would scan the whole of the larger set.
    apart = NOT_COUNTED_IN_BODY if is_body else NOT_COUNTED
    words = [text_size(value) for field, value in place.items() if field not in apart]
    # LiteLLM turns a schema into a tool for some providers, but not the documents of a ranking.
    may_be_tools = bool(words) and not apart | _RANKED >= there
    return bound + sum(words) + (ANY_TOOLS if may_be_tools else 0) + _tools(place.get("tools"))


def texts(body: Mapping[str, Any]) -> list[str]:
    """Return the longer texts of the messages or the prompt that count by their bytes."""
    found: list[str] = []
    waiting = [body.get(field) for field in ("messages", "system", "input", "prompt", "instructions")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if len(value) >= _LONG_TEXT:
                found.append(value)
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += [value[name] for name in ("content", "text") if name in value]
    return found


def text_size(value: object) -> int:
    """Count the bytes of all text in a value, including keys and numbers."""
    if isinstance(value, str):
        return size_of(value)
    if isinstance(value, dict | list):
        return _json(value)
    return 0 if value is None else len(repr(value))


def size_of(text: str) -> int:
    """Count the bytes of a text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _json(value: dict[Any, Any] | list[Any]) -> int:
    """Count the bytes of a value as JSON, as it arrived; walk through a value that JSON cannot represent."""
    try:
        return len(orjson.dumps(value))
    except TypeError:
        items = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
        return sum(text_size(item) + 2 for item in items)


def content_size(value: object, each: int, media: Media) -> int:
    """Count messages, or the parts of one; a part that is neither text nor in the body is unbounded."""
    if isinstance(value, list):
        return _items(value, each, media)
    if not isinstance(value, dict):
        return text_size(value)
    kind = value.get("type")
    if kind not in _TEXT_PARTS and not (kind is None and "role" in value):
        return _inline(value, media)
    if value.get("audio") is not None or (kind == "reasoning" and not value.get("encrypted_content")):
        # Only an id: the provider reads the content that it has stored.
        raise _NotBoundedError
    total = 0
    for key, item in value.items():
        if key in ("content", "output"):
            total += content_size(item, PER_PART, media)
        else:
            total += (len(key) if type(key) is str and key.isascii() else text_size(key)) + text_size(item)
    return total


def _items(items: list[Any], each: int, media: Media) -> int:
    """Count the messages or parts of a list. There may be very many, and most have two texts and nothing else."""
    total = each * len(items)
    for item in items:
        if type(item) is dict and len(item) == 2:
            role, content, text = item.get("role"), item.get("content"), item.get("text")
            if type(content) is str and type(role) is str:
                total += size_of(content) + size_of(role) + len("role")
                continue
            if type(text) is str and item.get("type") == "text":
                total += size_of(text) + len("typetexttext")
                continue
        total += content_size(item, each, media)
    return total


def _inline(part: Mapping[str, Any], media: Media) -> int:
    """Return the bound of an image or audio in the body.

    Raises:
        _NotBoundedError: The part has another type, or its content is not in the body.
    """
    kind = part.get("type")
    found = part.get("image_url")
    url = found.get("url") if isinstance(found, dict) else found
    source = part.get("source")
    source = source if isinstance(source, dict) else {}
    sound = part.get("input_audio")
    extra = PER_PART + sum(text_size(item) for name, item in part.items() if name not in _INLINE)
    if kind in ("image_url", "input_image") and isinstance(url, str) and url.startswith("data:image/"):
        if part.get("file_id"):
            raise _NotBoundedError
        media.any = True
        return PER_IMAGE + extra
    if kind == "image" and source.get("type") == "base64":
        media.any = True
        return PER_IMAGE + extra
    if kind == "input_audio" and isinstance(sound, dict) and isinstance(sound.get("data"), str):
        media.any = True
        return extra + len(sound["data"]) // CHARACTERS_PER_AUDIO_TOKEN
    raise _NotBoundedError


def _gemini(value: object, media: Media) -> int:
    """Count Gemini's `contents` and everything in them."""
    if isinstance(value, list):
        return sum(_gemini(item, media) + PER_MESSAGE for item in value)
    if not isinstance(value, dict):
        return text_size(value)
    if "parts" in value:
        return _gemini(value["parts"], media) + text_size(value.get("role"))
    data = value.get("inlineData") or value.get("inline_data")
    if isinstance(data, dict):
        kind = str(data.get("mimeType") or data.get("mime_type"))
        media.any = True
        if kind.startswith("image/"):
            return PER_IMAGE
        if kind.startswith("audio/") and isinstance(data.get("data"), str):
            return PER_PART + len(data["data"]) // CHARACTERS_PER_AUDIO_TOKEN
        raise _NotBoundedError
    if not _GEMINI_TEXT.issuperset(value):
        raise _NotBoundedError
    return text_size(value)


def _prompt(given: object, media: Media) -> int:
    """Count `prompt` or `input`: one text, several texts, token numbers, or the items of the Responses API."""
    if isinstance(given, list) and given:
        if are_tokens(given):
            return len(given)
        if all(isinstance(item, list) and are_tokens(item) for item in given):
            return sum(map(len, given))
    return content_size(given, PER_MESSAGE, media)


def are_tokens(items: list[Any]) -> bool:
    """Whether a list has token numbers instead of text."""
    # Compare the types, in C: there may be very many items.
    return set(map(type, items)) <= {int, bool}


def _tools(given: object) -> int:
    tools = listed(given)
    if not tools:
        return 0
    # Most are plain functions, and there may be hundreds.
    return ANY_TOOLS + sum(
        [
            text_size(tool) + PER_TOOL if type(tool) is dict and tool.get("type") == "function" else _tool(tool)
            for tool in tools
        ]
    )


def _tool(tool: object) -> int:
    if not isinstance(tool, dict) or tool.get("type") != "namespace":
        return text_size(tool) + (PER_NAMED_TOOL if is_run_by_client(tool) or is_named(tool) else PER_TOOL)
    nested = listed(tool.get("tools"))
    # LiteLLM flattens a namespace for most providers: each tool then carries its name and description.
    said = sum(text_size(value) for name, value in tool.items() if name != "tools") + PER_TOOL
    return said + sum(text_size(item) + said for item in nested)
