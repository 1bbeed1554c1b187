"""Charges: the cost of a finished request, and its outcome."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from usage_plugin.domain.prices import NO_ADJUSTMENT, Price, ToolCalls, ToolRates, UnitRates, Units
from usage_plugin.proxy.charges import CrossCheck, disagreement, read_outcome
from usage_plugin.proxy.usage_parsing import Served
from usage_plugin.testing.builders import make_event, make_rates

CHAT = {
    "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 8, "accepted_prediction_tokens": 0},
}  # fmt: skip


class OneDeployment:
    """A price book with one deployment behind every name."""

    def __init__(self, price, deployment_id="dep-1"):
        self._price = price
        self._id = deployment_id

    def deployments(self, model, team):
        return (
            SimpleNamespace(
                model=model, deployment_id=self._id, provider="openai", served_model="openai/gpt", service=None, price_on=lambda call_type: self._price,
                price_of_answer=lambda answered, call_type: None, states_price=False, picks_model=False, adjustment=NO_ADJUSTMENT,
            ),
        )  # fmt: skip


class NoDeployment:
    def deployments(self, model, team):
        return ()


PRICE = Price(make_rates(10**12, 10**13, cached_input=10**11))
CLIENT_MAY_SEND = Price(make_rates())
SEARCHING = Price(make_rates(10**12, 10**13, cached_input=10**11), tools=ToolRates(search=10**16))
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
        (OneDeployment(PRICE), CHAT, {"litellm_cost": 0.000246}, 40 * 10**3 + 60 * 10**2 + 20 * 10**4, "computed"),
        (OneDeployment(PRICE), CHAT, {"litellm_cost": 0.000247}, 246_000, "computed"),
        (OneDeployment(PRICE), CHAT, {"litellm_cost": 0.5}, 500_000_000, "litellm"),
        (OneDeployment(PRICE), CHAT, {"litellm_cost": 0.0001}, 246_000, "computed"),
        (OneDeployment(PRICE), CHAT, {"litellm_cost": None}, 246_000, "computed"),
        (OneDeployment(PRICE), CHAT, {"cache_hit": True}, 0, "none"),
        (OneDeployment(CLIENT_MAY_SEND), CHAT, {"litellm_cost": 0.0}, 0, "computed"),
        (OneDeployment(CLIENT_MAY_SEND), {}, {"litellm_cost": None}, 0, "computed"),
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
        (OneDeployment(SEARCHING), CHAT, {"tools": ToolCalls(searches=3), "litellm_cost": None}, 30_246_000, "computed"),
        (OneDeployment(SEARCHING), {**CHAT, "server_tool_use": {"web_search_requests": 2}}, {"litellm_cost": None}, 20_246_000, "computed"),
        (OneDeployment(PICTURE), {}, {"units": Units(images=2), "litellm_cost": 0.0}, 80_000_000, "computed"),
        (OneDeployment(PICTURE), {"input_tokens": 5, "output_tokens": 900}, {"units": Units(images=2), "litellm_cost": 0.0}, 80_000_000, "computed"),
        (OneDeployment(PICTURE), {}, {"litellm_cost": 0.1}, 100_000_000, "litellm"),
        (OneDeployment(PICTURE), {}, {"units": Units(images=2), "cache_hit": True}, 0, "none"),
    ],
)  # fmt: skip
def test_costs_are_computed_or_litellms_or_unknown(prices, usage, changes, cost, source):
    """A cost is computed if a price is known, else LiteLLM's figure if it has one, else unknown and marked so."""
    outcome = read_outcome(prices, served(**changes), usage, make_event())
    assert (outcome.cost, outcome.cost_source) == (cost, source)


@pytest.mark.parametrize("status", ["success", "cancelled"])
@pytest.mark.parametrize(
    ("prices", "usage", "as_reserved"),
    [(PRICE, {}, True), (PRICE, {"prompt_tokens": 0, "completion_tokens": 0}, True), (PRICE, CHAT, False), (CLIENT_MAY_SEND, {}, False), (PICTURE, {}, True), (None, {}, False)],
)  # fmt: skip
def test_a_success_of_which_nothing_is_known_is_charged_as_reserved(prices, usage, as_reserved, status):
    """If neither the provider nor LiteLLM reports the usage of a paid answer, it costs the held amount (C2)."""
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
    """The tier in an answer decides the price (C7); without one, and for an estimate, the requested tier is billed."""
    outcome = read_outcome(
        OneDeployment(TIERED),
        served(service=told, litellm_cost=None),
        {"prompt_tokens": 100, **usage},
        make_event(service_tier=asked),
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
    """Costs differ if they are more than 1 % and more than a micro-dollar apart; an unknown cost never differs (C5)."""
    assert disagreement(computed, litellm) == disagrees


@pytest.mark.parametrize(
    ("policy", "figure", "cost", "source"),
    [
        ("higher", 0.0005, 500_000, "litellm"), ("higher", 0.0001, 246_000, "computed"),
        ("computed", 0.0005, 246_000, "computed"), ("litellm", 0.0001, 100_000, "litellm"),
    ],
)  # fmt: skip
def test_a_disputed_cost_is_charged_as_the_policy_says(policy, figure, cost, source):
    """If the computed and LiteLLM's cost differ, the higher is charged by default, and the charge is marked."""
    outcome = read_outcome(OneDeployment(PRICE), served(litellm_cost=figure), CHAT, make_event(), on_disputed=policy)
    assert (outcome.cost, outcome.cost_source) == (cost, source)
    assert outcome.disputed_by == abs(246_000 - round(figure * 1e9))
    assert "input_tokens 100" in outcome.disputed


@pytest.mark.parametrize("figure", [0.000246, 0.0, None])
def test_an_undisputed_cost_says_nothing(figure):
    """A cost is not disputed if LiteLLM's figure agrees, is missing, or is zero, which has no meaning (B1)."""
    outcome = read_outcome(OneDeployment(PRICE), served(litellm_cost=figure), CHAT, make_event())
    assert (outcome.disputed_by, outcome.disputed, outcome.cost) == (0, "", 246_000)


def test_a_disputed_cost_is_logged_once_for_each_model(caplog):
    """A model that LiteLLM prices differently is logged the first time, and the list of such models is bounded."""
    check = CrossCheck()
    check.log_once(read_outcome(OneDeployment(PRICE), served(model="c", litellm_cost=0.000246), CHAT, make_event()))
    for model in ["a", "b", "a", *map(str, range(5_000))]:
        check.log_once(read_outcome(OneDeployment(PRICE), served(model=model), CHAT, make_event()))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1_000
    for line, model in zip(told, ("a", "b", "0"), strict=False):
        assert all(text in line for text in ("cost.disputed", "0.000246", "0.50"))
        assert re.search(rf"model\W+{model}\b", line)


def test_an_outcome_names_who_served():
    """An outcome names the billed model, the deployment, the provider, and the provider's name for the model."""
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
    """The stored usage has the provider's numbers, flattened, and nothing that could be a prompt or an answer."""
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
    """The status, error and estimate of a request are in its outcome."""
    outcome = read_outcome(
        OneDeployment(PRICE), served(), CHAT, make_event(), status="failure", error="Timeout", estimated=True
    )
    assert (outcome.status, outcome.error, outcome.estimated) == ("failure", "Timeout", True)
