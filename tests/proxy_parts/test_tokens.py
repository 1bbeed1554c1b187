"""Counting by the provider's own tokenizer: never less than the provider counts, and only if it can help."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

WORDS = "Which wood makes a good handle for a spade, and why? " * 200


@pytest.fixture(scope="module")
def tokens(litellm):
    from usage_plugin.proxy import tokens  # noqa: PLC0415  # imports LiteLLM, which sets the tokenizers' location

    return tokens


def way(served, provider="openai"):
    return SimpleNamespace(provider=provider, served_model=served)


@pytest.mark.parametrize(
    ("ways", "encoding"),
    [
        ([way("openai/gpt-4o-mini")], "o200k_base"),
        ([way("gpt-4-turbo"), way("azure/gpt-35-turbo", "azure")], "cl100k_base"),
        ([way("gpt-4o"), way("gpt-4")], None),
        ([way("gpt-4o"), way("claude-opus-4", "anthropic")], None),
        ([way("gpt-4o", "openrouter")], None),
        ([way("llama-3")], None),
        ([way("gpt2")], None),
        ([], None),
    ],
)  # fmt: skip
def test_one_encoding_that_is_at_hand(tokens, ways, encoding):
    """A request is counted if all its deployments share a tokenizer that is on disk; nothing is downloaded."""
    assert tokens.encoding_for(ways) == encoding


@given(st.lists(st.text(min_size=1) | st.just(WORDS), min_size=1, max_size=4))
async def test_the_counted_bound_is_never_too_low(litellm, tokens, contents):
    """The bytes less the savings are at least LiteLLM's count for the whole request, including its template."""
    from usage_plugin.proxy import bounds  # noqa: PLC0415  # imports LiteLLM

    messages = [{"role": "user", "content": content} for content in contents]
    body = {"model": "gpt-4o", "messages": messages}
    saved = await tokens.Tokenizer().savings(body, "o200k_base")
    bound = bounds.read("acompletion", body).input_tokens - saved
    assert bound >= litellm.token_counter(model="gpt-4o", messages=messages)
    assert saved >= 0
    assert saved <= tokens.most_savings(body) or not any(len(content) >= 200 for content in contents)


@pytest.mark.parametrize("body", [
    {"messages": [{"role": "user", "content": WORDS}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": WORDS}]}]},
    {"prompt": WORDS},
    {"prompt": [WORDS]},
    {"input": WORDS},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": WORDS}]}]},
    {"instructions": WORDS},
])  # fmt: skip
async def test_texts_are_counted_wherever_they_stand(tokens, body):
    """On every route, English text takes less than a third as many tokens as bytes."""
    saved = await tokens.Tokenizer().savings(body, "o200k_base")
    assert saved > len(WORDS) * 2 / 3
    assert saved <= tokens.most_savings(body)


@pytest.mark.parametrize("body", [
    {"messages": [{"role": "user", "content": "short"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 999}}]}]},
    {"tools": [{"type": "function", "function": {"name": "f", "description": WORDS}}]},
    {"input": [1] * 5_000},
    {"messages": [{"role": "user", "content": WORDS * 1_000}]},
    {"messages": None},
])  # fmt: skip
def test_what_is_not_worth_counting(tokens, body):
    """Short texts, non-texts, and texts too long for any model are not counted."""
    assert tokens.most_savings(body) == 0
