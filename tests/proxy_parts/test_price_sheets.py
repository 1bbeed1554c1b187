from __future__ import annotations

import pytest

from usage_plugin.domain.usage import TokenUsage
from usage_plugin.proxy.price_sheets import own_or_mapped, read_price, unpriced_models

MICRO = 10**12
"""Atto-dollars in a micro-dollar, the usual price of a token."""


def sheet(**prices):
    return {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, **prices}


def test_a_sheet_with_two_prices_is_enough():
    """Input and output prices make a price; cached and cache-write tokens then cost as input, reasoning as output."""
    base = read_price(sheet()).base
    assert (base.input, base.cached_input, base.cache_write) == (MICRO, MICRO, MICRO)
    assert (base.output, base.reasoning) == (2 * MICRO, 2 * MICRO)


def test_every_kind_of_token_may_have_its_price():
    """Cached, cache-write and reasoning tokens cost what the sheet says."""
    base = read_price(
        sheet(
            cache_read_input_token_cost=1e-07,
            cache_creation_input_token_cost=1.25e-06,
            output_cost_per_reasoning_token=3e-06,
        )
    ).base
    assert (base.cached_input, base.cache_write, base.reasoning) == (MICRO // 10, MICRO * 5 // 4, 3 * MICRO)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), -1e-06, "free", True, [], "absent"], ids=repr)
@pytest.mark.parametrize("key", ["input_cost_per_token", "output_cost_per_token"])
def test_without_the_price_of_a_token_there_is_none(key, missing):
    """A missing, negative, not finite or meaningless price of input or output is unknown, and never zero."""
    entry = sheet(**{key: missing})
    if missing == "absent":
        del entry[key]
    assert read_price(entry) is None


def test_zero_is_a_price():
    """A model that costs nothing has a price, of nothing."""
    price = read_price(sheet(input_cost_per_token=0, output_cost_per_token=0.0))
    assert price.is_free
    assert price.cost(TokenUsage(10, 10)) == 0


@pytest.mark.parametrize("nonsense", [None, float("nan"), -1e-06, "x"], ids=repr)
def test_an_unknown_part_price_is_that_of_its_whole(nonsense):
    """A part's price that makes no sense is not zero but that of the whole."""
    base = read_price(
        sheet(
            cache_read_input_token_cost=nonsense,
            cache_creation_input_token_cost=nonsense,
            output_cost_per_reasoning_token=nonsense,
        )
    ).base
    assert (base.cached_input, base.cache_write, base.reasoning) == (MICRO, MICRO, 2 * MICRO)


def test_embeddings_need_no_output_price():
    """An embedding has no output, so its price may lack that of output; a chat's may not."""
    entry = {"input_cost_per_token": 2e-08}
    assert read_price(entry) is None
    assert read_price(entry, "embedding").cost(TokenUsage(input_tokens=1_000)) == 20_000
    assert read_price({"output_cost_per_token": 1e-06}, "embedding") is None


def test_tiers_are_read_in_order():
    """Prices above a number of tokens make tiers, in the order of their thresholds."""
    price = read_price(sheet(
        input_cost_per_token_above_200k_tokens=4e-06, output_cost_per_token_above_200k_tokens=6e-06,
        input_cost_per_token_above_128k_tokens=2e-06, output_cost_per_token_above_128k_tokens=3e-06,
    ))  # fmt: skip
    assert [threshold for threshold, _ in price.tiers] == [128_000, 200_000]
    assert price.cost(TokenUsage(128_000, 1)) == 128_000 * 1_000 + 2_000
    assert price.cost(TokenUsage(128_001, 1)) == 128_001 * 2_000 + 3_000
    assert price.cost(TokenUsage(200_001, 1)) == 200_001 * 4_000 + 6_000


def test_a_tier_keeps_what_it_does_not_change():
    """A tier that names only one price has the base's for the others."""
    price = read_price(sheet(output_cost_per_token_above_200k_tokens=6e-06, cache_read_input_token_cost=1e-07))
    ((_, rates),) = price.tiers
    assert (rates.input, rates.output, rates.cached_input) == (MICRO, 6 * MICRO, MICRO // 10)


def test_cached_tokens_of_a_tier_cost_as_its_input_where_no_cache_price_is_known():
    """Without any cache price, cached tokens cost as other input of the tier, not as cheap input below it."""
    price = read_price(sheet(input_cost_per_token_above_200k_tokens=4e-06))
    ((_, rates),) = price.tiers
    assert (rates.cached_input, rates.cache_write) == (4 * MICRO, 4 * MICRO)


def test_reasoning_tokens_of_a_tier_are_not_cheaper_than_their_own_price():
    """A price of reasoning tokens counts in tiers too, which have none of their own."""
    price = read_price(sheet(output_cost_per_reasoning_token=9e-06, output_cost_per_token_above_200k_tokens=6e-06))
    ((_, rates),) = price.tiers
    assert rates.reasoning >= 9 * MICRO


def test_cache_writes_for_an_hour_are_within_the_worst_case():
    """Anthropic bills cache writes for an hour dearer than for five minutes; the worst case covers them."""
    price = read_price(sheet(cache_creation_input_token_cost=1.25e-06, cache_creation_input_token_cost_above_1hr=2e-06))
    assert price.worst_case(1_000, 0) >= 2_000_000


@pytest.mark.parametrize(
    "strange",
    [
        {"input_cost_per_token_above_1hr": 5e-06},
        {"input_cost_per_token_above_xk_tokens": 5e-06},
        {"input_cost_per_token_above_200k_tokens_priority": 5e-06},
        {"input_cost_per_image_above_128k_tokens": 5e-06},
        {"input_cost_per_token_above_200k_tokens": None},
        {"input_cost_per_token_above_200k_tokens": "x"},
        {"_above_k_tokens": 1, "": 1},
        {"litellm_provider": "openai", "mode": "chat", "supports_vision": True},
    ],
    ids=str,
)
def test_keys_that_are_no_token_tier_change_no_token_price(strange):
    """Keys of other prices, and strange ones, leave the price of an ordinary request as it is."""
    price = read_price(sheet(**strange))
    assert price.cost(TokenUsage(300_000, 10)) == 300_000 * 1_000 + 10 * 2_000


@pytest.mark.parametrize(
    ("own", "taken"),
    [
        ({}, "mapped"),
        ({"input_cost_per_token": None, "output_cost_per_token": None}, "mapped"),
        ({"model": "x", "rpm": 5}, "mapped"),
        ({"input_cost_per_token": 0}, "own"),
        ({"output_cost_per_token": 1e-06}, "own"),
        ({"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}, "own"),
    ],
    ids=str,
)
def test_own_prices_are_never_mixed_with_litellms(own, taken):
    """A deployment with any token price of its own is priced by its own sheet alone, zero included."""
    mapped = sheet()
    assert (own_or_mapped(own, mapped) is mapped) == (taken == "mapped")


def model(name="m", info=None, **parameters):
    return {"model_name": name, "litellm_params": parameters, **({} if info is None else {"model_info": info})}


@pytest.mark.parametrize(
    ("entry", "unpriced"),
    [
        (model(model="openai/gpt-4o-mini"), False),
        (model(model="gpt-4o-mini"), False),
        (model(model="anthropic/claude-haiku-4-5"), False),
        (model(model="openai/text-embedding-3-small"), False),
        (model(model="gemini/gemini-2.5-pro"), False),
        (model(model="openai/our-own"), True),
        (model(model="openai/our-own", input_cost_per_token=1e-06, output_cost_per_token=1e-06), False),
        (model(model="openai/our-own", input_cost_per_token=0, output_cost_per_token=0), False),
        (model(model="openai/our-own", info={"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}), False),
        (model(model="openai/our-own", input_cost_per_token="1e-6", output_cost_per_token="2e-6"), False),
        (model(model="openai/our-own", input_cost_per_token=1e-06), True),
        (model(model="openai/our-own", input_cost_per_token=1e-06, info={"mode": "embedding"}), False),
        (model(model="openai/gpt-4o-mini", input_cost_per_token=float("nan"), output_cost_per_token=1e-06), True),
        (model(model="azure/our-deployment"), True),
        (model(model="azure/our-deployment", info={"base_model": "azure/gpt-4o"}), False),
        (model(model="openai/*"), False),
        (model(), True),
        # The same name at another provider is another model: LiteLLM knows no price for these.
        (model(model="groq/gpt-4o"), True),
        (model(model="hosted_vllm/gpt-4o"), True),
    ],
    ids=lambda value: str(value.get("litellm_params")) if isinstance(value, dict) else None,
)
def test_models_without_a_price_are_listed(entry, unpriced):
    """A model is listed if neither its entry nor LiteLLM's map has a price for it; wildcards are passed over."""
    assert unpriced_models([entry]) == (["m"] if unpriced else [])


def test_a_model_with_one_unpriced_deployment_is_listed_once():
    """A model of several deployments is listed if one of them has no price, once, in order of names."""
    entries = [
        model("b", model="openai/x"),
        model("a", model="openai/x"),
        model("b", model="openai/y"),
        model("b", model="gpt-4o-mini"),
    ]
    assert unpriced_models(entries) == ["a", "b"]


@pytest.mark.parametrize(
    "models",
    [
        None,
        {},
        "x",
        5,
        [],
        [None],
        ["gpt"],
        [5],
        [{}],
        [{"litellm_params": "x"}],
        [{"litellm_params": {"model": 5}}],
        [{"model_info": []}],
    ],
    ids=repr,
)
def test_a_strange_model_list_is_no_error(models):
    """Whatever stands under model_list is LiteLLM's to complain about."""
    assert isinstance(unpriced_models(models), list)


def test_free_tokens_do_not_make_a_model_free_that_costs_otherwise():
    """A model whose tokens are free but whose queries, images or seconds are not has no price for tokens."""
    free = {"input_cost_per_token": 0, "output_cost_per_token": 0}
    assert read_price(free).is_free
    assert read_price({**free, "input_cost_per_query": 0.002}) is None
    assert read_price({**free, "output_cost_per_image": 0.0}).is_free
