"""Bounds: the maximum tokens of a request, by kind, from its body alone.

A token is at least one byte of UTF-8 text. So the bytes bound the input, with an allowance for the text that a
provider's chat template adds to each message and tool. Images and audio in the body have bounds of their own.

References (URLs, files, earlier responses) are not bounded: the caller then uses the model's whole context. Anything
else without a bound gives None as well.

A body is walked once, in C where it may be large. Of the many fields that count, only those present (`FIELDS &
body.keys()`) are read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from usage_plugin.domain.prices import ONLY_TEXT, PriceExposure, Units
from usage_plugin.domain.usage import MOST_TOKENS
from usage_plugin.pricing.sheets import SERVICES, route_of
from usage_plugin.proxy.client_fields import HARMLESS, OWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MOST_ANSWERS = 100_000
MOST_COUNT = 2**31 - 1
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
# Fields that make a request read content from outside its body.
_REFERENCES = frozenset({
    "previous_response_id", "conversation", "prompt_id", "cached_content", "cachedContent", "vector_store_ids",
})  # fmt: skip
_GEMINI_TEXT = frozenset({"text", "thought", "thoughtSignature", "functionCall", "functionResponse"})
# Each provider's name for the output limit: LiteLLM forwards fields that it does not know.
OUTPUT_FIELDS = frozenset({
    "max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_tokens_to_sample", "num_predict",
    "maxOutputTokens", "maxTokens", "n_predict", "max_length", "max_gen_len",
})  # fmt: skip
_ANSWERS_FIELDS = frozenset({"n", "best_of", "candidate_count", "candidateCount", "num_return_sequences"})
NESTED = frozenset({
    "extra_body", "options", "parameters", "generationConfig", "generation_config", "inferenceConfig", "config",
})  # fmt: skip
_MODALITIES = frozenset({"modalities", "responseModalities", "response_modalities"})
MOST_PLACES = 20
_LONGEST_NUMBER = 20
_LONG_TEXT = 200
_ORDINARY_SERVICES = ("", "auto", "default", "standard", "standard_only")
# Features that the provider runs or bills separately: searches, servers, plugins, regions.
_PROVIDER_RUN = frozenset({"web_search_options", "mcp_servers", "search_parameters", "plugins", "inference_geo"})
_MESSAGES = frozenset({"messages", "system"})
_PROMPTS = frozenset({"input", "prompt"})
_GEMINI_CONTENTS = frozenset({"contents", "systemInstruction", "system_instruction"})
_OTHER_TEXT = frozenset({
    "instructions", "suffix", "documents", "query", "chat_history", "preamble", "template", "tool_results",
})  # fmt: skip
_PREDICTION = frozenset({"prediction"})
_JUDGED = frozenset(
    {"background", "speed", "service_tier", "transforms", "route", "usage", "context_management", "models"}
)
"""Fields that may cost extra, depending on their values."""
_LOOKED_INTO = (
    _REFERENCES | _ANSWERS_FIELDS | NESTED | _MODALITIES | _PROVIDER_RUN | _PROMPTS | _GEMINI_CONTENTS | _PREDICTION
    | _JUDGED | {"tools"}
)  # fmt: skip
"""All fields that can make a request more than messages with an output limit."""
_ALONE = {field: frozenset({field}) for field in OUTPUT_FIELDS}
_PLAIN = (HARMLESS | OWN | _MESSAGES | _OTHER_TEXT | OUTPUT_FIELDS) - _LOOKED_INTO
"""The fields of a plain request: messages with an output limit, and nothing else that costs extra."""
_KNOWN = _PLAIN | _LOOKED_INTO
_KNOWN_BY_PROVIDERS = (_KNOWN - OWN) | HARMLESS
"""The known fields of an object that is forwarded to the provider unchanged, such as `extra_body`."""
_WORDS = frozenset({
    "response_format", "responseFormat", "responseSchema", "response_schema", "responseJsonSchema",
    "response_json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    "json_schema", "grammar", "format", "output_format", "output_config", "text", "chat_template_kwargs",
    "chat_template_args", "tool_choice", "toolChoice", "toolConfig", "tool_config", "functions", "function_call",
})  # fmt: skip
"""Harmless fields with text that a provider may add to the prompt."""
COSTING = (_LOOKED_INTO | _MESSAGES | _OTHER_TEXT | _WORDS) - {"service_tier"}
"""Fields in a deployment's parameters that can add to a request's cost."""
_COUNTED_APART = _MESSAGES | _PROMPTS | _GEMINI_CONTENTS | NESTED | OUTPUT_FIELDS | {"tools"}
_NOT_COUNTED = (
    (HARMLESS - _WORDS) | _COUNTED_APART | _ANSWERS_FIELDS | _MODALITIES | _REFERENCES
    | {"service_tier", "speed", "background", "route"}
)  # fmt: skip
_NOT_COUNTED_IN_BODY = (_NOT_COUNTED | OWN) - _WORDS
"""All other fields count by their bytes, known or unknown, in any shape."""

_WITHOUT_PROMPT = ("aresponses", "anthropic_messages")
GEMINI = ("agenerate_content", "agenerate_content_stream")
_FILES_APART = ("transcription", "atranscription", "image_edit", "aimage_edit")
"""Call types whose audio or images are outside the body that hooks see."""
_SPEEDS = ("fast",)
"""Anthropic's modes that multiply the price of tokens; models without such a price do not have them."""
_RANKED = frozenset({"query", "documents"})
_RERANK_UNIT = 100
_RERANK_BYTES = 500
"""Cohere's unit is a query with up to 100 documents. A document above 500 tokens, the query's included, counts as
several.
"""


