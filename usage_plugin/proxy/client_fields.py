"""Client fields: the fields of a request that cost nothing extra, and those that change the call from the bounded one.

This is an allow-list. Three kinds of field are known:

- `HARMLESS` fields only shape the answer.
- `bounds` reads others.
- `LITELLM_FIELDS` are LiteLLM's own, and never reach a provider. Of these a client may send `CLIENT_MAY_SEND`. The
  others choose a provider, a credential, a price, a retry or a deployment.

An unknown field may mean anything to a provider, so `bounds` treats the request as unbounded.
`tests/proxy_parts/test_client_fields.py` compares the lists with LiteLLM's own tables, so that a new LiteLLM shows
which fields need a decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litellm.types.utils import all_litellm_params

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAMPLING = {
    "temperature", "top_p", "topP", "top_k", "topK", "top_a", "k", "p", "min_p", "typical_p", "tfs_z", "epsilon_cutoff",
    "eta_cutoff", "nsigma", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent",
    "smoothing_factor", "smoothing_curve", "temperature_last", "samplers", "mirostat", "mirostat_mode", "mirostat_tau",
    "mirostat_eta", "mirostat_lr", "mirostat_target", "presence_penalty", "presencePenalty", "frequency_penalty",
    "frequencyPenalty", "repetition_penalty", "repeat_penalty", "repeat_last_n", "penalty_last_n", "penalize_newline",
    "penalize_nl", "length_penalty", "no_repeat_ngram_size", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "dry_sequence_breakers", "seed", "random_seed", "do_sample", "logit_bias", "logprobs",
    "top_logprobs", "responseLogprobs", "prompt_logprobs", "allowed_token_ids", "bad_words", "safe_prompt",
    "prompt_mode",
}  # fmt: skip
_ENDS = {
    "stop", "stop_sequences", "stopSequences", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "min_tokens", "min_new_tokens", "early_stopping", "truncation", "truncate_prompt_tokens", "prompt_truncate_len",
    "context_length_exceeded_behavior", "skip_special_tokens", "spaces_between_special_tokens", "add_generation_prompt",
    "continue_final_message", "add_special_tokens", "detokenize", "return_token_ids", "return_tokens_as_token_ids",
    "return_full_text", "details", "decoder_input_details", "watermark", "echo", "raw",
}  # fmt: skip
_SHAPE = {
    "response_format", "responseFormat", "responseMimeType", "response_mime_type", "responseSchema", "response_schema",
    "responseJsonSchema", "response_json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_decoding_backend", "guided_whitespace_pattern", "structured_outputs", "json_schema", "grammar", "format",
    "output_format", "output_config", "text", "verbosity", "chat_template_kwargs", "chat_template_args", "tool_choice",
    "toolChoice", "toolConfig", "tool_config", "parallel_tool_calls", "functions", "function_call", "max_tool_calls",
    "disable_parallel_tool_use", "enable_json_schema_validation", "merge_reasoning_content_in_choices",
    "safetySettings", "safety_settings", "mediaResolution", "media_resolution", "audioTimestamp", "speechConfig",
    "speech_config", "imageConfig", "image_config",
}  # fmt: skip
_REASONING = {
    "reasoning", "reasoning_effort", "reasoningEffort", "reasoning_format", "reasoning_split", "reasoning_summary",
    "include_reasoning", "thinking", "thinking_budget", "enable_thinking", "thinkingConfig", "thinking_config", "think",
}  # fmt: skip
_IDS_AND_CACHES = {
    "user", "user_id", "metadata", "client_metadata", "requestMetadata", "labels", "store", "safety_identifier",
    "session_id", "chat_id", "message_id", "request_id", "trace_id", "name", "betas", "anthropic_beta",
    "anthropic_version", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_control",
    "prompt_cache_isolation_key", "cache_salt", "keep_alive", "include", "stream", "stream_options",
}  # fmt: skip
"""The caches that these fields request have prices of their own, which every worst case includes."""
_MEDIA = {
    "audio", "voice", "size", "quality", "style", "moderation", "output_compression", "partial_images",
    "input_fidelity", "mask", "image", "file", "language", "timestamp_granularities", "chunking_strategy", "dimensions",
    "encoding_format", "input_type", "truncate", "embedding_types", "task_type", "title", "auto_truncate", "normalize",
    "output_dimensionality", "outputDimensionality", "top_n", "return_documents", "max_chunks_per_doc",
    "max_tokens_per_doc", "rank_fields",
}  # fmt: skip
_CAMEL_CASE = {
    "promptCacheKey", "promptCacheRetention", "safetyIdentifier", "reasoningSummary", "textVerbosity",
    "parallelToolCalls", "maxToolCalls", "logitBias", "topLogprobs", "strictJsonSchema",
}  # fmt: skip
"""Options of Vercel's AI SDK, which sends them to OpenAI-compatible servers under these names, as OpenCode does."""
_OLLAMA = {
    "num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_gqa", "low_vram", "use_mmap", "numa",
}  # fmt: skip
_PERPLEXITY = {
    "search_domain_filter", "search_recency_filter", "search_after_date_filter", "search_before_date_filter",
    "last_updated_after_filter", "last_updated_before_filter",
}  # fmt: skip
"""Options that narrow the search that each of Perplexity's answers makes anyway."""

HARMLESS = frozenset(
    {"model"} | _SAMPLING | _ENDS | _SHAPE | _REASONING | _IDS_AND_CACHES | _MEDIA | _CAMEL_CASE | _OLLAMA | _PERPLEXITY
)  # fmt: skip
"""Fields that shape an answer within its output limit. Their text still counts as input."""

