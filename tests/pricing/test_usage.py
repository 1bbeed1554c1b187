"""The single reader of usage: every provider's format becomes the same billable quantities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from usage_plugin.domain.prices import NO_TOOL_CALLS, ToolCalls
from usage_plugin.domain.usage import TokenUsage
from usage_plugin.pricing.usage import grounding_calls, is_counted, mapping, read_usage


def tokens_in(usage, **how):
    return read_usage(usage, **how).tokens


CHAT = {
    "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 8, "accepted_prediction_tokens": 0},
}  # fmt: skip
RESPONSES = {
    "input_tokens": 100, "output_tokens": 20, "total_tokens": 120,
    "input_tokens_details": {"cached_tokens": 60}, "output_tokens_details": {"reasoning_tokens": 8},
}  # fmt: skip
ANTHROPIC = {
    "input_tokens": 30, "output_tokens": 20, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 0}, "service_tier": "standard",
}  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (CHAT, TokenUsage(100, 20, 60, 0, 8)),
        (RESPONSES, TokenUsage(100, 20, 60, 0, 8)),
        (ANTHROPIC, TokenUsage(100, 20, 60, 10, 0)),
        # LiteLLM's format of an Anthropic answer on the chat route: the prompt already includes the cached tokens.
        ({"prompt_tokens": 100, "completion_tokens": 20, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10}, TokenUsage(100, 20, 60, 10, 0)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 60, "cache_creation_tokens": 10}}, TokenUsage(100, 20, 60, 10, 0)),
        ({"prompt_tokens": 7, "total_tokens": 7}, TokenUsage(7, 0)),
        ({**ANTHROPIC, "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6}}, TokenUsage(100, 20, 60, 10, 0, 6)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10, "cache_creation_token_details": {"ephemeral_1h_input_tokens": 6}}}, TokenUsage(100, 20, 60, 10, 0, 6)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"audio_tokens": 30, "image_tokens": 5, "cached_tokens": 60, "cached_tokens_details": {"audio_tokens": 10, "text_tokens": 50}}, "completion_tokens_details": {"audio_tokens": 9, "image_tokens": 3}},
         TokenUsage(100, 20, 60, 0, 0, 0, 10, 20, 5, 9, 3)),
        ({"input_tokens": 50, "output_tokens": 20, "input_tokens_details": {"text_tokens": 40, "image_tokens": 10}}, TokenUsage(50, 20, image_input_tokens=10)),
        ({}, TokenUsage()),
        # Numbers as strings and as floats.
        ({"prompt_tokens": "100", "completion_tokens": 20.0}, TokenUsage(100, 20)),
        # A total above the sum of its parts is output without details; a total alone is input.
        ({"prompt_tokens": 1000, "completion_tokens": 150, "total_tokens": 1430, "completion_tokens_details": {"reasoning_tokens": 280}}, TokenUsage(1000, 430, reasoning_tokens=280)),
        ({"prompt_tokens": 100, "completion_tokens": None, "total_tokens": 130}, TokenUsage(100, 30)),
        ({"total_tokens": 26_000}, TokenUsage(26_000, 0)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 90}, TokenUsage(100, 20)),
        # The part of a total above the sum of its parts may be exactly the cached tokens.
        ({"prompt_tokens": 40, "completion_tokens": 20, "total_tokens": 120, "cache_read_input_tokens": 60}, TokenUsage(100, 20, 60)),
        # Reasoning that cannot be part of the completion is counted separately.
        ({"prompt_tokens": 100, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 30}}, TokenUsage(100, 35, reasoning_tokens=30)),
        # DeepSeek, Cohere, Bedrock's Converse, a transcription.
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40}, TokenUsage(100, 20, 60)),
        ({"billed_units": {"input_tokens": 7, "output_tokens": 3}, "tokens": {"input_tokens": 70, "output_tokens": 3}}, TokenUsage(7, 3)),
        ({"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 70}}, TokenUsage(70, 0)),
        ({"inputTokens": 1000, "outputTokens": 50, "totalTokens": 11050, "cacheReadInputTokens": 2000, "cacheWriteInputTokens": 8000,
          "cacheDetails": [{"ttl": "1h", "inputTokens": 6000}, {"ttl": "5m", "inputTokens": 2000}]}, TokenUsage(11_000, 50, 2000, 8000, 0, 6000)),
        ({"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 10}, "output_tokens": 45, "total_tokens": 59}, TokenUsage(14, 45, audio_input_tokens=10)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"video_tokens": 30}, "completion_tokens_details": {"video_tokens": 4}}, TokenUsage(100, 20, video_input_tokens=30, video_output_tokens=4)),
    ],
)  # fmt: skip
def test_tokens_are_read_from_every_providers_form(usage, tokens):
    """OpenAI's chat and Responses formats and Anthropic's give the same counts, with cached tokens within the input."""
    assert tokens_in(usage) == tokens


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": None},
        {"prompt_tokens": "many", "completion_tokens": [], "prompt_tokens_details": "x"},
        {"prompt_tokens": -5, "completion_tokens": float("nan"), "prompt_tokens_details": {"cached_tokens": None}},
        {"prompt_tokens": True, "completion_tokens_details": {"reasoning_tokens": "eight"}},
        {"input_tokens_details": [1], "output_tokens_details": 5},
        {"cache_read_input_tokens": {}, "cache_creation_input_tokens": -1},
    ],
)
def test_nulls_and_nonsense_count_as_none(usage):
    """Null, negative values and fields of the wrong type count as zero tokens, and raise nothing."""
    assert tokens_in(usage) == TokenUsage()


def test_a_null_in_the_other_providers_field_changes_nothing():
    """A null under OpenAI's name does not remove Anthropic's cached tokens."""
    assert tokens_in({**ANTHROPIC, "prompt_tokens": None}) == TokenUsage(100, 20, 60, 10, 0)


numbers = st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.booleans()
details = numbers | st.dictionaries(
    st.sampled_from(
        [
            "cached_tokens",
            "reasoning_tokens",
            "cache_creation_tokens",
            "audio_tokens",
            "image_tokens",
            "cached_tokens_details",
        ]
    ),
    numbers | st.dictionaries(st.sampled_from(["audio_tokens", "ephemeral_1h_input_tokens"]), numbers),
)
usages = st.dictionaries(
    st.sampled_from([*CHAT, *RESPONSES, *ANTHROPIC]), details, max_size=6
)  # fmt: skip


@given(usages)
def test_no_usage_is_too_strange_to_be_read(usage):
    """Any provider's report is read as counts that are whole, not negative and small enough to be stored."""
    assert all(isinstance(count, int) and 0 <= count < 2**62 for count in tokens_in(usage))