class Bounds(NamedTuple):
    """The bounds that a request's body sets.

    Attributes:
        input_tokens: The maximum input; None if the body refers to content outside it.
        output_is_bounded: Whether the request's output limit bounds the billed amount.
        asked_output: The requested maximum output of each answer; None without a valid number.
        answers: The number of answers requested; the output limit applies to each.
        reach: Everything other than text that the request may be billed for.
        named: The fields with a valid output limit, in the place where the route reads it.
        largest_output: The largest valid output limit in any place; 0 if there is none.
        predicted: The tokens that the client predicts; those that the provider rejects are billed too.
        models: Other models that the provider itself may choose.
        unknown: The fields of unknown cost.
    """

    input_tokens: int | None
    output_is_bounded: bool
    asked_output: int | None
    answers: int
    reach: PriceExposure
    named: frozenset[str] = frozenset()
    largest_output: int = 0
    predicted: int = 0
    models: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class _NotBoundedError(Exception):
    """The body refers to content outside it."""


class _Media:
    """Records whether the body has an image or audio."""

    __slots__ = ("any",)

    def __init__(self) -> None:
        self.any = False


def read(call_type: str, body: Mapping[str, Any], *, trusted: bool = False) -> Bounds:
    """Read a body, once.

    Unknown fields of a trusted body are the operator's or LiteLLM's, and cost nothing extra.
    """
    if body.keys() <= _PLAIN and route_of(call_type) == "text":
        return _of_messages(body)
    if trusted:
        body = {name: value for name, value in body.items() if name in _KNOWN}
    places = places_of(body)
    count = _answers(body, places)
    media = _Media()
    tokens = None if call_type in _FILES_APART or route_of(call_type) == "other" else _input(body, places, media)
    services = _services(places)
    sounds = [_media_output(place) for place in places]
    asked, largest = _asked_output(body, places)
    unknown = () if trusted or route_of(call_type) != "text" else _unknown(body, places)
    models = _models(places)
    return Bounds(
        input_tokens=tokens,
        output_is_bounded=count <= MOST_ANSWERS
        and len(places) <= MOST_PLACES
        and services is not None
        and None not in sounds
        and not unknown
        and models is not None
        and not _is_stored(call_type, body.get("prompt"))
        and all(map(_output_is_bounded, places)),
        asked_output=asked,
        answers=count,
        named=_named(holder_of(call_type, body)),
        largest_output=largest,
        predicted=sum([_text(place["prediction"]) for place in places if "prediction" in place]),
        models=models or (),
        unknown=unknown,
        reach=PriceExposure(
            media_input=media.any or tokens is None,
            media_output=any(sounds),
            services=services or (),
            units=_units(call_type, places, count),
            modes=tuple(speed for speed in _SPEEDS if any(place.get("speed") == speed for place in places)),
        ),
    )