CLIENT_MAY_SEND = frozenset({
    "metadata", "litellm_metadata", "tags", "id", "litellm_trace_id", "litellm_session_id", "litellm_request_debug",
    "verbose", "no-log", "guardrails", "policies", "caching", "cache", "ttl", "cache_key", "preset_cache_key",
    "priority", "keepalive_seconds", "api_key", "api_version", "prompt_id", "prompt_variables", "prompt_version",
    "prompt_label", "prompt_environment", "merge_reasoning_content_in_choices", "enable_json_schema_validation",
    "mock_response", "mock_tool_calls", "mock_timeout", "mock_delay", "mock_testing_fallbacks",
    "mock_testing_context_fallbacks", "mock_testing_content_policy_fallbacks", "mock_testing_rate_limit_error",
    "disable_fallbacks", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "timeout",
    "request_timeout", "stream_timeout", "num_retries", "max_retries", "proxy_server_request", "secret_fields",
    "langfuse_prompt_version", "langsmith_sampling_rate", "user_api_key_hash", "litellm_call_id", "client_side_timeout",
    "organization", "turn_off_message_logging", "litellm_logging_obj", "standard_logging_object", "arize_config",
    "mcp_server_auth_headers", "applied_guardrails", "_litellm_strip_stream_usage",
})  # fmt: skip
"""LiteLLM's fields that a client may send.

They name or mark the request, ask for less, pay with the client's own key, or are included in the hold (fallbacks,
timeouts).
"""

_ROUTING = {
    "silent_model", "router_settings_override", "specific_deployment", "model_group_retry_policy", "retry_policy",
    "routing_strategy",
    "context_window_fallback_dict", "max_fallbacks", "include_fallback_errors", "include_fallback_models",
    "num_fallbacks", "passthrough_on_no_deployment", "original_function", "original_generic_function", "model_group",
    "user_config", "drop_params", "additional_drop_params", "allowed_openai_params", "base_url", "deployment_id",
    "organization", "default_headers", "extra_query", "litellm_params", "litellm_embedding_config",
    "custom_llm_provider", "api_type", "api_base", "region_name", "vertex_project", "vertex_location",
    "vertex_credentials", "vertex_ai_project", "vertex_ai_location", "vertex_ai_credentials", "http_client",
    "proxy_logging_obj", "logger_fn", "callbacks", "success_callback", "failure_callback", "input_callback",
    "service_callback", "model_alias_map", "disable_global_guardrails",
}  # fmt: skip
_HEADERS = frozenset({"headers", "extra_headers", "provider_specific_header"})
"""LiteLLM adds the connection's headers here too, so each header is judged by its name (`_has_priced`)."""

LITELLM_FIELDS = frozenset({*all_litellm_params} | CLIENT_MAY_SEND | _ROUTING | _HEADERS) - {"prompt_id"}
"""Fields that LiteLLM removes from a request: no provider gets them under this name."""

_NULL: tuple[Any, ...] = (None, "", (), [], {})
_UNSAID = (None, False)

CONTROLS = LITELLM_FIELDS - CLIENT_MAY_SEND - HARMLESS - _HEADERS
"""Fields that LiteLLM obeys, and that a client with a limit may not send."""

_LOOKED_AT = CONTROLS | _HEADERS
NEEDS_CHECK = _LOOKED_AT | {
    "extra_body", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "num_retries", "max_retries",
}  # fmt: skip
"""A body without any of these has nothing to reject or to remove."""

_PRICED_HEADERS = ("x-vertex-ai-", "x-amzn-bedrock-")
"""Prefixes of headers that choose a service tier at Vertex AI and at Bedrock."""

STREAM_FIELDS = frozenset({"stream", "stream_options"})
"""In `extra_body` they change how the provider answers, after LiteLLM has decided how to read the answer."""


def controls_of(body: Mapping[str, Any]) -> list[str]:
    """Return LiteLLM's controls in a body that the client itself sent."""
    if body.keys().isdisjoint(_LOOKED_AT):
        return []
    found = body.keys() & _LOOKED_AT
    sent = _sent_by_client(body)
    # An empty text may change the call, too: an empty `deployment_id` calls another model.
    controls = [name for name in found - _HEADERS if body[name] not in _UNSAID and name in sent]
    return sorted([*controls, *[name for name in found & _HEADERS if _has_priced(body[name])]])


def controls_in_extra_body(extra: Mapping[str, Any]) -> list[str]:
    """Return the forbidden fields of `extra_body`: LiteLLM's controls, the stream and another model."""
    forbidden = extra.keys() & (CONTROLS | STREAM_FIELDS | {"model", "extra_body"})
    return sorted(name for name in forbidden if extra[name] not in _UNSAID or name in STREAM_FIELDS)


def _has_priced(headers: object) -> bool:
    """Whether any header for the provider, in any shape, decides how it serves or bills."""
    if isinstance(headers, list | tuple):
        return any(map(_has_priced, headers))
    if not isinstance(headers, dict):
        return headers not in _NULL
    inner = headers.get("extra_headers")
    if isinstance(inner, dict | list):
        return _has_priced(inner)
    return any(str(name).lower().startswith(_PRICED_HEADERS) for name in headers)


def _sent_by_client(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body as it arrived, without the fields that LiteLLM and the operator's keys add for hooks."""
    request = body.get("proxy_server_request")
    sent = request.get("body") if isinstance(request, dict) else None
    return sent if isinstance(sent, dict) else body
