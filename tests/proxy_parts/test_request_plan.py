"""The amount a request is held at: its bounds at the prices of every deployment that may serve it."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usage_plugin.config import ActiveConfig, Config
from usage_plugin.domain.subjects import Subjects
from usage_plugin.proxy.body_fields import NESTED, OUTPUT_FIELDS
from usage_plugin.tracking.admission.decisions import unheld

MICRO = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}
DEAR = {**MICRO, "input_cost_per_token_priority": 3e-06, "output_cost_per_token_priority": 6e-06, "input_cost_per_token_flex": 1e-07}  # fmt: skip
SPOKEN = {**MICRO, "input_cost_per_audio_token": 1e-05, "output_cost_per_audio_token": 2e-05}
TEXT = {"messages": [{"role": "user", "content": "x" * 1_000}], "max_tokens": 100}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
URL = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def planner_of(found, *, fallbacks=(), matching=()):
    """Return a planner for these deployments, and for limits of which `matching` match every request."""
    from usage_plugin.proxy.request_plan import RequestPlanner  # noqa: PLC0415  # imports LiteLLM

    prices = SimpleNamespace(
        deployments=lambda model, team: found.get(model, ()),
        fallbacks=lambda model, data: list(fallbacks),
        is_listed=lambda model: True,
        mapped=lambda provider, model: None,
    )
    limits = SimpleNamespace(matching=lambda *_: matching, may_stop_spending=lambda _: bool(matching))
    clock = SimpleNamespace(now=lambda: 1)
    return RequestPlanner(prices, SimpleNamespace(limits=limits), ActiveConfig(Config(), enforce=True), clock)


@pytest.fixture
def ask(litellm):
    """Return a function that plans a request which one or several deployments may serve."""
    from usage_plugin.proxy.price_book import Deployment  # noqa: PLC0415  # imports LiteLLM

    def ask(body, *sheets, kind="acompletion", fallback=None, **facts):
        found = {"m": [Deployment("m", provider="openai", sheet=sheet, **facts) for sheet in sheets]}
        found["other"] = [Deployment("other", provider="openai", sheet=fallback or {})]
        planner = planner_of(found, fallbacks=["other"] if fallback else [])
        return planner.plan(Subjects(user="ann"), {"model": "m", **body}, kind).ask

    return ask


def worst(found):
    (candidate,) = found.primary
    return candidate.worst_cost


def test_a_request_is_held_at_its_dearest_deployment(ask):
    """Of deployments with the same billing the most expensive counts; one without a price makes the cost unknown."""
    cheap = worst(ask(TEXT, MICRO))
    assert cheap == ask(TEXT, MICRO).input_tokens * 1_000 + 100 * 2_000
    dear = {"input_cost_per_token": 5e-06, "output_cost_per_token": 5e-06}
    assert worst(ask(TEXT, MICRO, dear)) == worst(ask(TEXT, dear, MICRO)) == worst(ask(TEXT, dear)) > cheap
    assert worst(ask(TEXT, MICRO, {})) is None
    found = ask(TEXT, MICRO, fallback=dear)
    assert [candidate.model for candidate in found.fallbacks] == ["other"]
    assert found.fallbacks[0].worst_cost == worst(ask(TEXT, dear))


@pytest.mark.parametrize(
    ("service", "own", "times"),
    [(None, None, 1), ("auto", None, 1), ("flex", None, 1), ("priority", None, 3), ("fast", None, 3), (None, "priority", 3), ("ultrafast", None, None), ("scale", None, None)],
)  # fmt: skip
def test_a_dearer_service_is_held_at_its_price(ask, service, own, times):
    """A request that may be served as priority is held at that price; a tier of unknown price has no bound (C7)."""
    found = ask({**TEXT, "service_tier": service}, DEAR, service=own)
    plain = worst(ask(TEXT, DEAR))
    assert worst(found) == (None if times is None else plain * times)
    assert found.primary[0].priced
    assert worst(ask({**TEXT, "service_tier": service}, {"input_cost_per_token": 0, "output_cost_per_token": 0})) == 0


def test_the_service_asked_for_stands_in_the_draft(ask):
    """The requested tier is kept in the draft, for answers that do not report theirs."""
    assert ask({**TEXT, "service_tier": "priority"}, DEAR).draft.service_tier == "priority"
    assert ask(TEXT, DEAR).draft.service_tier is None


def test_images_in_the_body_count_no_more_than_the_context(ask):
    """An image in the body is bounded by at most the model's context, at the most expensive input price."""
    body = {**TEXT, "messages": [{"role": "user", "content": [IMAGE]}]}
    assert 50_000 < ask(body, MICRO).input_tokens < 51_000
    assert ask(body, MICRO, context=8_000).input_tokens == 8_000
    assert worst(ask(body, SPOKEN, context=8_000)) == 8_000 * 10_000 + 100 * 2_000
    assert ask(TEXT, MICRO, context=10).input_tokens > 1_000