def _of_messages(body: Mapping[str, Any]) -> Bounds:
    """Read the most common kind of body: messages and an output limit, and no other field that needs a check."""
    media = _Media()
    tokens: int | None
    try:
        tokens = PER_REQUEST + sum([_content(body[field], PER_MESSAGE, media) for field in _MESSAGES if field in body])
        words = [_text(value) for field, value in body.items() if field not in _NOT_COUNTED_IN_BODY]
        # LiteLLM turns a schema into a tool for some providers.
        tokens += sum(words) + (ANY_TOOLS if words else 0)
    except (_NotBoundedError, RecursionError):
        tokens = None
    reach = PriceExposure(media_input=True) if media.any or tokens is None else ONLY_TEXT
    if OUTPUT_FIELDS.isdisjoint(body):
        return Bounds(tokens, True, None, 1, reach)
    limits = OUTPUT_FIELDS & body.keys()
    if len(limits) == 1:
        (field,) = limits
        number = body[field]
        if type(number) is int and 0 < number < MOST_TOKENS:
            # The usual case.
            return Bounds(tokens, True, number, 1, reach, _ALONE[field], number)
    asked, largest = _asked_output(body, [body])
    return Bounds(tokens, True, asked, 1, reach, _named(body), largest)


def _input(body: Mapping[str, Any], places: list[Any], media: _Media) -> int | None:
    if any(place.get(field) for place in places for field in _REFERENCES & place.keys()):
        return None
    if isinstance(body.get("prompt"), dict):
        return None
    if len(places) > MOST_PLACES:
        return None
    try:
        return PER_REQUEST + sum(_input_of(place, media, is_body=place is body) for place in places)
    except (_NotBoundedError, RecursionError):
        return None


def _input_of(place: Mapping[str, Any], media: _Media, *, is_body: bool) -> int:
    """Count the text of a body, or of an `extra_body` that LiteLLM merges over it."""
    there = place.keys()
    bound = sum([_content(place[field], PER_MESSAGE, media) for field in _MESSAGES & there])
    bound += sum([_prompt(place[field], media) for field in _PROMPTS & there])
    bound += sum([_gemini(place[field], media) for field in _GEMINI_CONTENTS & there])
    # A nested field that is not an object counts as text of this place.
    bound += sum([_text(place[field]) for field in NESTED & there if not isinstance(place[field], dict)])
    # Test each field: a difference of sets would scan the whole of the larger set.
    apart = _NOT_COUNTED_IN_BODY if is_body else _NOT_COUNTED
    words = [_text(value) for field, value in place.items() if field not in apart]
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


def _output_is_bounded(place: Mapping[str, Any]) -> bool:
    if place.get("background") or any(place[field] is not None for field in _PROVIDER_RUN & place.keys()):
        return False
    if place.get("speed") not in (None, "standard", *_SPEEDS):
        return False
    if not _JUDGED.isdisjoint(place) and not (
        place.get("transforms") in _SHORTENING
        and place.get("route") in (None, "fallback")
        and place.get("usage") in (None, {}, {"include": True})
        and _only_clears(place.get("context_management"))
    ):
        return False
    return all(map(_is_client_tool, _listed(place.get("tools"))))


_SHORTENING: tuple[Any, ...] = (None, [], ["middle-out"])
"""OpenRouter's only transform removes text."""


