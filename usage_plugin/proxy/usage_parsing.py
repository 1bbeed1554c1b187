"""Usage parsing: read a finished request's usage and its deployment from LiteLLM's objects.

Any field of theirs may be missing. `usage_plugin.pricing` turns the usage into quantities, and `proxy.charges` decides
the cost.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from usage_plugin.domain.prices import NO_TOOL_CALLS, NO_UNITS, ToolCalls, Units
from usage_plugin.pricing.usage import (
    count,
    field,
    fields_of,
    grounding_calls,
    is_counted,
    mapping,
    milliseconds,
    tier_of,
    tier_of_traffic,
)
from usage_plugin.proxy.litellm_metadata import metadata_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.proxy.streams import Report

NO_ANSWER: Mapping[str, Any] = MappingProxyType({})
_HIDDEN = "_hidden_params"


class Served(NamedTuple):
    """LiteLLM's report on the deployment that served a request, and the answer's own report.

    Attributes:
        model: The model group that was billed.
        deployment_id: The id of the deployment, which decides the price.
        litellm_cost: LiteLLM's figure in USD, if it has one.
        answered: The provider's model, as named in the answer.
        service: The service tier, as named in the answer; None in a stream of Anthropic's messages.
        units: Counts of units that may be billed by the piece.
        tools: The tools that the provider ran, as far as the answer shows them.
    """

    model: str | None
    deployment_id: str | None
    provider: str | None
    served_model: str | None
    litellm_cost: object
    cache_hit: bool
    answered: str | None = None
    service: str | None = None
    units: Units = NO_UNITS
    tools: ToolCalls = NO_TOOL_CALLS


NOTHING_SERVED = Served(None, None, None, None, None, cache_hit=False)
"""Stands for LiteLLM's report on an answer that it never logs."""


def read_answer(data: Mapping[str, Any], answer: Any) -> tuple[Served, Mapping[str, Any]]:  # any of LiteLLM's answers
    """Read the report and the usage of a whole answer, its original first; the usage is empty if it has none."""
    raw = _raw_answer(data)
    return served_inline(data, answer, raw), (inline_usage(raw) if raw else {}) or inline_usage(answer)


