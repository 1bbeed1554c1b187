"""The output limit that a deployment obeys, as LiteLLM translates it, and the limit that it gets by default."""

from __future__ import annotations

import pytest

from usage_plugin.config.sections import AdmissionConfig

BOTH = ("max_tokens", "max_completion_tokens")


@pytest.fixture
def limit(litellm):  # imported first
    """Return a function that finds the output limit of a provider's model on a route."""
    from usage_plugin.proxy.output_limits import output_limit  # noqa: PLC0415  # imports LiteLLM
    from usage_plugin.proxy.price_book import Deployment  # noqa: PLC0415

    def limit(provider, kind="acompletion", admission=None, *, reasons=False, most_output=None, **parameters):
        way = Deployment("m", served_model=f"{provider}/m", provider=provider, most_output=most_output)
        way.parameters, way.reasons = parameters, reasons
        return output_limit(way, kind, admission or AdmissionConfig())

    return limit


@pytest.mark.parametrize(
    ("provider", "kind", "fields"),
    [
        ("openai", "acompletion", BOTH), ("anthropic", "acompletion", BOTH), ("gemini", "acompletion", BOTH),
        ("bedrock", "acompletion", BOTH), ("watsonx", "acompletion", ("max_tokens",)), ("replicate", "acompletion", ("max_tokens",)),
        ("text-completion-openai", "acompletion", ("max_tokens",)), ("v0", "acompletion", ()), ("morph", "anthropic_messages", ()),
        ("openai", "aresponses", ("max_output_tokens",)), ("anthropic", "aresponses", ("max_output_tokens",)), ("v0", "aresponses", ()),
        ("chatgpt", "aresponses", ()), ("openai", "anthropic_messages", ("max_tokens",)), ("openai", "atext_completion", ("max_tokens",)),
        ("gemini", "agenerate_content", ("maxOutputTokens",)), ("openai", "agenerate_content_stream", ("maxOutputTokens",)),
        ("v0", "agenerate_content", ()),
    ],
)  # fmt: skip
def test_litellm_is_asked_which_field_it_passes_on(limit, provider, kind, fields):
    """A field counts only if LiteLLM's translation for this provider still contains the number."""
    assert limit(provider, kind).fields == fields


def test_a_field_that_the_operator_drops_bounds_nothing(limit):
    """additional_drop_params of a deployment removes an output limit."""
    assert limit("openai", additional_drop_params=["max_tokens"]).fields == ("max_completion_tokens",)
    assert limit("openai", additional_drop_params=[*BOTH]).fields == ()


@pytest.mark.parametrize(
    ("kind", "parameters", "default", "is_sent"),
    [
        ("acompletion", {}, 4096, False),
        ("acompletion", {"max_tokens": 16_384}, 16_384, True),
        ("acompletion", {"max_completion_tokens": 100}, 100, True),
        ("aresponses", {"max_tokens": 16_384}, 16_384, False),
        ("aresponses", {"max_output_tokens": 300}, 300, True),
        ("acompletion", {"max_tokens": "nonsense"}, 4096, False),
    ],
)
def test_the_operators_number_is_the_default(limit, kind, parameters, default, is_sent):
    """LiteLLM itself sends a value of litellm_params under an obeyed field; under another the plugin inserts it."""
    assert limit("openai", kind, **parameters)[1:] == (default, is_sent)


@pytest.mark.parametrize(
    ("admission", "reasons", "most", "default"),
    [
        ({}, False, None, 4096), ({}, True, None, 25_000), ({}, True, 8_000, 8_000), ({}, False, 1_000, 1_000),
        ({"default_max_output_tokens": 500}, True, None, 500), ({"max_output_tokens": {"m": 7}}, True, None, 7),
        ({"default_max_output_tokens": 500, "default_reasoning_tokens": 900}, True, None, 900),
    ],
)  # fmt: skip
def test_a_model_that_thinks_first_has_a_larger_default(limit, admission, reasons, most, default):
    """The default is larger unless the operator sets it, and never exceeds the model's maximum output."""
    found = limit("openai", admission=AdmissionConfig(**admission), reasons=reasons, most_output=most)
    assert found.default == default
