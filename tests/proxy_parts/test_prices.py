from __future__ import annotations

import socket

import pytest


@pytest.fixture
def deployments(litellm, monkeypatch):
    """Looks a provider's model up as the running proxy does, through a real router."""
    from usage_plugin.proxy import prices  # noqa: PLC0415  # imports LiteLLM

    def look_up(served, **parameters):
        book = prices.PriceBook()
        router = litellm.Router(
            [{"model_name": "m", "litellm_params": {"model": served, "api_key": "x", **parameters}}]
        )
        monkeypatch.setattr(prices, "_router", lambda: router)
        return book.deployments("m", None)

    return look_up


@pytest.mark.filterwarnings("ignore")  # LiteLLM's: its look-ups build models that warn about themselves
@pytest.mark.parametrize(
    "name", ["openai/gpt-4o-mini", "openai/our-own", "ollama/our-own", "ollama_chat/our-own", "hosted_vllm/x"]
)
def test_looking_a_price_up_uses_no_network(deployments, monkeypatch, name):
    """Prices are looked up on the request path, so nobody is asked over the network, an Ollama server neither."""
    from usage_plugin.proxy import prices  # noqa: PLC0415

    deployments(name)  # The router may ask when it is made; what follows may not.
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    assert len(prices.PriceBook().deployments("m", None)) == 1
    assert tried == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["openai/gpt-4o-mini", "openai/our-own", "groq/gpt-4o", "azure/gpt-4o", "ollama/llama3"]
)
def test_the_check_and_the_proxy_know_the_same_prices(deployments, name):
    """`usage-plugin check` lists a model exactly if the running proxy would refuse it under a cost limit."""
    from usage_plugin.proxy.price_sheets import unpriced_models  # noqa: PLC0415

    (found,) = deployments(name)
    refused = not found.is_priced_on("acompletion")
    listed = unpriced_models([{"model_name": "m", "litellm_params": {"model": name}}])
    assert listed == (["m"] if refused else [])


@pytest.mark.filterwarnings("ignore")
def test_a_known_model_has_the_maps_price_and_sizes(deployments):
    """A model of LiteLLM's map has its price and sizes; an unknown one has no price, and no zeros."""
    (known,) = deployments("openai/gpt-4o-mini")
    assert known.price_on("acompletion").base.input == 150 * 10**9
    assert known.most_output == 16_384
    (unknown,) = deployments("openai/our-own")
    assert (unknown.price_on("acompletion"), unknown.context) == (None, None)


@pytest.mark.filterwarnings("ignore")
def test_a_custom_price_is_taken_alone(deployments):
    """A deployment's own price is not completed from LiteLLM's map, nor with zeros."""
    (own,) = deployments("openai/gpt-4o-mini", input_cost_per_token=1e-6, output_cost_per_token=2e-6)
    assert (own.price_on("acompletion").base.input, own.price_on("acompletion").base.cached_input) == (10**12, 10**12)
    (half,) = deployments("openai/gpt-4o-mini", input_cost_per_token=1e-6)
    assert half.price_on("acompletion") is None
    assert half.price_on("aembedding") is not None


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
    from usage_plugin.proxy.prices import _targets  # noqa: PLC0415

    assert _targets(fallbacks, model) == targets
