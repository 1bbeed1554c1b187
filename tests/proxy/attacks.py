"""Fields that a hostile client can put into a request: every field known to LiteLLM or a provider, with false values.

The names are collected from the installed LiteLLM, so that the new fields of a new version are included.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

LONG = "long " * 2_000
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
DEAR = "dear"

GENERAL: Sequence[Any] = (
    None, True, False, 0, 1, -1, 7, 20_000, "20000", 2.5, "x", "", [], {}, ["x"], {"a": 1}, LONG, [{"text": LONG}],
    {"text": LONG}, {"max_tokens": 20_000, "maxOutputTokens": 20_000}, DEAR, [DEAR], "priority", "fallback",
)  # fmt: skip

SPECIAL: dict[str, Sequence[Any]] = {
    "models": ([DEAR], ["openai/o1-pro"], "openai/o1-pro", {"a": DEAR}, ["no/such-model"]),
    "fallbacks": ([DEAR], [{"gpt": [DEAR]}], [{"model": DEAR, "max_tokens": 20_000}], [{"broken": [{"model": DEAR, "max_tokens": 20_000}]}]),
    "context_window_fallbacks": ([{"broken": [DEAR]}],),
    "content_policy_fallbacks": ([{"broken": [DEAR]}],),
    "router_settings_override": (
        {"fallbacks": [{"broken": [{"model": DEAR, "max_tokens": 20_000}]}]}, {"num_retries": 3}, {"model_group_alias": {"gpt": DEAR}},
    ),
    "extra_body": (
        {"stream": True}, {"model": DEAR}, {"max_tokens": None}, {"n": 4}, {"stream_options": {"include_usage": False}},
        {"tools": {"functionDeclarations": [{"name": "f", "description": LONG}]}}, {"models": [DEAR]}, "x", [1],
        {"messages": [{"role": "user", "content": LONG}]}, {"generationConfig": {"maxOutputTokens": 20_000}},
        {"options": {"num_predict": 20_000}}, {"inferenceConfig": {"maxTokens": 20_000}},
        {"max_completion_tokens": 20_000}, {"max_tokens": 1}, {"max_output_tokens": 1}, {"extra_body": {"max_tokens": 20_000}},
    ),
    "stream_options": ({"include_usage": False}, {"include_usage": 0}, {}, [], "x"),
    "stream": (True, False, 1, "true", None),
    "n": (3, "3", 0, None, 1.0, [2]),
    "best_of": (3, "3"),
    "candidateCount": (3,),
    "candidate_count": (3,),
    "tools": (
        {"functionDeclarations": [{"name": "f", "description": LONG}]}, [{"googleSearch": {}}], {"googleSearch": {}},
        [{"type": "function", "function": {"name": "f", "description": LONG, "parameters": {"type": "object"}}}],
        [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}], "web_search",
        [{"type": "function", "function": {"name": "f"}, "googleSearch": {}}],
    ),
    "messages": ([{"role": "user", "content": [{"type": "text", "text": LONG}]}], [{"role": "user", "content": [PICTURE]}], {"role": "user", "content": LONG}),
    "system": (LONG, [{"type": "text", "text": LONG}], {"text": LONG}),
    "response_format": ({"type": "json_schema", "json_schema": {"name": LONG, "schema": {"type": "object"}}},),
    "service_tier": ("priority", "flex", "auto", "scale", ["priority"], {"a": 1}),
    "thinking": ({"type": "enabled", "budget_tokens": 5_000}, {"type": "enabled", "budget_tokens": 100_000}),
    "reasoning_effort": ("high", "low", "none"),
    "reasoning": ({"effort": "high"}, {"max_tokens": 20_000}),
    "web_search_options": ({}, {"search_context_size": "high"}),
    "plugins": ([{"id": "web"}],),
    "provider": ({"order": ["a"]},),
    "preset": ("x",),
    "prompt": (["x"] * 5, "x", {"id": "p"}, [1, 2, 3], [[1], [2]]),
    "suffix": (LONG,),
    "prediction": ({"type": "content", "content": LONG},),
    "additional_drop_params": (["max_tokens"], ["max_completion_tokens", "max_tokens", "max_output_tokens"]),
    "allowed_openai_params": (["n", "tools"],),
    "drop_params": (True,),
    "mock_testing_fallbacks": (True,),
    "num_retries": (5,),
    "max_retries": (5,),
    "timeout": (30,),
    "extra_headers": ({"X-Vertex-AI-LLM-Shared-Request-Type": "priority"},),
    "custom_llm_provider": ("anthropic", "openai"),
    "context_management": ({"edits": [{"type": "compact_20260112"}]},),
    "background": (True,),
    "generationConfig": ({"maxOutputTokens": 20_000}, {"max_output_tokens": 20_000}, {"maxOutputTokens": 5, "candidateCount": 4}, {"responseSchema": {"type": LONG}}, "x"),
    "config": ({"maxOutputTokens": 5}, {"maxOutputTokens": 20_000}, {}),
    "options": ({"num_predict": 20_000},),
    "max_tokens": (5, 20_000, None, "x", 0, -1, True, 10**30, [5], {"a": 5}),
    "max_completion_tokens": (5, 20_000, None, "x", -1),
    "max_output_tokens": (5, 20_000, None, "x", -1),
    "metadata": ({"model_group": DEAR}, {"tags": ["x"]}, {"fallbacks": [DEAR]}, {"model_info": {"id": "x"}}, '{"fallbacks": ["dear"]}'),
    "litellm_metadata": ({"model_group": DEAR}, {"fallbacks": [DEAR]}),
}  # fmt: skip

MORE_NAMES = (
    "route", "transforms", "usage", "search_parameters", "inference_geo", "speed", "mcp_servers", "container", "chat_template",
    "routingConfig", "modelSelectionConfig", "cachedContent", "previous_response_id", "conversation", "n_predict",
    "num_predict", "max_new_tokens", "maxOutputTokens", "maxTokens", "max_gen_len", "max_length", "max_tokens_to_sample",
    "inferenceConfig", "additionalModelRequestFields", "performanceConfig", "serviceTier", "parameters", "generation_config",
    "systemInstruction", "system_instruction", "contents", "input", "instructions", "input_audio", "file_id", "specific_deployment",
    "router", "model_group", "deployment", "deployment_id", "priority", "guided_json", "chat_template_kwargs", "documents",
)  # fmt: skip

_PLACES = ("", "", "", "extra_body", "extra_body", "generationConfig", "config", "options", "parameters", "metadata")


def names() -> list[str]:
    """Return every field that the installed LiteLLM knows, its own and the providers'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm  # noqa: PLC0415
        from litellm.constants import OPENAI_CHAT_COMPLETION_PARAMS  # noqa: PLC0415
        from litellm.types.llms.anthropic import AnthropicMessagesRequest  # noqa: PLC0415
        from litellm.types.llms.openai import ResponsesAPIRequestParams  # noqa: PLC0415
        from litellm.types.router import CustomPricingLiteLLMParams  # noqa: PLC0415
        from litellm.types.utils import StandardCallbackDynamicParams, all_litellm_params  # noqa: PLC0415

        found = {*MORE_NAMES, *SPECIAL, *OPENAI_CHAT_COMPLETION_PARAMS}
        found |= {*ResponsesAPIRequestParams.__annotations__, *AnthropicMessagesRequest.__annotations__}
        # LiteLLM itself refuses or drops these two families, which have hundreds of fields.
        uninteresting = {*CustomPricingLiteLLMParams.model_fields, *StandardCallbackDynamicParams.__annotations__}
        found |= {*all_litellm_params} - uninteresting
        for provider in litellm.provider_list:
            for kind in ("chat_completion", "responses"):
                try:
                    supported = litellm.get_supported_openai_params(
                        model="m", custom_llm_provider=getattr(provider, "value", provider), request_type=kind
                    )
                except Exception:  # noqa: BLE001  # some ask for credentials
                    continue
                found |= {*(supported or ())}
        for name in {*dir(litellm), *_configs_not_yet_loaded()}:
            config = getattr(litellm, name, None) if name.endswith("Config") else None
            if inspect.isclass(config) and "Router" not in name:
                found |= {*inspect.signature(config.__init__).parameters} - {"self", "args", "kwargs"}
    return sorted(name for name in found if isinstance(name, str) and name not in ("model", "user", "api_base"))


