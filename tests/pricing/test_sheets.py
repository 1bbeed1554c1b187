from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.prices import PriceExposure, Units
from usage_plugin.domain.usage import TokenUsage
from usage_plugin.pricing.model_list import configured_rates, unpriced_models
from usage_plugin.pricing.price_map import shipped_price_map
from usage_plugin.pricing.sheets import is_priced_by_litellm, own_or_mapped, read_price, route_of

MICRO = 10**12
"""Atto-dollars in a micro-dollar, the usual price of a token."""


def sheet(**prices):
    return {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, **prices}


def test_a_sheet_with_two_prices_is_enough():
    """Input and output prices suffice; cached and cache-write tokens then cost as input, reasoning as output."""
    base = read_price(sheet()).base
    assert (base.input, base.cached_input, base.cache_write) == (MICRO, MICRO, MICRO)
    assert (base.output, base.reasoning) == (2 * MICRO, 2 * MICRO)


def test_every_kind_of_token_may_have_its_price():
    """Cached, cache-write and reasoning tokens have the prices of the sheet."""
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
    """A missing, negative, non-finite or invalid price of input or output is unknown, and never zero."""
    entry = sheet(**{key: missing})
    if missing == "absent":
        del entry[key]
    assert read_price(entry) is None


def test_zero_is_a_price():
    """A model that costs nothing has a price of zero."""
    price = read_price(sheet(input_cost_per_token=0, output_cost_per_token=0.0))
    assert price.is_free
    assert price.cost(TokenUsage(10, 10)) == 0


@pytest.mark.parametrize("nonsense", [None, float("nan"), -1e-06, "x"], ids=repr)
def test_an_unknown_part_price_is_that_of_its_whole(nonsense):
    """An invalid price of a part falls back to the price of the whole, not to zero."""
    base = read_price(
        sheet(
            cache_read_input_token_cost=nonsense,
            cache_creation_input_token_cost=nonsense,
            output_cost_per_reasoning_token=nonsense,
        )
    ).base
    assert (base.cached_input, base.cache_write, base.reasoning) == (MICRO, MICRO, 2 * MICRO)


