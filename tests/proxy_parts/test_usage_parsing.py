from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.proxy.usage_parsing import (
    Served,
    inline_usage,
    logged_usage,
    served_inline,
    served_logged,
)

CHAT = {
    "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 8, "accepted_prediction_tokens": 0},
}  # fmt: skip
numbers = st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.booleans()


@pytest.mark.parametrize(
    "answer", [None, {}, {"usage": None}, SimpleNamespace(), SimpleNamespace(usage=None), "text", 5]
)
def test_an_answer_without_usage_has_none(answer):
    """An answer of any kind without usage has an empty usage."""
    assert inline_usage(answer) == {}


def test_logged_usage_prefers_the_whole():
    """A callback's usage is the provider's object, or else the two counts that LiteLLM logs."""
    assert logged_usage({"standard_logging_object": {"metadata": {"usage_object": CHAT}, "prompt_tokens": 1}}) == CHAT
    assert logged_usage({"standard_logging_object": {"prompt_tokens": 7, "completion_tokens": 3}}) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
    }
    assert not any(logged_usage({}).values())
    assert not any(logged_usage({"standard_logging_object": None}).values())


@given(
    data=st.none() | st.lists(st.integers(), max_size=3) | st.text(max_size=3),
    meta=st.none() | st.dictionaries(st.sampled_from(["billed_units"]), st.none() | st.dictionaries(st.sampled_from(["search_units"]), numbers)),
    spoken=st.none() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
)  # fmt: skip
def test_units_are_counted_in_whatever_comes(data, meta, spoken):
    """Images, queries and characters are counted where there are any, and no input raises."""
    units = served_inline({"input": spoken}, SimpleNamespace(data=data, meta=meta)).units
    assert units.images == (len(data) if isinstance(data, list) else 0)
    assert units.characters == (len(spoken) if isinstance(spoken, str) else 0)
    assert units.queries >= 0


# ── the served deployment as LiteLLM reports it ──────────────────────────────────────────────────────────────────────


def test_who_served_is_read_while_the_answer_is_on_its_way():
    """Group, deployment, provider and cost are found in the answer's hidden parameters and the request's metadata."""
    answer = SimpleNamespace(_hidden_params={"model_id": "dep-1", "response_cost": 0.25, "cache_hit": True})
    logging = SimpleNamespace(model_call_details={
        "custom_llm_provider": "openai", "litellm_params": {"metadata": {"model_group": "gpt", "deployment": "openai/gpt-4o"}},
    })  # fmt: skip
    assert served_inline({"litellm_logging_obj": logging}, answer) == Served(
        "gpt", "dep-1", "openai", "openai/gpt-4o", 0.25, True
    )


def test_who_served_is_read_from_a_callback():
    """The same is found in a callback's arguments, on routes that keep it in either metadata."""
    kwargs = {
        "standard_logging_object": {"model_id": "dep-1", "custom_llm_provider": "anthropic", "response_cost": None, "cache_hit": None},
        "litellm_params": {"metadata": {"user_id": "x"}, "litellm_metadata": {"model_group": "claude", "deployment": "anthropic/claude"}},
    }  # fmt: skip
    assert served_logged(kwargs) == Served("claude", "dep-1", "anthropic", "anthropic/claude", None, False)


@pytest.mark.parametrize(
    "kwargs",
    [
        {}, {"standard_logging_object": None, "litellm_params": None}, {"standard_logging_object": {}, "litellm_params": {"metadata": None}},
        {"litellm_params": {"metadata": {"model_group": "", "model_info": None}}}, {"standard_logging_object": {"model_id": 5, "model_group": ["x"]}},
    ],
)  # fmt: skip
def test_missing_fields_are_nobody(kwargs):
    """A field that LiteLLM omits is None, and raises nothing."""
    found = served_logged(kwargs)
    assert (found.model, found.deployment_id, found.provider, found.cache_hit) == (None, None, None, False)
    for answer in (None, {}, SimpleNamespace(_hidden_params=None), {"_hidden_params": {"model_id": None}}):
        assert served_inline({}, answer).deployment_id is None