def test_what_is_referred_to_counts_as_the_context(ask):
    """Referenced content is bounded by the model's context, at its highest input price, and unbounded without one."""
    body = {**TEXT, "messages": [{"role": "user", "content": [URL]}]}
    assert ask(body, MICRO, context=8_000).input_tokens == 8_000
    assert worst(ask(body, SPOKEN, context=8_000)) == 8_000 * 10_000 + 100 * 2_000
    found = ask(body, MICRO)
    assert (found.input_tokens, worst(found), found.primary[0].priced) == (None, None, True)


def test_a_spoken_answer_is_held_at_the_price_of_sounds(ask):
    """An answer that may be spoken costs the audio price of the sheet; without one it has no bound."""
    body = {**TEXT, "modalities": ["text", "audio"]}
    plain = worst(ask(TEXT, SPOKEN))
    assert worst(ask(body, SPOKEN)) == plain + 100 * 18_000
    assert worst(ask(body, MICRO)) is None


@pytest.mark.parametrize(
    ("kind", "body", "sheet", "cost"),
    [
        ("image_generation", {"prompt": "a cat", "n": 3}, {"output_cost_per_image": 0.04}, 120_000_000),
        ("image_generation", {"prompt": "a cat", "n": "many"}, {"output_cost_per_image": 0.04}, None),
        (
            "image_generation",
            {"prompt": "a cat"},
            {"input_cost_per_token": 5e-06, "output_cost_per_image_token": 4e-05},
            None,
        ),
        ("aspeech", {"input": "Grüße"}, {"input_cost_per_character": 1.5e-05}, 75_000),
        ("arerank", {"query": "q", "documents": ["a"] * 150}, {"input_cost_per_query": 0.002}, 4_000_000),
        ("transcription", {}, {"input_cost_per_second": 0.0001}, None),
        ("transcription", {}, {"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}, None),
        ("amoderation", {"input": "x"}, {}, 0),
    ],
    ids=str,
)
def test_other_routes_are_held_by_the_piece(ask, kind, body, sheet, cost):
    """Images, speech and reranking are held by their billing unit; audio in the body has no bound."""
    found = ask(body, sheet, kind=kind)
    assert worst(found) == cost
    assert found.primary[0].priced


def test_a_transcription_is_not_bounded_by_its_prompt(ask):
    """The audio is not visible to hooks, so nothing of a transcription is bounded."""
    found = ask({"prompt": "x", "max_tokens": 5}, MICRO, kind="transcription")
    assert found.input_tokens is None
    assert worst(found) is None


def test_embeddings_have_no_output(ask):
    """An embedding is held by its input alone."""
    found = ask({"input": ["x" * 100, "y"]}, {"input_cost_per_token": 1e-06}, kind="aembedding")
    assert found.output_tokens == 0
    assert worst(found) == found.input_tokens * 1_000


def test_geminis_native_answers_are_held_by_their_limit(ask):
    """generateContent is held by its contents and maxOutputTokens, for each candidate."""
    body = {
        "contents": [{"parts": [{"text": "x" * 500}]}],
        "generationConfig": {"maxOutputTokens": 70, "candidateCount": 2},
    }
    found = ask(body, MICRO, kind="agenerate_content")
    assert found.output_tokens == 140
    assert worst(found) == found.input_tokens * 1_000 + 140 * 2_000


# ── a plan and the body ───────────────────────────────────────────────────────────────────────────────────────────────

ROUTES = ["acompletion", "aresponses", "anthropic_messages", "agenerate_content", "atext_completion", "arerank"]
FORMS = [
    {},
    {"model": "other", "downgraded_by": "l"},
    {"has_room_for_thinking": False},
    {"output_limit": ("max_tokens", 300)},
    {"output_limit": ("maxOutputTokens", 300), "counted_tokens": 5},
    {"deployment": "own"},
]
ROUTERS = {"model_group": "m", "model_info": {"id": "free"}, "deployment": "free"}
numbers = st.sampled_from([None, -1, 0, 16, 5_000, "50", "many", 12.5, True, []])
limits_of_output = st.dictionaries(st.sampled_from(sorted(OUTPUT_FIELDS)), numbers, max_size=2)
holders = st.recursive(
    limits_of_output,
    lambda inner: st.builds(
        lambda limits, nested: {**limits, **nested},
        limits_of_output,
        st.dictionaries(st.sampled_from(sorted(NESTED)), inner | st.just("text"), max_size=2),
    ),
    max_leaves=4,
)
others = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "other", "unlisted", "", None, 5]),
        "messages": st.just([{"role": "user", "content": "x"}]),
        "stream": st.sampled_from([True, "true", None]),
        "stream_options": st.sampled_from([None, {}, {"include_usage": False}]),
        "timeout": st.sampled_from([None, 5]),
        "num_retries": st.sampled_from([9, "2", None]),
        "max_retries": st.just(2),
        "metadata": st.sampled_from([{**ROUTERS, "tags": ["a"]}, {}, None, "text"]),
        "litellm_metadata": st.sampled_from([ROUTERS, None]),
        "thinking": st.just({"type": "enabled", "budget_tokens": 600}),
        "tools": st.just([{"type": "web_search"}]),
        "extra_headers": st.just({"x-vertex-ai-tier": "priority"}),
    },
)


