from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from usage_plugin.domain.prices import Price, UnitRates, Units
from usage_plugin.domain.usage import TokenUsage
from usage_plugin.proxy.outcomes import (
    CrossCheck,
    Served,
    disagreement,
    inline_usage,
    logged_usage,
    read_outcome,
    read_tokens,
    served_inline,
    served_logged,
)
from usage_plugin.testing.builders import make_event, make_rates

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
    ("usage", "anthropic", "tokens"),
    [
        (CHAT, False, TokenUsage(100, 20, 60, 0, 8)),
        (RESPONSES, False, TokenUsage(100, 20, 60, 0, 8)),
        (ANTHROPIC, True, TokenUsage(100, 20, 60, 10, 0)),
        # LiteLLM's form of an Anthropic answer on the chat route: the prompt holds the cached tokens already.
        ({"prompt_tokens": 100, "completion_tokens": 20, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10}, False, TokenUsage(100, 20, 60, 10, 0)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10}, True, TokenUsage(100, 20, 60, 10, 0)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 60, "cache_creation_tokens": 10}}, False, TokenUsage(100, 20, 60, 10, 0)),
        ({"prompt_tokens": 7, "total_tokens": 7}, False, TokenUsage(7, 0)),
        ({**ANTHROPIC, "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6}}, True, TokenUsage(100, 20, 60, 10, 0, 6)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10, "cache_creation_token_details": {"ephemeral_1h_input_tokens": 6}}}, False, TokenUsage(100, 20, 60, 10, 0, 6)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"audio_tokens": 30, "image_tokens": 5, "cached_tokens": 60, "cached_tokens_details": {"audio_tokens": 10, "text_tokens": 50}}, "completion_tokens_details": {"audio_tokens": 9, "image_tokens": 3}}, False,
         TokenUsage(100, 20, 60, 0, 0, 0, 10, 20, 5, 9, 3)),
        ({"input_tokens": 50, "output_tokens": 20, "input_tokens_details": {"text_tokens": 40, "image_tokens": 10}}, False, TokenUsage(50, 20, image_input_tokens=10)),
        ({}, False, TokenUsage()),
        ({}, True, TokenUsage()),
    ],
)  # fmt: skip
def test_tokens_are_read_from_every_providers_form(usage, anthropic, tokens):
    """OpenAI's chat and Responses forms and Anthropic's become the same counts, cached tokens within the input."""
    assert read_tokens(usage, anthropic=anthropic) == tokens


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": None},
        {"prompt_tokens": "many", "completion_tokens": [], "prompt_tokens_details": "x"},
        {"prompt_tokens": -5, "completion_tokens": float("nan"), "prompt_tokens_details": {"cached_tokens": None}},
        {"prompt_tokens": True, "completion_tokens_details": {"reasoning_tokens": "8"}},
        {"input_tokens_details": [1], "output_tokens_details": 5},
        {"cache_read_input_tokens": {}, "cache_creation_input_tokens": -1},
    ],
)
@pytest.mark.parametrize("anthropic", [False, True])
def test_nulls_and_nonsense_count_as_none(usage, anthropic):
    """Null, negative, and fields of the wrong type are no tokens and no error."""
    assert read_tokens(usage, anthropic=anthropic) == TokenUsage()


def test_a_null_in_the_other_providers_field_changes_nothing():
    """A null under OpenAI's name does not make Anthropic's cached tokens vanish."""
    assert read_tokens({**ANTHROPIC, "prompt_tokens": None}, anthropic=True) == TokenUsage(100, 20, 60, 10, 0)


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


@given(usages, st.booleans())
def test_no_usage_is_too_strange_to_be_read(usage, anthropic):
    """Whatever a provider reports is read as counts that are whole, not negative and small enough to be stored."""
    assert all(isinstance(count, int) and 0 <= count < 2**62 for count in read_tokens(usage, anthropic=anthropic))


def test_pydantic_models_are_read_like_mappings():
    """LiteLLM hands usage over as models, with models in them, as well as mappings."""

    class Details(BaseModel):
        cached_tokens: int = 60

    class Usage(BaseModel):
        prompt_tokens: int = 100
        completion_tokens: int = 20
        prompt_tokens_details: Details = Details()

    assert read_tokens(inline_usage(SimpleNamespace(usage=Usage())), anthropic=False) == TokenUsage(100, 20, 60)
    assert read_tokens({"prompt_tokens": 100, "prompt_tokens_details": Details()}, anthropic=False) == TokenUsage(
        100, 0, 60
    )