def _configs_not_yet_loaded() -> Iterable[str]:
    """Return LiteLLM's lazily imported classes; without them the names would depend on the code that ran before."""
    try:
        from litellm._lazy_imports_registry import LLM_CONFIG_NAMES  # noqa: PLC0415
    except ImportError:  # older versions import them at once
        return ()
    return LLM_CONFIG_NAMES


def drawn(random: random.Random, known: Sequence[str], most: int) -> list[tuple[str, str, Any]]:
    """Draw between one and `most` fields, each with its place in the body and a value."""
    return [
        attack(random, random.choice(known if random.random() < 0.5 else [*SPECIAL]))
        for _ in range(random.randint(1, most))
    ]


def attack(random: random.Random, name: str) -> tuple[str, str, Any]:
    """Draw a place and a value for a field."""
    values = [*SPECIAL[name]] * 3 if name in SPECIAL else []
    return random.choice(_PLACES), name, random.choice([*values, *GENERAL])


def laid_over(body: dict[str, Any], attacks: Sequence[tuple[str, str, Any]]) -> dict[str, Any]:
    """Return the body with the attacks added."""
    body = dict(body)
    for place, name, value in attacks:
        if not place:
            body[name] = value
        else:
            holder = body.get(place)
            body[place] = {**(holder if isinstance(holder, dict) else {}), name: value}
    return body