@pytest.fixture(scope="module")
def planner(litellm):
    """A planner whose deployments need different output limits, and whose limits count the output."""
    from usage_plugin.proxy.price_book import Deployment  # noqa: PLC0415  # imports LiteLLM

    def deployment(model, served, **parameters):
        provider = served.partition("/")[0]
        made = Deployment(model, deployment_id=served, provider=provider, served_model=served, sheet=MICRO)
        made.parameters = parameters
        return made

    found = {
        "m": [deployment("m", "openai/gpt-4o-mini"), deployment("m", "anthropic/claude-sonnet-4-20250514", max_tokens=70)],
        "other": [deployment("other", "gemini/gemini-2.5-flash")],
    }  # fmt: skip
    matched = SimpleNamespace(can_stop=True, limit=SimpleNamespace(unit="output_tokens"))
    return planner_of(found, fallbacks=["other"], matching=(matched,))


@settings(max_examples=150)
@given(st.sampled_from(ROUTES), others, holders, st.sampled_from(FORMS))
def test_a_plan_leaves_the_body_as_it_arrived(planner, route, others, limits, form):
    """All changes of a plan are in `plan.body` only, at any depth; the same body gives the same plan again."""
    planned, arrived, again = plans(planner, route, {**others, **limits}, form)
    assert repr(arrived) == repr({**others, **limits})
    assert planned == again


@settings(max_examples=150)
@given(st.sampled_from(ROUTES), others, holders, st.sampled_from(FORMS), st.booleans())
def test_an_applied_plan_is_the_body(planner, route, others, limits, form, without_fallbacks):
    """Then the body is the planned one, without the router's names; its metadata is still LiteLLM's own object."""
    planned, body, _ = plans(planner, route, {**others, **limits}, form)
    if isinstance(planned, str):
        return
    held = {name: body[name] for name in ("metadata", "litellm_metadata") if name in body}
    expected = copy.deepcopy(dict(planned[0]))
    for name in held:
        if isinstance(expected[name], dict):
            expected[name] = {key: value for key, value in expected[name].items() if key not in ROUTERS}
    if without_fallbacks:
        expected["disable_fallbacks"] = True
    admitted = unheld(planned[1].draft, Subjects())._replace(without_fallbacks=without_fallbacks)
    planner_plan(planner, route, body, form).apply(body, admitted)
    assert body == expected
    assert all(body[name] is value for name, value in held.items())


@pytest.mark.parametrize("lost", [None, -1])
def test_a_call_that_has_lost_the_operators_limit_gets_it_again(planner, lost):
    """Another callback may remove the limit after LiteLLM has added the deployment's parameters to the call."""
    body = {"model": "m", "messages": [], "max_tokens": lost}
    plan = planner_plan(planner, "acompletion", body, {"deployment": "own"})
    assert plan.held_bounds.output.injected == ("max_tokens", 70)
    assert (plan.body["max_tokens"], plan.ask.output_tokens) == (70, 70)
    with_budget = {**body, "thinking": {"type": "enabled", "budget_tokens": 600}}
    assert planner_plan(planner, "acompletion", with_budget, {"deployment": "own"}).ask.output_tokens == 70


def test_a_call_with_the_operators_limit_gets_no_second_one(planner):
    """A provider may reject two, so an invalid limit in another field adds none."""
    body = {"model": "m", "messages": [], "max_completion_tokens": 70, "maxOutputTokens": 0}
    plan = planner_plan(planner, "acompletion", body, {"deployment": "own"})
    assert (plan.held_bounds.output.injected, plan.ask.output_tokens) == (None, 70)
    assert "max_tokens" not in plan.body


def planner_plan(planner, route, body, form):
    """Plan a body in a form."""
    from usage_plugin.proxy.request_plan import Form  # noqa: PLC0415  # imports LiteLLM

    if "deployment" in form:
        form = {"deployment": planner.deployment(Subjects(), "m", "anthropic/claude-sonnet-4-20250514")}
    return planner.plan(Subjects(user="ann"), body, route, Form(**form))


def plans(planner, route, body, form):
    """Plan a copy of a body twice. Return the two plans without their event's id, or the errors, and the copy."""
    from litellm.proxy._types import ProxyException  # noqa: PLC0415

    arrived, found = copy.deepcopy(body), []
    for _ in range(2):
        try:
            plan = planner_plan(planner, route, arrived, form)
        except ProxyException as error:
            found.append(error.message)
        else:
            ask = plan.ask._replace(draft=plan.ask.draft._replace(event_id=""))
            served = [deployment.served_model for deployment in plan.held_bounds.deployments]
            found.append((plan.body, ask, plan.held_bounds._replace(deployments=served)))
    return found[0], arrived, found[1]
