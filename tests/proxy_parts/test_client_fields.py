"""The fields that a client may send: ordinary ones pass, those of LiteLLM's tables are known, controls are detected."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

HI = [{"role": "user", "content": "hi"}]

SHAPES = yaml.safe_load((Path(__file__).parents[1] / "proxy" / "client_shapes.yaml").read_text())["shapes"]
KINDS = {
    "/v1/chat/completions": "acompletion", "/v1/responses": "aresponses", "/v1/messages": "anthropic_messages",
    "/v1/completions": "atext_completion", "/v1beta/models/MODEL:generateContent": "agenerate_content",
    "/v1beta/models/MODEL:streamGenerateContent": "agenerate_content_stream",
}  # fmt: skip


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_what_ordinary_clients_send_is_bounded_and_no_control(shape):
    """No field of a real client makes its request unbounded, or is refused."""
    from usage_plugin.proxy import bounds, client_fields  # noqa: PLC0415  # imports LiteLLM

    sent = {"model": "m", **shape["body"]}
    found = bounds.read(KINDS[shape["route"].partition("?")[0]], sent)
    assert found.unknown == ()
    assert found.output_is_bounded
    assert (found.input_tokens is None) == shape.get("unbounded_input", False)
    assert client_fields.controls_of(sent) == []
    assert client_fields.controls_in_extra_body(sent.get("extra_body") or {}) == []


UNDECIDED = {
    "container": "holds what an earlier request left, which the provider reads and bills",
    "compaction": "a summary is output of its own",
    "safeguards": "not documented",
    "include_server_side_tool_invocations": "a tool that the provider runs",
}
"""Fields of LiteLLM's tables that the plugin treats as unbounded, each with the reason."""


@pytest.mark.usefixtures("litellm")
def test_every_field_of_litellms_tables_is_known():
    """Each field of a new LiteLLM is harmless, bounded, a control, or in the list of those with a reason."""
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
    """A field that leads LiteLLM to another call is named, unless its value has no effect."""
    from usage_plugin.proxy.client_fields import controls_of  # noqa: PLC0415

    assert controls_of({"messages": HI, **body}) == controls


@pytest.mark.usefixtures("litellm")
def test_what_the_operator_adds_is_no_clients_control():
    """LiteLLM adds a key's router settings to the body that hooks get; the body as received does not have them."""
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
        {"serviceTier": "x"}, {"extra_body": {"previousResponseId": "x"}}, {"chat_template": "{% for i in range(100000) %}x{% endfor %}"},
    ],
    ids=str,
)  # fmt: skip
def test_what_nobody_knows_bounds_nothing(body):
    """An unknown field in any place, or a known one with an unknown value, makes a request unbounded."""
    from usage_plugin.proxy import bounds  # noqa: PLC0415

    assert not bounds.read("acompletion", {"messages": HI, "max_tokens": 5, **body}).output_is_bounded


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize(
    "field",
    ["tools", "functions", "response_format", "guided_json", "chat_template_kwargs", "tool_choice", "system", "instructions", "output_config"],
)  # fmt: skip
@pytest.mark.parametrize("shape", ["{}", "[{}]", '{{"functionDeclarations": [{{"description": {}}}]}}', "[[{}]]"])
def test_words_count_in_whatever_shape_and_place(field, shape):
    """Text that a provider may read as part of the prompt counts by its bytes, also within an object or a list."""
    import json  # noqa: PLC0415

    from usage_plugin.proxy import bounds  # noqa: PLC0415

    long = "x" * 10_000
    value = json.loads(shape.format(json.dumps(long)))
    for body in ({field: value}, {"extra_body": {field: value}}):
        found = bounds.read("acompletion", {"messages": HI, "max_tokens": 5, **body})
        assert found.input_tokens is None or found.input_tokens >= len(long)


FUNCTION = {"type": "function", "name": "f", "description": "d" * 1000, "parameters": {}}


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize(
    ("tool", "is_bounded"),
    [
        ({"type": "apply_patch"}, True),
        ({"type": "apply_patch", "environment": {"type": "container_auto"}}, False),
        ({"type": "shell"}, False),
        ({"type": "tool_search", "execution": "client", "description": "d", "parameters": {}}, True),
        ({"type": "tool_search", "execution": "server"}, False),
        ({"type": "tool_search"}, False),
        ({"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION, {"type": "custom", "name": "c"}]}, True),
        ({"type": "namespace", "name": "n", "tools": [FUNCTION, {"type": "web_search"}]}, False),
        ({"type": "namespace", "name": "n", "tools": [{"type": "namespace", "name": "m", "tools": [{"type": "web_search"}]}]}, False),
        ({"type": "namespace", "name": "n", "tools": [{**FUNCTION, "googleSearch": {}}]}, False),
        ({"type": "namespace", "name": "n", "tools": ["web_search"]}, False),
        ({"type": "namespace", "name": "n", "tools": {"type": "web_search"}}, False),
        ({"type": "namespace", "name": "n", "tools": [], "server_url": "u"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_only_tools_that_the_client_runs_are_bounded(tool, is_bounded):
    """A tool in a namespace is judged like any other; a tool search is the client's only if it is declared so."""
    from usage_plugin.proxy import bounds  # noqa: PLC0415

    assert bounds.read("aresponses", {"input": "hi", "tools": [tool]}).output_is_bounded == is_bounded


@pytest.mark.usefixtures("litellm")
def test_tools_in_a_namespace_count_with_its_description():
    """For providers without namespaces LiteLLM adds a namespace's description to each of its tools."""
    from usage_plugin.proxy import bounds  # noqa: PLC0415

    namespace = {"type": "namespace", "name": "n", "description": "s" * 2000, "tools": [FUNCTION] * 10}
    found = bounds.read("aresponses", {"input": "hi", "tools": [namespace]})
    assert found.input_tokens is not None
    assert found.input_tokens >= 10 * (1000 + 2000)