def _raw_answer(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a provider's original answer, where LiteLLM keeps it: LiteLLM's own form of it loses fields.

    Empty for providers whose answers LiteLLM forwards with all fields, and where there is no JSON.
    """
    logged = getattr(data.get("litellm_logging_obj"), "model_call_details", None) or {}
    text = logged.get("original_response")
    if logged.get("custom_llm_provider") in _HANDED_ON or not isinstance(text, str) or not text.startswith("{"):
        return {}
    try:
        found: Mapping[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found


_HANDED_ON = frozenset({"openai", "azure", "text-completion-openai"})


def served_inline(
    data: Mapping[str, Any],
    response: Any,  # any of LiteLLM's answers
    raw: Mapping[str, Any] = NO_ANSWER,
) -> Served:
    """Read the report while the answer is being sent to the client; `raw` is the original answer."""
    fields, hidden = fields_of(response), _hidden(response)
    logged = getattr(data.get("litellm_logging_obj"), "model_call_details", None) or {}
    metadata = _routing_metadata(logged.get("litellm_params") or {}, data)
    tools = tools_in(fields)
    return Served(
        model=_text(metadata.get("model_group")),
        deployment_id=_text(hidden.get("model_id")) or _text((metadata.get("model_info") or {}).get("id")),
        provider=_text(logged.get("custom_llm_provider")),
        served_model=_text(metadata.get("deployment")),
        litellm_cost=hidden.get("response_cost"),
        cache_hit=hidden.get("cache_hit") is True,
        answered=_text(raw.get("model")) or _answered(fields, hidden),
        service=(tier_of(raw) if raw else None) or _service(fields, hidden),
        units=_units(fields, hidden, data),
        tools=larger_counts(tools, tools_in(raw)) if raw else tools,
    )


def served_logged(kwargs: Mapping[str, Any], response: Any = None) -> Served:  # any of LiteLLM's answers
    """Read the report from the arguments of a success or failure callback, `response` included."""
    logged = kwargs.get("standard_logging_object") or {}
    metadata = _routing_metadata(kwargs.get("litellm_params") or {}, {})
    fields, hidden = fields_of(response), _hidden(response)
    return Served(
        model=_text(logged.get("model_group")) or _text(metadata.get("model_group")),
        deployment_id=_text(logged.get("model_id")) or _text((metadata.get("model_info") or {}).get("id")),
        provider=_text(logged.get("custom_llm_provider")),
        served_model=_text(metadata.get("deployment")) or _text(logged.get("model")),
        litellm_cost=logged.get("response_cost"),
        cache_hit=logged.get("cache_hit") is True,
        answered=_answered(fields, hidden),
        service=_service(fields, hidden),
        units=_units(fields, hidden, kwargs),
        tools=tools_in(fields),
    )


def served_streamed(served: Served, report: Report) -> Served:
    """Add the report of a stream's frames."""
    return served._replace(
        answered=report.model or served.answered,
        service=report.service or served.service,
        tools=larger_counts(served.tools, report.tools),
    )


def inline_usage(response: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers, or a provider's
    """Return the usage of an answer in any form; empty if it has none."""
    found = mapping(field(response, "usage")) or mapping(field(response, "usageMetadata"))
    if is_counted(found):
        return found
    # Reranking reports its usage in `meta`.
    meta = mapping(field(response, "meta"))
    return meta if any(map(mapping, meta.values())) else {}


def logged_usage(kwargs: Mapping[str, Any], response: Any = None) -> Mapping[str, Any]:  # any of LiteLLM's answers
    """Return the usage from a callback's arguments, the answer's own first; empty if there is none."""
    own = inline_usage(field(response, "response") or response) if response is not None else {}
    if own:
        return own
    logged = kwargs.get("standard_logging_object") or {}
    usage = mapping((logged.get("metadata") or {}).get("usage_object"))
    return usage or {key: logged.get(key) for key in ("prompt_tokens", "completion_tokens")}


def larger_counts(one: ToolCalls, other: ToolCalls) -> ToolCalls:
    """Return the larger count of each tool: usage and answer report the same calls."""
    if other is NO_TOOL_CALLS:
        return one
    if one is NO_TOOL_CALLS:
        return other
    return ToolCalls._make(map(max, one, other))


def _answered(fields: Mapping[str, Any], hidden: Mapping[str, Any]) -> str | None:
    """Return the provider's model from an answer: only later does LiteLLM replace it with the name the client used."""
    return (
        _text(hidden.get("provider_response_model")) or _text(fields.get("model")) or _text(fields.get("modelVersion"))
    )


def _service(fields: Mapping[str, Any], hidden: Mapping[str, Any]) -> str | None:
    """Return the service tier that an answer reports."""
    told = tier_of(fields)
    if told is not None or not hidden:
        return told
    return tier_of_traffic(mapping(hidden.get("provider_specific_fields")).get("traffic_type"))


def _units(fields: Mapping[str, Any], hidden: Mapping[str, Any], request: Mapping[str, Any]) -> Units:
    """Count units that may be billed by the piece: images and queries answered, characters to speak, audio time."""
    images, spoken, meta = fields.get("data"), request.get("input"), fields.get("meta")
    # LiteLLM measures the audio file where the answer does not report its duration.
    heard = hidden.get("audio_transcription_duration")
    if images is spoken is meta is heard is None:
        return NO_UNITS
    billed = mapping(mapping(meta).get("billed_units"))
    return Units(
        images=len(images) if isinstance(images, list) else 0,
        characters=len(spoken) if isinstance(spoken, str) else 0,
        queries=count(billed, "search_units"),
        milliseconds=milliseconds(heard),
    )


def tools_in(fields: Mapping[str, Any]) -> ToolCalls:
    """Count the tools that a provider ran, where its answer shows them and its usage does not."""
    output = fields.get("output")
    if isinstance(output, list):
        return _in_items(fields, output)
    choices = fields.get("choices")
    if isinstance(choices, list):
        return _CITED if any(map(_cites_the_web, choices)) else NO_TOOL_CALLS
    candidates = fields.get("candidates")
    return grounding_calls(candidates) if isinstance(candidates, list) else NO_TOOL_CALLS


_CITED = ToolCalls(searches=1)
"""A chat answer with citations has searched at least once; the number of searches is not reported."""


def _in_items(fields: Mapping[str, Any], output: list[Any]) -> ToolCalls:
    kinds = [field(item, "type") for item in output]
    if _SERVER_RUN.isdisjoint(kinds):
        return NO_TOOL_CALLS
    told = mapping(mapping(fields.get("tool_usage")).get("web_search"))
    containers = {field(item, "container_id") for item in output if field(item, "type") == "code_interpreter_call"}
    return ToolCalls(
        searches=count(told, "num_requests") if "num_requests" in told else kinds.count("web_search_call"),
        file_searches=kinds.count("file_search_call"),
        code_sessions=len(containers),
    )


_SERVER_RUN = frozenset({"web_search_call", "file_search_call", "code_interpreter_call"})


def _cites_the_web(choice: Any) -> bool:  # any of LiteLLM's answers
    notes = field(field(choice, "message") or field(choice, "delta"), "annotations")
    return isinstance(notes, list) and any(field(note, "type") == "url_citation" for note in notes)


def _routing_metadata(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata with the router's model group; its place differs by route."""
    for holder in (parameters, data):
        for metadata in metadata_in(holder):
            if metadata.get("model_group"):
                return metadata
    return {}


def _hidden(response: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers
    if isinstance(response, dict):
        return mapping(response.get(_HIDDEN))
    # Read pydantic's storage directly: access to a private attribute takes as long as everything else here.
    private = getattr(response, "__pydantic_private__", None)
    if private and _HIDDEN in private:
        return mapping(private[_HIDDEN])
    return mapping(getattr(response, _HIDDEN, None))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