def test_embeddings_need_no_output_price():
    """An embedding has no output, so its sheet may lack an output price; a chat's may not."""
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
    """A tier that states only one price takes the others from the base."""
    price = read_price(sheet(output_cost_per_token_above_200k_tokens=6e-06, cache_read_input_token_cost=1e-07))
    ((_, rates),) = price.tiers
    assert (rates.input, rates.output, rates.cached_input) == (MICRO, 6 * MICRO, MICRO // 10)


def test_cached_tokens_of_a_tier_cost_as_its_input_where_no_cache_price_is_known():
    """Without any cache price, cached tokens cost as the tier's input, not as the cheaper input below the threshold."""
    price = read_price(sheet(input_cost_per_token_above_200k_tokens=4e-06))
    ((_, rates),) = price.tiers
    assert (rates.cached_input, rates.cache_write) == (4 * MICRO, 4 * MICRO)


def test_reasoning_tokens_of_a_tier_are_not_cheaper_than_their_own_price():
    """A price of reasoning tokens also applies in tiers without one."""
    price = read_price(sheet(output_cost_per_reasoning_token=9e-06, output_cost_per_token_above_200k_tokens=6e-06))
    ((_, rates),) = price.tiers
    assert rates.reasoning >= 9 * MICRO


def test_cache_writes_for_an_hour_are_within_the_worst_case():
    """Anthropic's cache writes for an hour are more expensive than for five minutes; the worst case covers them."""
    price = read_price(sheet(cache_creation_input_token_cost=1.25e-06, cache_creation_input_token_cost_above_1hr=2e-06))
    assert price.worst_case(1_000, 0) >= 2_000_000


@pytest.mark.parametrize(
    "strange",
    [
        {"input_cost_per_token_above_1hr": 5e-06},
        {"input_cost_per_token_above_xk_tokens": 5e-06},
        {"input_cost_per_token_above_200k_tokens_batches": 5e-07},
        {"input_cost_per_token_flex": 5e-07},
        {"input_cost_per_character": 5e-07},
        {"input_cost_per_image": 0.01},
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
    """Keys of other prices, and unknown ones, do not change the price of an ordinary request."""
    price = read_price(sheet(**strange))
    assert price.cost(TokenUsage(300_000, 10)) == 300_000 * 1_000 + 10 * 2_000


@pytest.mark.parametrize(
    ("own", "taken"),
    [
        ({}, "mapped"),
        ({"input_cost_per_token": None, "output_cost_per_token": None}, "mapped"),
        ({"model": "x", "rpm": 5}, "mapped"),
        ({"input_cost_per_token": 0}, "own"),
        ({"output_cost_per_image": 0.04}, "own"),
        ({"input_cost_per_second": 0.0001}, "own"),
        ({"tiered_pricing": []}, "own"),
        ({"cache_read_input_token_cost": 1e-07}, "own"),
        ({"search_context_cost_per_query": {"search_context_size_medium": 0.01}}, "own"),
        ({"regional_endpoint_uplift_multiplier": 1.1}, "own"),
        ({"output_cost_per_token": 1e-06}, "own"),
        ({"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}, "own"),
    ],
    ids=str,
)
def test_any_price_of_the_yaml_is_a_price_of_its_own(own, taken):
    """Every key that states a price counts, including zero; without one the map's entry is the sheet."""
    mapped = sheet()
    assert (own_or_mapped(own, mapped) is mapped) == (taken == "mapped")


MAPPED = {
    "input_cost_per_token": 1e-6, "input_cost_per_token_above_200k_tokens": 2e-6, "input_cost_per_token_priority": 3e-6,
    "output_cost_per_token": 4e-6, "output_cost_per_token_priority": 8e-6, "cache_read_input_token_cost": 1e-7,
    "max_tokens": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "filled"),
    [
        # An ordinary price replaces its variants, which belong to another price list.
        ({"input_cost_per_token": 5e-6}, {"output_cost_per_token", "output_cost_per_token_priority", "cache_read_input_token_cost", "max_tokens"}),
        ({"output_cost_per_token": 5e-6}, {*MAPPED} - {"output_cost_per_token", "output_cost_per_token_priority"}),
        # A variant replaces only itself.
        ({"input_cost_per_token_priority": 5e-6}, {*MAPPED} - {"input_cost_per_token_priority"}),
        ({"cache_read_input_token_cost": 5e-6}, {*MAPPED} - {"cache_read_input_token_cost"}),
        # A model with zero prices in the YAML is free.
        ({"input_cost_per_token": 0, "output_cost_per_token": "0"}, set()),
    ],
)  # fmt: skip
def test_the_map_fills_in_what_the_yaml_leaves_out(own, filled):
    """A sheet has the YAML's prices, and the map's for every price that the YAML does not state."""
    made = own_or_mapped(own, MAPPED)
    assert {key for key, value in made.items() if value == MAPPED.get(key) and key not in own} == filled
    assert {key: made[key] for key in own} == own


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
    """A model is listed if neither its entry nor LiteLLM's map has a price for it; wildcards are skipped."""
    assert unpriced_models([entry]) == (["m"] if unpriced else [])


def test_a_model_with_one_unpriced_deployment_is_listed_once():
    """A model with several deployments is listed once, in order of names, if one of them has no price."""
    entries = [
        model("b", model="openai/x"),
        model("a", model="openai/x"),
        model("b", model="openai/y"),
        model("b", model="gpt-4o-mini"),
    ]
    assert unpriced_models(entries) == ["a", "b"]


def test_the_rates_of_models_are_read_from_the_list():
    """Each name has the rates of its deployments or LiteLLM's map, unless they differ or other units are billed."""
    rates = configured_rates(
        [
            model("own", model="openai/x", input_cost_per_token=1e-06, output_cost_per_token="2e-6"),
            model("mapped", model="openai/gpt-4o-mini"),
            model("twice", model="openai/gpt-4o-mini"),
            model("twice", model="gpt-4o-mini"),
            model("differs", model="openai/gpt-4o-mini"),
            model("differs", model="openai/gpt-4o"),
            model("half-known", model="openai/gpt-4o-mini"),
            model("half-known", model="openai/y"),
            model("unknown", model="openai/y"),
            model("any", model="openai/*"),
            model("asked", model="openai/x", input_cost_per_token=1e-06, output_cost_per_token=1e-06,
                  input_cost_per_request=0.01),
        ]
    )  # fmt: skip
    assert set(rates) == {"own", "mapped", "twice"}
    assert (rates["own"].input, rates["own"].output) == (10**12, 2 * 10**12)
    assert rates["mapped"] == rates["twice"]
    assert rates["mapped"].cached_input < rates["mapped"].input


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
    """Any invalid value of model_list is ignored: LiteLLM reports the error."""
    assert isinstance(unpriced_models(models), list)
    assert configured_rates(models) == {}


def test_free_tokens_do_not_make_a_model_free_that_costs_otherwise():
    """A model with free tokens whose queries, images or seconds cost something has no price for tokens."""
    free = {"input_cost_per_token": 0, "output_cost_per_token": 0}
    assert read_price(free).is_free
    assert read_price({**free, "input_cost_per_query": 0.002}) is None
    assert read_price({**free, "output_cost_per_image": 0.0}).is_free


def test_a_service_has_its_own_keys():
    """A service tier has the prices with its suffix, also above a threshold; otherwise the ordinary prices apply."""
    price = read_price(sheet(
        cache_read_input_token_cost=1e-07,
        input_cost_per_token_priority=3e-06, output_cost_per_token_priority=4e-06,
        input_cost_per_token_above_200k_tokens=5e-06, input_cost_per_token_above_200k_tokens_priority=7e-06,
        output_cost_per_token_above_200k_tokens=8e-06,
    ))  # fmt: skip
    ((_, above),) = price.served_as("priority").tiers
    base = price.served_as("priority").base
    assert (base.input, base.output, base.cached_input) == (3 * MICRO, 4 * MICRO, MICRO // 10)
    assert (above.input, above.output) == (7 * MICRO, 8 * MICRO)
    assert price.served_as("fast").base == base
    assert price.served_as("flex") is None
    assert price.base.input == MICRO


def test_a_service_whose_price_is_nonsense_has_none():
    """A service tier with an invalid price is unknown; the ordinary tier is known."""
    price = read_price(sheet(input_cost_per_token_priority="x", input_cost_per_token_flex=1e-07))
    assert price.served_as("priority") is None
    assert price.served_as("flex").base.output == 2 * MICRO


def test_sounds_and_images_have_their_own_keys():
    """Audio and image tokens have the prices of the sheet, or else those of other tokens."""
    base = read_price(sheet(
        input_cost_per_audio_token=4e-05, output_cost_per_audio_token=8e-05, input_cost_per_image_token=5e-06,
        cache_read_input_token_cost=5e-07, cache_read_input_audio_token_cost=6e-07,
    )).base  # fmt: skip
    assert (base.audio_input, base.audio_output, base.image_input) == (40 * MICRO, 80 * MICRO, 5 * MICRO)
    assert (base.cached_input, base.cached_audio, base.image_output) == (MICRO // 2, MICRO * 3 // 5, 2 * MICRO)


def test_keeping_for_an_hour_has_a_price_above_a_threshold_too():
    """Cache writes for an hour have their own price, also in the tier that states one."""
    price = read_price(sheet(
        cache_creation_input_token_cost=1.25e-06, cache_creation_input_token_cost_above_1hr=2e-06,
        cache_creation_input_token_cost_above_200k_tokens=2.5e-06, cache_creation_input_token_cost_above_1hr_above_200k_tokens=4e-06,
    ))  # fmt: skip
    ((_, above),) = price.tiers
    assert (price.base.cache_write, price.base.cache_write_1h) == (MICRO * 5 // 4, 2 * MICRO)
    assert (above.cache_write, above.cache_write_1h) == (MICRO * 5 // 2, 4 * MICRO)


@pytest.mark.parametrize(("threshold", "key"), [(512_000, "_above_512k_tokens"), (900, "_above_900_tokens")])
def test_thresholds_are_written_in_two_ways(threshold, key):
    """A threshold may be written in thousands of tokens or in tokens (C6)."""
    price = read_price(sheet(**{f"input_cost_per_token{key}": 9e-06}))
    assert [found for found, _ in price.tiers] == [threshold]


@pytest.mark.parametrize("own", [{"litellm_provider": "xai"}, {"model": "xai/grok"}], ids=str)
def test_xai_asks_for_more_as_soon_as_the_threshold_is_reached(own):
    """xAI's higher rates already apply at the threshold."""
    price = read_price(sheet(input_cost_per_token_above_200k_tokens=9e-06, **own))
    assert price.cost(TokenUsage(199_999)) == 199_999 * 1_000
    assert price.cost(TokenUsage(200_000)) == 200_000 * 9_000


RANGES = [
    {"range": [32_000, 128_000.0], "input_cost_per_token": 2e-06, "output_cost_per_token": 4e-06},
    {"range": [0, 32_000], "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "cache_read_input_token_cost": 1e-07},
]  # fmt: skip


def test_a_table_of_ranges_is_a_price():
    """Rates by ranges of input tokens, as Alibaba's models have, are tiers; the last range is open-ended."""
    price = read_price({"tiered_pricing": RANGES})
    assert price.cost(TokenUsage(32_000, 1)) == 32_000 * 1_000 + 2_000
    assert price.cost(TokenUsage(32_001, 1)) == 32_001 * 2_000 + 4_000
    assert price.cost(TokenUsage(500_000, 0)) == 500_000 * 2_000
    assert price.cost(TokenUsage(10, 0, 10)) == 1_000


@pytest.mark.parametrize(
    "ranges",
    [[{}], [None], ["x"], [{"range": [0]}], [{"range": ["a", "b"]}], [{"range": [0, 5]}], [{"range": [-1, 5], "input_cost_per_token": 1e-6}], [{"range": [float("nan"), 5]}]],
    ids=str,
)  # fmt: skip
def test_a_strange_table_is_no_price(ranges):
    """An invalid table is not a price, and raises nothing."""
    assert read_price({"tiered_pricing": ranges, "output_cost_per_token": 1e-06}) is None


@pytest.mark.parametrize(
    ("route", "entry", "units", "cost"),
    [
        ("image", {"output_cost_per_image": 0.04}, Units(images=2), 80_000_000),
        ("image", {"input_cost_per_image": 0.04}, Units(images=2), 80_000_000),
        ("image", {"output_cost_per_image": 0.04, "input_cost_per_token": 0, "output_cost_per_token": 0}, Units(images=1), 40_000_000),
        ("speech", {"input_cost_per_character": 1.5e-05}, Units(characters=100), 1_500_000),
        ("rerank", {"input_cost_per_query": 0.002, "input_cost_per_token": 0.0, "output_cost_per_token": 0.0}, Units(queries=3), 6_000_000),
        ("text", {"input_cost_per_request": 0.005, "input_cost_per_token": 0, "output_cost_per_token": 0}, Units(), 5_000_000),
    ],
)  # fmt: skip
def test_what_is_billed_by_the_piece_has_a_price(route, entry, units, cost):
    """Images, characters, queries and requests have prices on the route that bills them; other zeros are ignored."""
    price = read_price(entry, route)
    assert price.cost(TokenUsage(), units=units) == cost == price.worst_case(None, None, PriceExposure(units=units))
    if route != "text":
        assert read_price(entry, "text") is None
    nonsense = {key: float("nan") if value else value for key, value in entry.items()}
    assert read_price(nonsense, route) is None


def test_an_image_model_that_is_billed_by_the_token_has_a_price():
    """If only image tokens have an output price, it is the price of the output."""
    entry = {"input_cost_per_token": 5e-06, "input_cost_per_image_token": 1e-05, "output_cost_per_image_token": 4e-05}
    price = read_price(entry, "image")
    assert price.cost(TokenUsage(10, 100, image_input_tokens=4)) == 6 * 5_000 + 4 * 10_000 + 100 * 40_000
    assert price.worst_case(10, None) is None


def test_moderation_is_free_where_no_price_says_otherwise():
    """Moderation is free everywhere, so no list has a price for it; a price in a sheet still counts."""
    assert read_price({}, "moderation").is_free
    assert not read_price(sheet(), "moderation").is_free


@pytest.mark.parametrize(
    ("route", "entry", "priced"),
    [
        ("image", {"input_cost_per_pixel": 1e-08}, True),
        ("other", {"output_cost_per_video_per_second": 0.1}, True),
        ("other", {"ocr_cost_per_page": 0.001}, True),
        ("other", {"output_cost_per_second_1080p": 0.1}, True),
        ("transcription", {"input_cost_per_second": 0.0}, False),
        ("text", {"input_cost_per_second": 0.0001}, False),
        ("image", {}, False),
    ],
)
def test_what_only_litellm_can_count_is_told_apart_from_what_has_no_price(route, entry, priced):
    """Only LiteLLM can count seconds, pixels and pages: such a request has a price, but no bound."""
    assert is_priced_by_litellm(entry, route) == priced
    assert read_price(entry, route) is None


def test_every_call_type_has_a_route():
    """Chat in all its forms is priced as text, an unknown call type as something else."""
    assert {route_of(kind) for kind in ("acompletion", "aresponses", "anthropic_messages", "agenerate_content")} == {
        "text"
    }
    assert [route_of(kind) for kind in ("aembedding", "image_generation", "aspeech", "transcription", "arerank", "amoderation")] == [
        "embedding", "image", "speech", "transcription", "rerank", "moderation",
    ]  # fmt: skip
    assert route_of("avideo_generation") == "other"


def test_every_entry_of_litellms_map_is_read():
    """Each of LiteLLM's over 1,000 entries is read on every route, and nearly all chat models have a price (C1)."""
    entries = shipped_price_map()
    routes = ("text", "embedding", "image", "speech", "transcription", "rerank", "moderation", "other")
    assert len(entries) > 1_000
    for entry in entries.values():
        for route in routes:
            price = read_price(entry, route)
            assert price is None or price.worst_case(10**6, 10**6, PriceExposure(True, True, ("priority", "flex"))) >= 0
    chat = [entry for entry in entries.values() if entry.get("mode") == "chat"]
    assert sum(read_price(entry) is not None for entry in chat) / len(chat) > 0.9


KEYS = [
    f"{key}{above}{service}"
    for key in ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", "cache_creation_input_token_cost",
                "cache_creation_input_token_cost_above_1hr", "output_cost_per_reasoning_token", "input_cost_per_audio_token",
                "output_cost_per_audio_token", "input_cost_per_image_token", "cache_read_input_audio_token_cost")
    for above in ("", "_above_128k_tokens", "_above_200k_tokens")
    for service in ("", "_flex", "_priority")
]  # fmt: skip
amounts = st.floats(0, 1e-3) | st.sampled_from([None, 0, "2e-6", "x", -1.0, float("nan")])
sheets = st.dictionaries(
    st.sampled_from([*KEYS, "output_cost_per_image", "input_cost_per_image", "input_cost_per_character", "input_cost_per_query", "input_cost_per_request"]),
    amounts, max_size=12,
).flatmap(lambda found: st.builds(
    lambda first, second: {"input_cost_per_token": first, "output_cost_per_token": second, **found}, st.floats(0, 1e-3), st.floats(0, 1e-3),
))  # fmt: skip
tokens = st.integers(0, 400_000)


@given(sheets, st.sampled_from(["text", "embedding", "image", "speech", "transcription", "rerank"]), st.data())
def test_no_sheet_makes_a_usage_dearer_than_its_worst_case(found, route, data):
    """With any sheet, a reported usage within the bounds costs at most the held amount (C4, C6, C7)."""
    price = read_price(found, route)
    if price is None:
        return
    input_bound, output_bound = data.draw(tokens), data.draw(tokens)
    most = Units(*(data.draw(st.integers(0, 1_000)) for _ in Units._fields))
    usage = TokenUsage(
        data.draw(st.integers(0, input_bound)),
        data.draw(st.integers(0, output_bound)),
        *(data.draw(tokens) for _ in TokenUsage._fields[2:]),
    )
    units = Units(*(data.draw(st.integers(0, count)) for count in most))
    services = tuple(data.draw(st.sets(st.sampled_from(["flex", "priority", "fast"]))))
    service = data.draw(st.sampled_from([None, "unknown", *services]))
    cost = price.cost(usage, service=service, units=units)
    assert cost is None or cost <= price.worst_case(
        input_bound, output_bound, PriceExposure(True, True, services, most)
    )