def test_pydantic_models_are_read_like_mappings():
    """LiteLLM passes usage as nested models as well as mappings."""

    class Details(BaseModel):
        cached_tokens: int = 60

    class Usage(BaseModel):
        prompt_tokens: int = 100
        completion_tokens: int = 20
        prompt_tokens_details: Details = Details()

    assert tokens_in(mapping(Usage())) == TokenUsage(100, 20, 60)
    assert tokens_in({"prompt_tokens": 100, "prompt_tokens_details": Details()}) == TokenUsage(100, 0, 60)


def test_geminis_own_usage_is_read():
    """Gemini counts thoughts and the input of its tools separately from the rest, and audio and images by kind."""
    usage = {
        "promptTokenCount": 100, "toolUsePromptTokenCount": 7, "cachedContentTokenCount": 40, "candidatesTokenCount": 20, "thoughtsTokenCount": 5,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 70}, {"modality": "AUDIO", "tokenCount": 30}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}], "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 9}],
        "trafficType": "ON_DEMAND_PRIORITY",
    }  # fmt: skip
    found = read_usage(usage)
    assert found.tokens == TokenUsage(107, 25, 40, 0, 5, 0, 10, 20, 0, 0, 9)
    assert found.service == "priority"
    assert read_usage({"promptTokenCount": 5, "trafficType": "ON_DEMAND"}).service == "default"
    for strange in (
        {"promptTokensDetails": "x"},
        {"promptTokensDetails": [None, 5]},
        {"promptTokenCount": None},
        {"trafficType": 5},
    ):
        assert tokens_in(strange) == TokenUsage()


