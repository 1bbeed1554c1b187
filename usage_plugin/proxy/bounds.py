"""Bounds: how many tokens a request can have at most, from its body alone.

A token is at least one byte of UTF-8 text, so the bytes bound the input, with room for what a provider's chat
template adds to each message and tool. What the body only refers to (images, files, earlier responses) is not
bounded by bytes: the caller then takes the model's whole context. What nothing bounds gives None there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.usage import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_ANSWERS = 100_000
MOST_COUNT = 2**31 - 1
PER_REQUEST = 64
PER_MESSAGE = 16
PER_TOOL = 32
ANY_TOOLS = 640
"""Anthropic's tool preamble has up to 530 tokens, OpenAI's some 130."""

# What a part of a message may be called to count as its own bytes.
_TEXT_PARTS = frozenset({
    "text", "input_text", "output_text", "summary_text", "refusal", "thinking", "redacted_thinking", "reasoning",
    "tool_use", "tool_result", "function", "function_call", "function_call_output", "message",
})  # fmt: skip
# Fields that make a request read what it does not contain.
_REFERENCES = (
    "previous_response_id", "conversation", "prompt_id", "cached_content", "cachedContent", "contents",
    "systemInstruction", "system_instruction",
)  # fmt: skip
# Under whatever name a provider takes them: LiteLLM passes on what it does not know.
_OUTPUT_FIELDS = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_tokens_to_sample", "num_predict",
    "maxOutputTokens", "maxTokens", "n_predict", "max_length", "max_gen_len",
)  # fmt: skip
_ANSWERS_FIELDS = ("n", "best_of", "candidate_count", "candidateCount", "num_return_sequences")
_NESTED = (
    "extra_body", "options", "parameters", "generationConfig", "generation_config", "inferenceConfig", "config",
)  # fmt: skip
_MOST_PLACES = 20
_DEARER_TIERS = ("priority", "fast", "scale")
_PROVIDER_RUN = ("web_search_options", "mcp_servers")
_OTHER_TEXT = ("instructions", "response_format", "text", "functions", "suffix", "prediction", "documents")
_INJECTED_FIELD = {
    "acompletion": "max_tokens",
    "atext_completion": "max_tokens",
    "aresponses": "max_output_tokens",
    "anthropic_messages": "max_tokens",
}


class _NotBoundedError(Exception):
    """The body refers to something that it does not contain."""


class Bounds(NamedTuple):
    """What a request's body bounds.

    Attributes:
        input_tokens: None if the body refers to something that it does not contain.
        output_is_bounded: whether the output limit of the request bounds what will be billed.
        asked_output: the output tokens that the request allows for each answer; None if it names no sensible number.
        answers: how many answers it asks for; each has the output bound for itself.
    """

    input_tokens: int | None
    output_is_bounded: bool
    asked_output: int | None
    answers: int


def read(body: Mapping[str, Any]) -> Bounds:
    """Read a body, once."""
    places = _places(body)
    count = _answers(body, places)
    return Bounds(
        input_tokens=_input(body, places),
        output_is_bounded=count <= MOST_ANSWERS and all(map(_output_is_bounded, places)),
        asked_output=_asked_output(body, places),
        answers=count,
    )


def _input(body: Mapping[str, Any], places: list[Any]) -> int | None:
    if any(place.get(field) for place in places for field in _REFERENCES) or isinstance(body.get("prompt"), dict):
        return None
    try:
        return PER_REQUEST + sum(map(_input_of, places))
    except (_NotBoundedError, RecursionError):
        return None


def _input_of(place: Mapping[str, Any]) -> int:
    """Count the text of a body, or of an `extra_body` that LiteLLM lays over it."""
    bound = sum(_content(place.get(field), PER_MESSAGE) for field in ("messages", "system"))
    bound += sum(_prompt(place.get(field)) for field in ("input", "prompt"))
    return bound + sum(_text(place.get(field)) for field in _OTHER_TEXT) + _tools(place.get("tools"))


def _output_is_bounded(place: Mapping[str, Any]) -> bool:
    if place.get("background") or any(place.get(field) is not None for field in _PROVIDER_RUN):
        return False
    if place.get("service_tier") in _DEARER_TIERS or _makes_media(place):
        return False
    tools = place.get("tools")
    return not isinstance(tools, list) or all(map(_is_client_tool, tools))


def _asked_output(body: Mapping[str, Any], places: list[Any]) -> int | None:
    """Find the output limit: written as text or with a point it counts too, and of several the largest."""
    asked = [
        place[field]
        for place in places
        for field in _OUTPUT_FIELDS
        # In the body itself null is as good as nothing; laid over it, it takes away what stands there.
        if field in place and not (place is body and place[field] is None)
    ]
    numbers = [_whole(value) for value in asked]
    if not numbers or None in numbers or 0 in numbers:
        return None
    return min(MOST_TOKENS, max(filter(None, numbers)))


def inject_output(call_type: str, body: dict[str, Any], most: int) -> bool:
    """Put an output limit into the request, in place of what names none; False if this API takes none."""
    field = _INJECTED_FIELD.get(call_type)
    if field is None:
        return False
    for place in _places(body):
        for name in _OUTPUT_FIELDS:
            if name in place:
                place[name] = most
    body[field] = most
    return True


def _answers(body: Mapping[str, Any], places: list[Any]) -> int:
    given = [value for place in places for field in _ANSWERS_FIELDS if (value := place.get(field)) is not None]
    # What is no whole number may still mean one to a provider: nobody knows how many answers there will be.
    counts = [1, *(MOST_COUNT if (count := _whole(value)) is None else max(1, count) for value in given)]
    prompts = body.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and not _are_tokens(prompts) else 1
    return min(MOST_COUNT, max(counts) * max(1, several))


def _places(body: Mapping[str, Any]) -> list[Any]:
    """List the objects whose fields reach the provider: LiteLLM merges `extra_body` over the rest, nested ones too."""
    places: list[Any] = [body]
    for place in places:
        places += [nested for field in _NESTED if isinstance(nested := place.get(field), dict)]
        if len(places) > _MOST_PLACES:
            break
    return places


def _whole(value: object) -> int | None:
    """Read a whole number, not negative, however it is written."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value[:20])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: object) -> int:
    """Count the bytes of all text in a value, keys and numbers included."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(_text(key) + _text(item) + 2 for key, item in value.items())
    if isinstance(value, list):
        return sum(_text(item) + 1 for item in value)
    return 0 if value is None else len(repr(value))


def _content(value: object, each: int) -> int:
    """Count messages, or the parts of one; a part that is no text is not bounded."""
    if isinstance(value, list):
        return sum(_content(item, each) + each for item in value)
    if not isinstance(value, dict):
        return _text(value)
    kind = value.get("type")
    if kind not in _TEXT_PARTS and not (kind is None and "role" in value):
        raise _NotBoundedError
    if value.get("audio") is not None or (kind == "reasoning" and not value.get("encrypted_content")):
        # By its id only: the provider reads what it has kept.
        raise _NotBoundedError
    return sum(
        _content(item, 4) if key in ("content", "output") else _text(key) + _text(item) for key, item in value.items()
    )


def _prompt(given: object) -> int:
    """Count `prompt` or `input`: text, several texts, token numbers, or the items of the Responses API."""
    if isinstance(given, list) and given:
        if _are_tokens(given):
            return len(given)
        if all(isinstance(item, list) and _are_tokens(item) for item in given):
            return sum(map(len, given))
    return _content(given, PER_MESSAGE)


def _are_tokens(items: list[Any]) -> bool:
    return all(isinstance(item, int) for item in items)


def _tools(tools: object) -> int:
    if not isinstance(tools, list) or not tools:
        return 0
    return ANY_TOOLS + sum(_text(tool) + PER_TOOL for tool in tools)


def _makes_media(place: Mapping[str, Any]) -> bool:
    """Say whether the answer may hold more than text, which is billed by other prices."""
    modalities = place.get("modalities") or place.get("responseModalities")
    return isinstance(modalities, list) and any(str(kind).lower() != "text" for kind in modalities)


def _is_client_tool(tool: object) -> bool:
    """Tell the tools that the client runs from those that the provider runs, and bills, by itself."""
    if not isinstance(tool, dict):
        return False
    return tool.get("type") in ("function", "custom") or (tool.get("type") is None and "input_schema" in tool)