@pytest.mark.parametrize(
    "answer", [None, {}, {"usage": None}, SimpleNamespace(), SimpleNamespace(usage=None), "text", 5]
)
def test_an_answer_without_usage_has_none(answer):
    """An answer without usage, whatever it is, has an empty one."""
    assert inline_usage(answer) == {}


def test_geminis_own_usage_is_read():
    """Gemini counts thoughts, and what its tools read, beside the rest; sounds and images by their kind."""
    usage = {
        "promptTokenCount": 100, "toolUsePromptTokenCount": 7, "cachedContentTokenCount": 40, "candidatesTokenCount": 20, "thoughtsTokenCount": 5,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 70}, {"modality": "AUDIO", "tokenCount": 30}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}], "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 9}],
        "trafficType": "ON_DEMAND_PRIORITY",
    }  # fmt: skip
    found = inline_usage({"usageMetadata": usage})
    assert read_tokens(found, anthropic=False) == TokenUsage(107, 25, 40, 0, 5, 0, 10, 20, 0, 0, 9)
    assert found["service_tier"] == "priority"
    for strange in (
        {"promptTokensDetails": "x"},
        {"promptTokensDetails": [None, 5]},
        {"promptTokenCount": None},
        {"trafficType": 5},
    ):
        assert read_tokens(inline_usage({"usageMetadata": strange}), anthropic=False) == TokenUsage()


def test_logged_usage_prefers_the_whole():
    """A callback's usage is the provider's object, or else the two counts that LiteLLM logs."""
    assert logged_usage({"standard_logging_object": {"metadata": {"usage_object": CHAT}, "prompt_tokens": 1}}) == CHAT
    assert logged_usage({"standard_logging_object": {"prompt_tokens": 7, "completion_tokens": 3}}) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
    }
    assert not any(logged_usage({}).values())
    assert not any(logged_usage({"standard_logging_object": None}).values())


# ── what it cost ─────────────────────────────────────────────────────────────────────────────────────────────────────


class OneDeployment:
    """A price book with one deployment behind every name."""

    def __init__(self, price, deployment_id="dep-1"):
        self._price = price
        self._id = deployment_id

    def deployments(self, model, team):
        return (
            SimpleNamespace(
                model=model, deployment_id=self._id, provider="openai", served_model="openai/gpt", service=None, price_on=lambda call_type: self._price
            ),
        )  # fmt: skip


class NoDeployment:
    def deployments(self, model, team):
        return ()


PRICE = Price(make_rates(10**12, 10**13, cached_input=10**11))
FREE = Price(make_rates())
PICTURE = Price(None, units=UnitRates(image=4 * 10**16))
TIERED = Price(
    make_rates(10**12), services=(("priority", Price(make_rates(2 * 10**12))), ("flex", Price(make_rates(10**11))))
)


