from __future__ import annotations

import socket

import pytest


@pytest.fixture
def deployments(litellm, monkeypatch):
    """Return a function that looks a provider's model up as the running proxy does, through a real router."""
    from usage_plugin.proxy import price_book  # noqa: PLC0415  # imports LiteLLM

    def look_up(served, **parameters):
        book = price_book.PriceBook()
        router = litellm.Router(
            [{"model_name": "m", "litellm_params": {"model": served, "api_key": "x", **parameters}}]
        )
        monkeypatch.setattr(price_book, "_router", lambda: router)
        return book.deployments("m", None)

    return look_up


@pytest.mark.filterwarnings("ignore")  # LiteLLM's warnings: its look-ups build models that warn about themselves
@pytest.mark.parametrize(
    "name", ["openai/gpt-4o-mini", "openai/our-own", "ollama/our-own", "ollama_chat/our-own", "hosted_vllm/x"]
)
def test_looking_a_price_up_uses_no_network(deployments, monkeypatch, name):
    """Prices are looked up on the request path, so no server is called over the network, not even an Ollama server."""
    from usage_plugin.proxy import price_book  # noqa: PLC0415

    deployments(name)  # The router may use the network when it is created; the look-up may not.
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    assert len(price_book.PriceBook().deployments("m", None)) == 1
    assert tried == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["openai/gpt-4o-mini", "openai/our-own", "groq/gpt-4o", "azure/gpt-4o", "ollama/llama3"]
)
def test_the_check_and_the_proxy_know_the_same_prices(deployments, name):
    """`usage-plugin check` lists a model exactly if the running proxy would refuse it under a cost limit."""
    from usage_plugin.pricing.model_list import unpriced_models  # noqa: PLC0415

    (found,) = deployments(name)
    refused = not found.is_priced_on("acompletion")
    listed = unpriced_models([{"model_name": "m", "litellm_params": {"model": name}}])
    assert listed == (["m"] if refused else [])


@pytest.mark.filterwarnings("ignore")
def test_a_known_model_has_the_maps_price_and_sizes(deployments):
    """A model of LiteLLM's map has its price and sizes; an unknown one has no price, rather than zeros."""
    (known,) = deployments("openai/gpt-4o-mini")
    assert known.price_on("acompletion").base.input == 150 * 10**9
    assert known.most_output == 16_384
    (unknown,) = deployments("openai/our-own")
    assert (unknown.price_on("acompletion"), unknown.context) == (None, None)


@pytest.mark.filterwarnings("ignore")
def test_a_custom_price_is_completed_from_the_map(deployments):
    """A price in the YAML counts, completed by the map's; a missing price is never replaced by zero."""
    (own,) = deployments("openai/gpt-4o-mini", input_cost_per_token=1e-6, output_cost_per_token=2e-6)
    rates = own.price_on("acompletion").base
    assert (rates.input, rates.output, rates.cached_input) == (10**12, 2 * 10**12, 75 * 10**9)
    (half,) = deployments("openai/gpt-4o-mini", input_cost_per_token=1e-6)
    assert (half.price_on("acompletion").base.input, half.price_on("acompletion").base.output) == (10**12, 6 * 10**11)
    (unknown,) = deployments("openai/mine", input_cost_per_token=1e-6)
    assert unknown.price_on("acompletion") is None
    assert own.states_price
    assert half.states_price


@pytest.mark.parametrize(
    ("fallbacks", "model", "targets"),
    [
        ([{"gpt": ["o3", "claude"]}], "gpt", ["o3", "claude"]),
        ([{"gpt": ["o3"]}], "other", []),
        ([{"gpt": ["o3"]}, {"*": ["claude"]}], "other", ["claude"]),
        (["o3", "claude"], "gpt", ["o3", "claude"]),
        ([{"model": "o3", "max_tokens": 5}], "gpt", ["o3"]),
        ([{"gpt": [{"model": "o3"}, "claude"]}], "gpt", ["o3", "claude"]),
        ([{"gpt": None}], "gpt", []),
        ([{"model": 5}], "gpt", []),
    ],
    ids=str,
)
def test_fallbacks_are_found_in_every_notation(litellm, fallbacks, model, targets):
    """The fallbacks of a model are found in the router's notation and in those that a body may use."""
    from usage_plugin.proxy.price_book import _targets  # noqa: PLC0415

    assert _targets(fallbacks, model) == targets


VECTORS = [
    {"prompt_tokens": 1001, "completion_tokens": 77, "prompt_tokens_details": {"cached_tokens": 300, "cache_creation_tokens": 101}, "completion_tokens_details": {"reasoning_tokens": 20}},
    {"prompt_tokens": 300_001, "completion_tokens": 77, "prompt_tokens_details": {"cached_tokens": 300}},
    {"prompt_tokens": 200_000, "completion_tokens": 77, "completion_tokens_details": {"reasoning_tokens": 20}},
    {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"audio_tokens": 400, "cached_tokens": 10}, "completion_tokens_details": {"audio_tokens": 40}},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vector", VECTORS, ids=["cached", "long", "reasoning", "audio"])
@pytest.mark.parametrize("service", [None, "flex", "priority"])
def test_litellms_own_arithmetic_agrees_on_its_whole_map(litellm, vector, service):
    """On every chat model of LiteLLM's map its floats and the plugin's integers give the same cost (C4, C5, C6, C7)."""
    from litellm.litellm_core_utils.llm_cost_calc.utils import generic_cost_per_token  # noqa: PLC0415

    from usage_plugin.pricing.price_map import shipped_price_map  # noqa: PLC0415
    from usage_plugin.pricing.sheets import read_price  # noqa: PLC0415
    from usage_plugin.pricing.usage import read_usage  # noqa: PLC0415

    usage = litellm.Usage(**vector)
    tokens = read_usage(usage.model_dump()).tokens
    compared = 0
    for name, entry in shipped_price_map().items():
        price = read_price(entry)
        # The compared function does not know prices that depend on the hour, or that are added on top.
        if price is None or entry.get("mode") != "chat" or "off_peak_pricing" in entry or price.units.request:
            continue
        if service is None or price.served_as(service) is not None:
            provider = entry.get("litellm_provider", "")
            theirs = sum(generic_cost_per_token(name, usage, provider, service_tier=service, model_info=dict(entry)))
            assert price.cost(tokens, service=service) == pytest.approx(theirs * 1e9, rel=1e-6, abs=1), name
            compared += 1
    assert compared > 100
