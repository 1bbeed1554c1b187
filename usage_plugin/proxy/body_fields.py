"""Body fields: the fields of a request's body by their meaning, and the nested objects in which they may stand.

LiteLLM merges `extra_body` over the body, and some providers read nested objects such as `options`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.proxy.client_fields import HARMLESS, LITELLM_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Fields that make a request read content from outside its body.
REFERENCES = frozenset({
    "previous_response_id", "conversation", "prompt_id", "cached_content", "cachedContent", "vector_store_ids",
})  # fmt: skip
# Each provider's name for the output limit: LiteLLM forwards fields that it does not know.
OUTPUT_FIELDS = frozenset({
    "max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_tokens_to_sample", "num_predict",
    "maxOutputTokens", "maxTokens", "n_predict", "max_length", "max_gen_len",
})  # fmt: skip
ANSWERS_FIELDS = frozenset({"n", "best_of", "candidate_count", "candidateCount", "num_return_sequences"})
NESTED = frozenset({
    "extra_body", "options", "parameters", "generationConfig", "generation_config", "inferenceConfig", "config",
})  # fmt: skip
MODALITIES = frozenset({"modalities", "responseModalities", "response_modalities"})
MOST_PLACES = 20
_LONGEST_NUMBER = 20
# Features that the provider runs or bills separately: searches, servers, plugins, regions.
PROVIDER_RUN = frozenset({"web_search_options", "mcp_servers", "search_parameters", "plugins", "inference_geo"})
MESSAGES = frozenset({"messages", "system"})
PROMPTS = frozenset({"input", "prompt"})
GEMINI_CONTENTS = frozenset({"contents", "systemInstruction", "system_instruction"})
_OTHER_TEXT = frozenset({
    "instructions", "suffix", "documents", "query", "chat_history", "preamble", "template", "tool_results",
})  # fmt: skip
_PREDICTION = frozenset({"prediction"})
JUDGED = frozenset(
    {"background", "speed", "service_tier", "transforms", "route", "usage", "context_management", "models"}
)
"""Fields that may cost extra, depending on their values."""
_LOOKED_INTO = (
    REFERENCES | ANSWERS_FIELDS | NESTED | MODALITIES | PROVIDER_RUN | PROMPTS | GEMINI_CONTENTS | _PREDICTION
    | JUDGED | {"tools"}
)  # fmt: skip
"""All fields that can make a request more than messages with an output limit."""
PLAIN = (HARMLESS | LITELLM_FIELDS | MESSAGES | _OTHER_TEXT | OUTPUT_FIELDS) - _LOOKED_INTO
"""The fields of a plain request: messages with an output limit, and nothing else that costs extra."""
KNOWN = PLAIN | _LOOKED_INTO
KNOWN_BY_PROVIDERS = (KNOWN - LITELLM_FIELDS) | HARMLESS
"""The known fields of an object that is forwarded to the provider unchanged, such as `extra_body`."""
_WORDS = frozenset({
    "response_format", "responseFormat", "responseSchema", "response_schema", "responseJsonSchema",
    "response_json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    "json_schema", "grammar", "format", "output_format", "output_config", "text", "chat_template_kwargs",
    "chat_template_args", "tool_choice", "toolChoice", "toolConfig", "tool_config", "functions", "function_call",
})  # fmt: skip
"""Harmless fields with text that a provider may add to the prompt."""
COSTING = (_LOOKED_INTO | MESSAGES | _OTHER_TEXT | _WORDS) - {"service_tier"}
"""Fields in a deployment's parameters that can add to a request's cost."""
_COUNTED_APART = MESSAGES | PROMPTS | GEMINI_CONTENTS | NESTED | OUTPUT_FIELDS | {"tools"}
NOT_COUNTED = (
    (HARMLESS - _WORDS) | _COUNTED_APART | ANSWERS_FIELDS | MODALITIES | REFERENCES
    | {"service_tier", "speed", "background", "route"}
)  # fmt: skip
NOT_COUNTED_IN_BODY = (NOT_COUNTED | LITELLM_FIELDS) - _WORDS
"""All other fields count by their bytes, known or unknown, in any shape."""

GEMINI = ("agenerate_content", "agenerate_content_stream")


def holder_of(call_type: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object in which a route reads its output limit."""
    if call_type not in GEMINI:
        return body
    # LiteLLM reads `config`, else `generationConfig`.
    holder = body.get("generationConfig") if body.get("config") is None else body["config"]
    return holder if isinstance(holder, dict) else {}


def names_any(body: Mapping[str, Any], fields: Iterable[str]) -> bool:
    """Whether any of these fields reaches the provider with a value, from any place."""
    places = places_of(body)
    return any(place.get(field) for field in fields for place in places)


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