def _only_clears(management: object) -> bool:
    """Whether the provider only removes earlier parts of the conversation; a summary of them would be more output."""
    if management in (None, {}, []):
        return True
    edits = management.get("edits") if isinstance(management, dict) else management
    return isinstance(edits, list) and all(
        isinstance(edit, dict) and str(edit.get("type")).startswith("clear_") for edit in edits
    )


def _is_stored(call_type: str, prompt: object) -> bool:
    """Whether a prompt refers to a stored one, which has tools and a model of its own."""
    return isinstance(prompt, dict) or (prompt is not None and call_type in _WITHOUT_PROMPT)


def _models(places: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Return the models that the provider may choose from, as OpenRouter does; None if the list is invalid."""
    listed = [place["models"] for place in places if place.get("models")]
    if not listed:
        return ()
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in listed):
        return None
    return tuple(dict.fromkeys(name for names in listed for name in names))


def _unknown(body: Mapping[str, Any], places: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the fields that may cost extra, since their meaning is unknown."""
    found: list[str] = []
    for place in places:
        known = _KNOWN if place is body else _KNOWN_BY_PROVIDERS
        for name, value in place.items():
            if value is None:
                continue
            if name in known:
                if name in NESTED and not isinstance(value, dict):
                    # A value of another type hides its fields.
                    found.append(name)
            elif not str(name).startswith("_litellm_"):
                found.append(str(name))
    return tuple(sorted(found)) if found else ()


def _listed(value: object) -> list[Any]:
    """Return a list unchanged, and any other value as a list of one."""
    if isinstance(value, list):
        return value
    return [] if value in (None, {}, "") else [value]


def _services(places: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Return the service tiers other than the ordinary one, most expensive first; None if any is unknown."""
    asked = [place["service_tier"] for place in places if place.get("service_tier") is not None]
    names = [name.lower() if isinstance(name, str) else None for name in asked]
    if any(name not in _ORDINARY_SERVICES and name not in SERVICES for name in names):
        return None
    return tuple(name for name in reversed(SERVICES) if name in names)


def _media_output(place: Mapping[str, Any]) -> bool | None:
    """Whether the answer may contain audio; None if it may contain a kind that no output limit bounds."""
    kinds = [
        str(kind).lower()
        for field in _MODALITIES & place.keys()
        if isinstance(place[field], list)
        for kind in place[field]
    ]
    return None if set(kinds) - {"text", "audio"} else "audio" in kinds


def _units(call_type: str, places: Sequence[Mapping[str, Any]], answers: int) -> Units | None:
    """Return the maximum units that may be billed by the piece; None if unknown."""
    route = route_of(call_type)
    if route == "image":
        return Units(images=answers) if answers <= MOST_ANSWERS else None
    if route == "speech":
        texts = [place["input"] for place in places if place.get("input") is not None]
        return Units(characters=sum(map(len, texts))) if all(isinstance(text, str) for text in texts) else None
    if route == "transcription":
        # Hooks do not see the audio.
        return None
    if route == "rerank":
        try:
            return Units(queries=sum(map(_queries, places)))
        except RecursionError:
            return None
    return Units()


def _queries(place: Mapping[str, Any]) -> int:
    documents = place.get("documents")
    if not isinstance(documents, list):
        return 0
    room = max(_RERANK_BYTES // 5, _RERANK_BYTES - _text(place.get("query")))
    pieces = sum(1 + _text(document) // room for document in documents)
    return max(1, -(-pieces // _RERANK_UNIT))


def _asked_output(body: Mapping[str, Any], places: list[Any]) -> tuple[int | None, int]:
    """Find the output limit. Text and floats count too, and the largest of several counts.

    Returns:
        The limit, None if there is none or any is invalid; and the largest valid number.
    """
    asked = [
        place[field]
        for place in places
        for field in OUTPUT_FIELDS & place.keys()
        # In the body itself, null means absent. In an object merged over it, null removes the body's value.
        if not (place is body and place[field] is None)
    ]
    numbers = [whole(value) for value in asked]
    largest = min(MOST_TOKENS, max(filter(None, numbers), default=0))
    return (None if not numbers or None in numbers or 0 in numbers else largest), largest


def holder_of(call_type: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object in which a route reads its output limit."""
    if call_type not in GEMINI:
        return body
    # LiteLLM reads `config`, else `generationConfig`.
    holder = body.get("generationConfig") if body.get("config") is None else body["config"]
    return holder if isinstance(holder, dict) else {}


_NOTHING: frozenset[str] = frozenset()


def _named(holder: Mapping[str, Any]) -> frozenset[str]:
    named = [field for field in OUTPUT_FIELDS & holder.keys() if whole(holder[field])]
    return frozenset(named) if named else _NOTHING


def names_any(body: Mapping[str, Any], fields: Iterable[str]) -> bool:
    """Whether any of these fields reaches the provider with a value, from any place."""
    places = places_of(body)
    return any(place.get(field) for field in fields for place in places)


def _answers(body: Mapping[str, Any], places: list[Any]) -> int:
    given = [
        value for place in places for field in _ANSWERS_FIELDS & place.keys() if (value := place[field]) is not None
    ]
    # A value that is not a whole number may still be valid for a provider, so the number of answers is unknown.
    counts = [1, *(MOST_COUNT if (count := whole(value)) is None else max(1, count) for value in given)]
    prompts = body.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and not _are_tokens(prompts) else 1
    return min(MOST_COUNT, max(counts) * max(1, several))


def places_of(body: Mapping[str, Any]) -> list[Any]:
    """Return the objects whose fields reach the provider: LiteLLM merges `extra_body` over the body, nested ones too.

    The list ends soon after `MOST_PLACES` objects; a body with more is treated as unbounded.
    """
    places: list[Any] = [body]
    for place in places:
        places += [nested for field in NESTED & place.keys() if isinstance(nested := place[field], dict)]
        if len(places) > MOST_PLACES:
            break
    return places


def whole(value: object) -> int | None:
    """Return a non-negative whole number from any spelling of it; None if it is invalid."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= _LONGEST_NUMBER:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: object) -> int:
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
        return sum(_text(item) + 2 for item in items)


def _content(value: object, each: int, media: _Media) -> int:
    """Count messages, or the parts of one; a part that is neither text nor in the body is unbounded."""
    if isinstance(value, list):
        return _items(value, each, media)
    if not isinstance(value, dict):
        return _text(value)
    kind = value.get("type")
    if kind not in _TEXT_PARTS and not (kind is None and "role" in value):
        return _inline(value, media)
    if value.get("audio") is not None or (kind == "reasoning" and not value.get("encrypted_content")):
        # Only an id: the provider reads the content that it has stored.
        raise _NotBoundedError
    total = 0
    for key, item in value.items():
        if key in ("content", "output"):
            total += _content(item, PER_PART, media)
        else:
            total += (len(key) if type(key) is str and key.isascii() else _text(key)) + _text(item)
    return total


def _items(items: list[Any], each: int, media: _Media) -> int:
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
        total += _content(item, each, media)
    return total


_INLINE = ("image_url", "source", "input_audio")


def _inline(part: Mapping[str, Any], media: _Media) -> int:
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
    extra = PER_PART + sum(_text(item) for name, item in part.items() if name not in _INLINE)
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


def _gemini(value: object, media: _Media) -> int:
    """Count Gemini's `contents` and everything in them."""
    if isinstance(value, list):
        return sum(_gemini(item, media) + PER_MESSAGE for item in value)
    if not isinstance(value, dict):
        return _text(value)
    if "parts" in value:
        return _gemini(value["parts"], media) + _text(value.get("role"))
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
    return _text(value)


def _prompt(given: object, media: _Media) -> int:
    """Count `prompt` or `input`: one text, several texts, token numbers, or the items of the Responses API."""
    if isinstance(given, list) and given:
        if _are_tokens(given):
            return len(given)
        if all(isinstance(item, list) and _are_tokens(item) for item in given):
            return sum(map(len, given))
    return _content(given, PER_MESSAGE, media)


def _are_tokens(items: list[Any]) -> bool:
    # Compare the types, in C: there may be very many items.
    return set(map(type, items)) <= {int, bool}


def _tools(given: object) -> int:
    tools = _listed(given)
    if not tools:
        return 0
    # Most are plain functions, and there may be hundreds.
    return ANY_TOOLS + sum(
        [
            _text(tool) + PER_TOOL if type(tool) is dict and tool.get("type") == "function" else _tool(tool)
            for tool in tools
        ]
    )


def _tool(tool: object) -> int:
    if not isinstance(tool, dict) or tool.get("type") != "namespace":
        return _text(tool) + (PER_NAMED_TOOL if tool in _RUN_BY_CLIENT or _is_named(tool) else PER_TOOL)
    nested = _listed(tool.get("tools"))
    # LiteLLM flattens a namespace for most providers: each tool then carries its name and description.
    said = sum(_text(value) for name, value in tool.items() if name != "tools") + PER_TOOL
    return said + sum(_text(item) + said for item in nested)


def _is_named(tool: object) -> bool:
    """Whether Anthropic itself describes this tool and the client runs it, such as `bash_20250124`."""
    if not isinstance(tool, dict) or (kind := tool.get("type")) in _ORDINARY_TOOLS or not isinstance(kind, str):
        return False
    return _NAMED_TOOL.fullmatch(kind) is not None


def _is_client_tool(tool: object) -> bool:
    """Whether the client runs this tool, not the provider, which would bill it."""
    if not isinstance(tool, dict):
        return False
    if _is_function(tool) or (tool and _GEMINI_TOOLS.issuperset(tool)):
        return True
    if _is_named(tool) and _NAMED_TOOL_FIELDS.issuperset(tool):
        return True
    if tool in _RUN_BY_CLIENT or (tool.get("execution") == "client" and _is_tool_search(tool)):
        return True
    nested = tool.get("tools")
    is_namespace = tool.get("type") == "namespace" and _NAMESPACE_FIELDS.issuperset(tool)
    return is_namespace and isinstance(nested, list) and all(map(_is_function, nested))


def _is_tool_search(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") == "tool_search" and _TOOL_SEARCH_FIELDS.issuperset(tool)


def _is_function(tool: object) -> bool:
    """Whether a tool is only described, so that only the client can run it."""
    if not isinstance(tool, dict):
        return False
    if not _CLIENT_TOOL_FIELDS.issuperset(tool):
        # Regardless of its type: LiteLLM finds provider tools such as `googleSearch` in it, and forwards them.
        return False
    return tool.get("type") in _ORDINARY_TOOLS[:2] or (tool.get("type") is None and "input_schema" in tool)


_ORDINARY_TOOLS = ("function", "custom", None)
_RUN_BY_CLIENT: tuple[Any, ...] = ({"type": "local_shell"}, {"type": "apply_patch"})
"""Tools that OpenAI describes itself and the client runs; with additional fields they may be other tools."""
_NAMESPACE_FIELDS = frozenset({"type", "name", "description", "tools"})
_TOOL_SEARCH_FIELDS = frozenset({"type", "execution", "description", "parameters"})
_CLIENT_TOOL_FIELDS = frozenset({
    "type", "function", "custom", "name", "description", "parameters", "strict", "format", "input_schema",
    "cache_control", "input_examples", "defer_loading", "allowed_callers", "eager_input_streaming",
})  # fmt: skip
_GEMINI_TOOLS = frozenset({"functionDeclarations", "function_declarations"})
_NAMED_TOOL = re.compile(r"(bash|text_editor|computer|memory)_\d{8}")
_NAMED_TOOL_FIELDS = frozenset({
    "type", "name", "cache_control", "display_width_px", "display_height_px", "display_number", "enable_zoom",
    "max_characters", "allowed_callers", "defer_loading", "input_examples",
})  # fmt: skip
