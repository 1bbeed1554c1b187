"""Which fields a client may send: what ordinary clients send passes, LiteLLM's own tables are known, controls are not."""

from __future__ import annotations

import pytest

HI = [{"role": "user", "content": "hi"}]
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}

SHAPES = {
    "openai, every option": ("acompletion", {
        "messages": HI, "max_completion_tokens": 10, "temperature": 1, "top_p": 1, "n": 1, "stop": ["x"], "seed": 1,
        "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {"1": 1}, "logprobs": True, "top_logprobs": 2, "user": "u",
        "store": False, "metadata": {"a": "b"}, "tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": True,
        "response_format": {"type": "json_object"}, "reasoning_effort": "low", "verbosity": "low", "service_tier": "auto",
        "prompt_cache_key": "k", "safety_identifier": "s", "stream": True, "stream_options": {"include_usage": True},
    }),
    "anthropic": ("anthropic_messages", {
        "messages": HI, "max_tokens": 10, "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "u"}, "stop_sequences": ["x"], "top_k": 5, "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        "betas": ["context-1m-2025-08-07"], "output_config": {"effort": "low"},
    }),
    "Claude Code": ("anthropic_messages", {
        "messages": HI, "max_tokens": 32_000, "system": [{"type": "text", "text": "You are Claude Code"}], "stream": True,
        "metadata": {"user_id": '{"device_id": "d", "session_id": "s"}'}, "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, "temperature": 1,
        "tools": [{"name": "Bash", "description": "d", "input_schema": {"type": "object"}, "eager_input_streaming": True}],
    }),
    "Claude with tools that Anthropic describes": ("anthropic_messages", {
        "messages": HI, "max_tokens": 10, "tools": [
            {"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
            {"type": "computer_20250124", "name": "computer", "display_width_px": 1024, "display_height_px": 768},
        ],
    }),
    "OpenWebUI": ("acompletion", {"messages": HI, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5, "chat_id": "c", "session_id": "s"}),
    "LibreChat": ("acompletion", {"messages": HI, "stream": True, "user": "u", "frequency_penalty": 0, "max_tokens": 5, "top_p": 1}),
    "Cline and Roo": ("acompletion", {"messages": HI, "stream": True, "max_completion_tokens": 5, "reasoning_effort": "medium", "stream_options": {"include_usage": True}, "temperature": 0}),
    "Roo through a router": ("acompletion", {"messages": HI, "max_tokens": 5, "transforms": ["middle-out"], "include_reasoning": True, "reasoning": {"effort": "high"}, "usage": {"include": True}}),
    "aider": ("acompletion", {"messages": HI, "max_tokens": 5, "temperature": 0, "stream": True}),
    "n8n": ("acompletion", {"messages": HI, "max_tokens": -1, "n": 1, "presence_penalty": 0, "timeout": 60_000}),
    "Continue, fill in the middle": ("atext_completion", {"prompt": "a", "suffix": "b", "max_tokens": 5, "stop": ["\n"], "stream": True}),
    "Vercel's AI SDK": ("acompletion", {"messages": HI, "max_tokens": 5, "response_format": {"type": "json_schema", "json_schema": {"name": "r", "schema": {}}}, "tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
    "Codex": ("aresponses", {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "instructions": "i",
        "tools": [{"type": "function", "name": "shell", "strict": False, "parameters": {}}, {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}, {"type": "local_shell"}],
        "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"}, "store": False,
        "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "text": {"verbosity": "low"},
        "client_metadata": {"a": "b"}, "max_output_tokens": 5,
    }),
    "Agents SDK": ("aresponses", {"input": "hi", "truncation": "auto", "top_logprobs": 1, "max_tool_calls": 3, "max_output_tokens": 5, "metadata": {}, "safety_identifier": "s"}),
    "Cursor": ("acompletion", {"messages": HI, "max_tokens": 5, "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}], "include": [], "prompt_cache_retention": "24h", "user": "u"}),
    "Gemini CLI": ("agenerate_content", {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}], "systemInstruction": {"parts": [{"text": "s"}]},
        "generationConfig": {"temperature": 0, "topP": 1, "topK": 64, "maxOutputTokens": 5, "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 10}, "responseMimeType": "application/json", "responseSchema": {}},
        "tools": [{"functionDeclarations": [{"name": "f"}]}], "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
        "safetySettings": [{"category": "c", "threshold": "t"}], "labels": {"a": "b"},
    }),
    "LangChain": ("acompletion", {"messages": HI, "max_tokens": 5, "n": 1, "stop": None, "logprobs": None, "seed": None, "stream": False, "service_tier": None}),
    "pydantic-ai": ("acompletion", {"messages": HI, "max_completion_tokens": 5, "tools": [FUNCTION], "tool_choice": "required", "stream": True, "stream_options": {"include_usage": True}, "prediction": None}),
    "vLLM's own options": ("acompletion", {
        "messages": HI, "max_tokens": 5, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "guided_json": {}, "min_tokens": 1,
        "chat_template_kwargs": {"enable_thinking": False}, "skip_special_tokens": True, "ignore_eos": False,
        "extra_body": {"top_k": 5, "guided_json": {"type": "object"}, "chat_template_kwargs": {"thinking": True}, "max_tokens": 5},
    }),
    "Ollama's own options": ("acompletion", {"messages": HI, "max_tokens": 5, "keep_alive": "5m", "options": {"num_ctx": 4096, "num_predict": 5, "mirostat": 1, "top_k": 1}, "think": False, "format": "json"}),
    "LiteLLM's own": ("acompletion", {"messages": HI, "max_tokens": 5, "metadata": {"tags": ["a"]}, "cache": {"no-cache": True}, "guardrails": ["g"], "litellm_session_id": "s", "fallbacks": ["other"], "mock_response": "x"}),
}  # fmt: skip


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize(("kind", "body"), SHAPES.values(), ids=SHAPES.keys())
def test_what_ordinary_clients_send_is_bounded_and_no_control(kind, body):
    """No field of a real client makes its request unbounded, or is refused."""
    from usage_plugin.proxy import bounds, client_fields  # noqa: PLC0415  # imports LiteLLM

    sent = {"model": "m", **body}
    found = bounds.read(kind, sent)
    assert found.unknown == ()
    assert found.output_is_bounded
    assert found.input_tokens is not None
    assert client_fields.controls_of(sent) == []
    assert client_fields.controls_in_extra_body(sent.get("extra_body") or {}) == []


UNDECIDED = {
    "container": "holds what an earlier request left, which the provider reads and bills",
    "compaction": "a summary is output of its own",
    "safeguards": "not documented",
    "include_server_side_tool_invocations": "a tool that the provider runs",
}
"""What LiteLLM's tables have and we call unbounded, each with the reason."""


@pytest.mark.usefixtures("litellm")
def test_every_field_of_litellms_tables_is_known():
    """A field that a new LiteLLM brings is harmless, bounded, a control, or in the list of those with a reason."""
    from litellm import constants  # noqa: PLC0415
    from litellm.types.llms.anthropic import AnthropicMessagesRequest  # noqa: PLC0415
    from litellm.types.llms.openai import ResponsesAPIRequestParams  # noqa: PLC0415

    from usage_plugin.proxy import bounds  # noqa: PLC0415

    tables = {
        *constants.OPENAI_CHAT_COMPLETION_PARAMS,
        *constants.OPENAI_TRANSCRIPTION_PARAMS,
        *constants.OPENAI_EMBEDDING_PARAMS,
    }
    tables |= {*ResponsesAPIRequestParams.__annotations__, *AnthropicMessagesRequest.__annotations__}
    unknown = {name for name in tables if bounds.read("acompletion", {"messages": HI, name: {"x": 1}}).unknown}
    assert unknown - UNDECIDED.keys() == set()


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize(
    ("body", "controls"),
    [
        ({"router_settings_override": {"a": 1}}, ["router_settings_override"]),
        ({"custom_llm_provider": "x", "api_base": "y"}, ["api_base", "custom_llm_provider"]),
        ({"drop_params": True, "num_retries": 3, "timeout": 1}, ["drop_params"]),
        ({"extra_headers": {"X-Vertex-AI-LLM-Request-Type": "shared"}}, ["extra_headers"]),
        ({"extra_headers": {"anthropic-beta": "x"}}, []),
        ({"provider_specific_header": [{"extra_headers": {"X-Amzn-Bedrock-Service-Tier": "priority"}}]}, ["provider_specific_header"]),
        ({"provider_specific_header": {"custom_llm_provider": "anthropic", "extra_headers": {"anthropic-beta": "x"}}}, []),
        ({"specific_deployment": None, "silent_model": "x"}, ["silent_model"]),
        ({"drop_params": False}, []),
        ({"litellm_params": {}, "deployment_id": ""}, ["deployment_id", "litellm_params"]),
    ],
    ids=str,
)  # fmt: skip
def test_controls_are_found(body, controls):
    """What leads LiteLLM to another call is named, unless it says nothing."""
    from usage_plugin.proxy.client_fields import controls_of  # noqa: PLC0415

    assert controls_of({"messages": HI, **body}) == controls


@pytest.mark.usefixtures("litellm")
def test_what_the_operator_adds_is_no_clients_control():
    """LiteLLM puts a key's own router settings into the body that hooks get; the body as it came does not have them."""
    from usage_plugin.proxy.client_fields import controls_of  # noqa: PLC0415

    override = {"router_settings_override": {"num_retries": 1}}
    assert controls_of({**override, "proxy_server_request": {"body": {"messages": HI}}}) == []
    assert controls_of({**override, "proxy_server_request": {"body": {"messages": HI, **override}}}) != []


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize(
    "body",
    [
        {"preset": "x"}, {"nobody_knows": 0}, {"provider": {"order": ["a"]}}, {"transforms": ["other"]}, {"usage": {"include": False}},
        {"extra_body": {"preset": "x"}}, {"extra_body": {"guardrails": ["x"]}}, {"generationConfig": {"routingConfig": {}}}, {"models": "x"},
        {"generationConfig": "x"}, {"context_management": [{"type": "compaction"}]}, {"tools": {"googleSearch": {}}}, {"tools": "web_search"},
        {"chat_template": "{% for i in range(100000) %}x{% endfor %}"},
    ],
    ids=str,
)  # fmt: skip
def test_what_nobody_knows_bounds_nothing(body):
    """A field of unknown meaning, in whatever place, or a known one with an unknown value makes a request unbounded."""
    from usage_plugin.proxy import bounds  # noqa: PLC0415

    assert not bounds.read("acompletion", {"messages": HI, "max_tokens": 5, **body}).output_is_bounded


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize(
    "field",
    ["tools", "functions", "response_format", "guided_json", "chat_template_kwargs", "tool_choice", "system", "instructions", "output_config"],
)  # fmt: skip
@pytest.mark.parametrize("shape", ["{}", "[{}]", '{{"functionDeclarations": [{{"description": {}}}]}}', "[[{}]]"])
def test_words_count_in_whatever_shape_and_place(field, shape):
    """What a provider may read as a part of the prompt counts by its bytes, also as an object, a list or a text."""
    import json  # noqa: PLC0415

    from usage_plugin.proxy import bounds  # noqa: PLC0415

    long = "x" * 10_000
    value = json.loads(shape.format(json.dumps(long)))
    for body in ({field: value}, {"extra_body": {field: value}}):
        found = bounds.read("acompletion", {"messages": HI, "max_tokens": 5, **body})
        assert found.input_tokens is None or found.input_tokens >= len(long)
