"""The parts of the handler that need no proxy: the calls that can cost something, and the overrides of a request."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "call_type",
    [
        "acompletion", "aresponses", "anthropic_messages", "image_generation", "aimage_edit", "acreate_batch", "acreate_video",
        "acreate_interaction", "_arealtime", "_aresponses_websocket", "pass_through_endpoint", "arerank", "aspeech", "something_new",
        "agenerate_content", "agenerate_content_stream", "generate_content",
    ],
)  # fmt: skip
def test_what_can_cost_is_metered(litellm, call_type):
    """Every call type that is not known to be free is metered, including new ones."""
    from usage_plugin.proxy.inflight import is_free  # noqa: PLC0415  # imports LiteLLM

    assert not is_free(call_type)


@pytest.mark.parametrize(
    "call_type",
    [
        "aget_responses", "alist_batches", "acancel_batch", "aretrieve_batch", "afile_content", "acreate_file", "avideo_retrieve",
        "avideo_list", "adelete_assistant", "a_add_message", "avector_store_file_list", "alist_input_items", "adelete_responses",
        "avideo_content", "acontainer_file_content", "vector_store_file_content",
    ],
)  # fmt: skip
def test_look_ups_are_not_metered(litellm, call_type):
    """Listings, look-ups and deletions cost nothing and are admitted."""
    from usage_plugin.proxy.inflight import is_free  # noqa: PLC0415

    assert is_free(call_type)


@pytest.mark.parametrize(
    ("fallbacks", "overriding"),
    [
        (["a", {"model": "b"}], False),
        ([{"a": ["b", "c"]}, {"*": ["d"]}], False),
        ([{"model": "b", "max_tokens": 9}], True),
        ([{"a": [{"model": "b", "messages": []}]}], True),
        (None, False),
        ("a", False),
    ],
)
def test_fallbacks_that_override_are_seen(litellm, fallbacks, overriding):
    """A fallback with its own parameters is detected, however it is nested."""
    from usage_plugin.proxy.price_book import overriding_fallbacks  # noqa: PLC0415

    assert overriding_fallbacks(fallbacks) is overriding


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("served", "provider"),
    [
        ("openai/x", "openai"),
        ("anthropic/claude-x", "anthropic"),
        ("bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0", "bedrock"),
    ],
)
def test_the_provider_is_the_one_litellm_routes_to(litellm, served, provider):
    """Holds and charges name the provider that LiteLLM calls, not the model's family in a price map."""
    from usage_plugin.pricing.catalog import provider_of  # noqa: PLC0415

    assert provider_of(served) == (served.partition("/")[2], provider)
    assert provider_of(served, "groq")[1] == "groq"