def served(**changes):
    return Served(
        **{
            "model": "gpt",
            "deployment_id": "dep-1",
            "provider": "openai",
            "served_model": "openai/gpt",
            "litellm_cost": 0.5,
            "cache_hit": False,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("prices", "usage", "changes", "cost", "source"),
    [
        (OneDeployment(PRICE), CHAT, {}, 40 * 10**3 + 60 * 10**2 + 20 * 10**4, "computed"),
        (OneDeployment(PRICE), CHAT, {"litellm_cost": None}, 246_000, "computed"),
        (OneDeployment(PRICE), CHAT, {"cache_hit": True}, 0, "none"),
        (OneDeployment(FREE), CHAT, {}, 0, "computed"),
        (OneDeployment(FREE), {}, {"litellm_cost": None}, 0, "computed"),
        (OneDeployment(PRICE), {}, {"litellm_cost": 0.25}, 250_000_000, "litellm"),
        (OneDeployment(PRICE), {}, {"litellm_cost": 0.0}, 0, "none"),
        (OneDeployment(None), CHAT, {"litellm_cost": 0.25}, 250_000_000, "litellm"),
        (OneDeployment(None), CHAT, {"litellm_cost": 0.0}, None, "unpriced"),
        (OneDeployment(None), CHAT, {"litellm_cost": None}, None, "unpriced"),
        (OneDeployment(None), CHAT, {"litellm_cost": float("nan")}, None, "unpriced"),
        (OneDeployment(None), CHAT, {"litellm_cost": float("inf")}, None, "unpriced"),
        (OneDeployment(None), CHAT, {"litellm_cost": -1.0}, None, "unpriced"),
        (OneDeployment(None), CHAT, {"litellm_cost": "0.5"}, None, "unpriced"),
        (OneDeployment(None), CHAT, {"litellm_cost": 1e300}, None, "unpriced"),
        (NoDeployment(), CHAT, {"litellm_cost": None}, None, "unpriced"),
        (OneDeployment(None), {}, {"litellm_cost": None}, 0, "none"),
        (OneDeployment(PRICE), CHAT, {"litellm_cost": 0.0}, 246_000, "computed"),
        (OneDeployment(PRICE), CHAT, {"tool_cost": 0.01}, 10_246_000, "computed"),
        (OneDeployment(PRICE), CHAT, {"tool_cost": "many"}, 246_000, "computed"),
        (OneDeployment(PICTURE), {}, {"units": Units(images=2), "litellm_cost": 0.0}, 80_000_000, "computed"),
        (OneDeployment(PICTURE), {"input_tokens": 5, "output_tokens": 900}, {"units": Units(images=2)}, 80_000_000, "computed"),
        (OneDeployment(PICTURE), {}, {"litellm_cost": 0.1}, 100_000_000, "litellm"),
        (OneDeployment(PICTURE), {}, {"units": Units(images=2), "cache_hit": True}, 0, "none"),
    ],
)  # fmt: skip
def test_costs_are_computed_or_litellms_or_unknown(prices, usage, changes, cost, source):
    """A cost is our arithmetic where a price is known, else LiteLLM's figure if it says something, else unknown and marked so."""
    outcome = read_outcome(prices, served(**changes), usage, make_event())
    assert (outcome.cost, outcome.cost_source) == (cost, source)


@pytest.mark.parametrize("status", ["success", "cancelled"])
@pytest.mark.parametrize(
    ("prices", "usage", "as_reserved"),
    [(PRICE, {}, True), (PRICE, {"prompt_tokens": 0, "completion_tokens": 0}, True), (PRICE, CHAT, False), (FREE, {}, False), (PICTURE, {}, True), (None, {}, False)],
)  # fmt: skip
def test_a_success_of_which_nothing_is_known_is_charged_as_reserved(prices, usage, as_reserved, status):
    """Where neither the provider nor LiteLLM says what a paid answer used, it costs what was held (C2)."""
    outcome = read_outcome(OneDeployment(prices), served(litellm_cost=0.0), usage, make_event(), status=status)
    assert outcome.as_reserved == (as_reserved and status == "success")


@pytest.mark.parametrize(
    ("told", "usage", "asked", "cost", "service", "estimated"),
    [
        (None, {}, None, 100_000, None, False),
        ("priority", {}, None, 200_000, "priority", False),
        ("priority", {}, "priority", 200_000, "priority", False),
        ("Flex", {}, None, 10_000, "flex", False),
        ("default", {}, "priority", 100_000, None, False),
        (None, {"service_tier": "standard"}, "priority", 100_000, None, False),
        (None, {"service_tier": "priority"}, None, 200_000, "priority", False),
        (None, {}, "priority", 200_000, "priority", True),
        ("ultrafast", {}, None, 100_000, "ultrafast", True),
        ("scale", {}, None, 100_000, None, False),
    ],
)
def test_the_service_that_was_served_is_billed(told, usage, asked, cost, service, estimated):
    """The tier an answer tells decides the price (C7); one that nobody tells is billed as asked, and so is an estimate."""
    outcome = read_outcome(
        OneDeployment(TIERED), served(service=told), {"prompt_tokens": 100, **usage}, make_event(service_tier=asked)
    )
    assert (outcome.cost, outcome.service_tier, outcome.estimated) == (cost, service, estimated)


@pytest.mark.parametrize(
    ("computed", "litellm", "disagrees"),
    [
        (100_000, 100_000, False), (100_000, 101_000, False), (100_000, 101_001, False), (100_000, 101_100, True), (100_000, 98_900, True),
        (0, 1_000, False), (0, 1_001, True), (100, 1_000, False), (None, 100, False), (100, None, False), (10**12, 2 * 10**12, True),
    ],
)  # fmt: skip
def test_costs_disagree_above_a_hundredth_and_a_micro_dollar(computed, litellm, disagrees):
    """Two costs differ if they are more than 1 % and more than a micro-dollar apart; what is unknown agrees (C5)."""
    assert disagreement(computed, litellm) == disagrees


@pytest.mark.parametrize(
    ("figure", "litellm_cost", "disagrees"), [(0.000246, 246_000, False), (0.0005, 500_000, True), (0.0, None, False), (None, None, False)]
)  # fmt: skip
def test_an_outcome_knows_what_litellm_says(figure, litellm_cost, disagrees):
    """LiteLLM's figure stands beside ours; its zero says nothing (B1)."""
    outcome = read_outcome(OneDeployment(PRICE), served(litellm_cost=figure), CHAT, make_event())
    assert (outcome.litellm_cost, outcome.disagrees, outcome.cost) == (litellm_cost, disagrees, 246_000)


def test_a_disagreement_is_told_once_for_each_model(caplog):
    """A model that LiteLLM prices otherwise is logged the first time, and no endless list of them is kept."""
    check = CrossCheck()
    check.look(read_outcome(OneDeployment(PRICE), served(model="c", litellm_cost=0.000246), CHAT, make_event()))
    for model in ["a", "b", "a", *map(str, range(5_000))]:
        check.look(read_outcome(OneDeployment(PRICE), served(model=model), CHAT, make_event()))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1_000
    for line, model in zip(told, ("a", "b", "0"), strict=False):
        assert all(text in line for text in ("cost.disagrees", "0.000246", "0.50"))
        assert re.search(rf"model\W+{model}\b", line)


@given(
    data=st.none() | st.lists(st.integers(), max_size=3) | st.text(max_size=3),
    meta=st.none() | st.dictionaries(st.sampled_from(["billed_units"]), st.none() | st.dictionaries(st.sampled_from(["search_units"]), numbers)),
    spoken=st.none() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
)  # fmt: skip
def test_units_are_counted_in_whatever_comes(data, meta, spoken):
    """Images, queries and characters are counted where there are any, and nothing raises."""
    units = served_inline({"input": spoken}, SimpleNamespace(data=data, meta=meta)).units
    assert units.images == (len(data) if isinstance(data, list) else 0)
    assert units.characters == (len(spoken) if isinstance(spoken, str) else 0)
    assert units.queries >= 0


def test_an_outcome_names_who_served():
    """An outcome names the model that was billed, the deployment, the provider and what the provider calls it."""
    outcome = read_outcome(OneDeployment(PRICE), served(model="fallback"), CHAT, make_event(model="asked"))
    assert (outcome.model, outcome.served_model, outcome.deployment, outcome.provider) == (
        "fallback",
        "openai/gpt",
        "dep-1",
        "openai",
    )
    unnamed = read_outcome(
        OneDeployment(PRICE), served(model=None, served_model=None, provider=None), CHAT, make_event(model="asked")
    )
    assert (unnamed.model, unnamed.served_model, unnamed.provider) == ("asked", "openai/gpt", "openai")


def test_an_outcome_keeps_numbers_and_no_text():
    """The usage that is kept has the provider's numbers, flattened, and nothing that could be a prompt or an answer."""
    usage = {**CHAT, "note": "a secret", "list": ["a secret"], "a secret": 5, "price": 1.5, "flag": True, "none": None}
    kept = read_outcome(OneDeployment(PRICE), served(), usage, make_event()).usage
    assert kept == {
        "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, "prompt_tokens_details.cached_tokens": 60,
        "completion_tokens_details.reasoning_tokens": 8,
    }  # fmt: skip
    assert "secret" not in repr(kept)


def test_a_usage_of_endless_fields_is_cut():
    """However many fields a provider sends, a bounded number is kept."""
    usage = {f"field_{number}": number + 1 for number in range(10_000)}
    assert len(read_outcome(OneDeployment(PRICE), served(), usage, make_event()).usage) <= 40


def test_status_error_and_estimate_are_passed_on():
    """How a request ended stands in its outcome."""
    outcome = read_outcome(
        OneDeployment(PRICE), served(), CHAT, make_event(), status="failure", error="Timeout", estimated=True
    )
    assert (outcome.status, outcome.error, outcome.estimated) == ("failure", "Timeout", True)


# ── what LiteLLM says of who served ──────────────────────────────────────────────────────────────────────────────────


def test_who_served_is_read_while_the_answer_is_on_its_way():
    """The group, deployment, provider and cost are found in the answer's hidden parameters and the request's metadata."""
    answer = SimpleNamespace(_hidden_params={"model_id": "dep-1", "response_cost": 0.25, "cache_hit": True})
    logging = SimpleNamespace(model_call_details={
        "custom_llm_provider": "openai", "litellm_params": {"metadata": {"model_group": "gpt", "deployment": "openai/gpt-4o"}},
    })  # fmt: skip
    assert served_inline({"litellm_logging_obj": logging}, answer) == Served(
        "gpt", "dep-1", "openai", "openai/gpt-4o", 0.25, True
    )


def test_who_served_is_read_from_a_callback():
    """The same is found in what a callback gets, on routes that keep it in either metadata."""
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
    """Whatever LiteLLM leaves out is None, and no error."""
    found = served_logged(kwargs)
    assert (found.model, found.deployment_id, found.provider, found.cache_hit) == (None, None, None, False)
    for answer in (None, {}, SimpleNamespace(_hidden_params=None), {"_hidden_params": {"model_id": None}}):
        assert served_inline({}, answer).deployment_id is None