PERPLEXITY = {
    "prompt_tokens": 108, "completion_tokens": 3256, "total_tokens": 3364, "citation_tokens": 7299,
    "num_search_queries": 74, "reasoning_tokens": 73_248,
}  # fmt: skip


def test_perplexity_counts_reasoning_and_citations_apart():
    """Numbers outside the totals are added: citations to the input, reasoning to the output, and searches as calls."""
    found = read_usage(PERPLEXITY, provider="perplexity")
    assert found.tokens == TokenUsage(7407, 76_504, reasoning_tokens=73_248, citation_tokens=7299)
    assert found.tools == ToolCalls(searches=74)
    sized = read_usage({"prompt_tokens": 5, "search_context_size": "high"}, provider="perplexity")
    assert (sized.tools, sized.search_size) == (ToolCalls(searches=1), "high")


@pytest.mark.parametrize(
    ("provider", "usage", "billed"),
    [
        ("openrouter", {"cost": 0.0123}, 12_300_000),
        ("openrouter", {"cost": "0.0123"}, 12_300_000),
        ("openrouter", {"cost": 0}, 0),
        ("openrouter", {"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 21_000_000),
        (
            "openrouter",
            {"cost": 0.001, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.001}},
            1_000_000,
        ),
        ("openrouter", {"cost": -1}, None),
        ("openrouter", {"cost": "much"}, None),
        ("perplexity", {"cost": {"total_cost": 0.5, "input_tokens_cost": 0.1}}, 500_000_000),
        ("perplexity", {"cost": {}}, None),
        ("xai", {"cost_in_usd_ticks": 23_400_001}, 2_340_001),
        ("xai", {"cost": 5}, None),
        ("openai", {"cost": 5}, None),
    ],
    ids=str,
)
def test_what_a_provider_bills_is_read_in_a_known_unit(provider, usage, billed):
    """Only figures known to be in US dollars are used; with the operator's own key, both bills are added."""
    assert read_usage(usage, provider=provider).billed == billed


def test_modes_tiers_and_tools_are_read():
    """A fast mode, a region, a tier and tool calls come from the usage, not from the request."""
    usage = {
        "speed": "fast",
        "inference_geo": "us",
        "service_tier": "priority",
        "server_tool_use": {"web_search_requests": 3},
    }
    found = read_usage(usage)
    assert (found.modes, found.service, found.tools) == (("fast", "us"), "priority", ToolCalls(searches=3))
    plain = read_usage({"speed": None, "inference_geo": "global", "server_tool_use": None})
    assert (plain.modes, plain.service, plain.tools) == ((), None, NO_TOOL_CALLS)


@pytest.mark.parametrize(
    ("candidates", "calls"),
    [
        ([], NO_TOOL_CALLS),
        ([{"groundingMetadata": {}}], NO_TOOL_CALLS),
        ([{"groundingMetadata": {"webSearchQueries": ["a b", "", "a b", "c d"]}}], ToolCalls(searches=2)),
        ([{"groundingMetadata": {"webSearchQueries": ["a"]}}, {"groundingMetadata": {"webSearchQueries": ["a", "b"]}}], ToolCalls(searches=2)),
        ([{"groundingMetadata": {"groundingChunks": [{"maps": {}}]}}], ToolCalls(map_searches=1)),
        ([{"groundingMetadata": {"webSearchQueries": ["a", "b"], "groundingChunks": [{"maps": {}}]}}], ToolCalls(map_searches=2)),
        ([{"groundingMetadata": {"webSearchQueries": 5, "groundingChunks": "x"}}, None, "y"], NO_TOOL_CALLS),
    ],
)  # fmt: skip
def test_distinct_queries_of_google_are_counted_once(candidates, calls):
    """Grounding is billed by the distinct query, on the web or in maps."""
    assert grounding_calls(candidates) == calls


@pytest.mark.parametrize(
    "usage", [{}, {"prompt_tokens": 0}, {"seen": 5}, {"prompt_tokens": None, "total_tokens": None}]
)
def test_a_usage_that_counts_nothing_is_not_reported(usage):
    """Zeros, nulls and unknown fields do not count as a report."""
    assert not is_counted(usage)
