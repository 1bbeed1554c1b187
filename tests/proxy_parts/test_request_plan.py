"""The amount a request is held at: its bounds at the prices of every deployment that may serve it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from usage_plugin.config import ActiveConfig, Config
from usage_plugin.domain.subjects import Subjects

MICRO = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}
DEAR = {**MICRO, "input_cost_per_token_priority": 3e-06, "output_cost_per_token_priority": 6e-06, "input_cost_per_token_flex": 1e-07}  # fmt: skip
SPOKEN = {**MICRO, "input_cost_per_audio_token": 1e-05, "output_cost_per_audio_token": 2e-05}
TEXT = {"messages": [{"role": "user", "content": "x" * 1_000}], "max_tokens": 100}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
URL = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


@pytest.fixture
def ask(litellm):
    """Return a function that plans a request which one or several deployments may serve."""
    from usage_plugin.proxy.price_book import Deployment  # noqa: PLC0415
    from usage_plugin.proxy.request_plan import RequestPlanner  # noqa: PLC0415  # imports LiteLLM

    def ask(body, *sheets, kind="acompletion", fallback=None, **facts):
        found = {"m": [Deployment("m", provider="openai", sheet=sheet, **facts) for sheet in sheets]}
        found["other"] = [Deployment("other", provider="openai", sheet=fallback or {})]
        prices = SimpleNamespace(
            deployments=lambda model, team: found[model],
            fallbacks=lambda model, data: ["other"] if fallback else [],
            is_listed=lambda model: True,
        )
        limits = SimpleNamespace(limits=SimpleNamespace(matching=lambda *_: [], may_stop_spending=lambda _: False))
        clock = SimpleNamespace(now=lambda: 1)
        planner = RequestPlanner(prices, limits, ActiveConfig(Config(), enforce=True), clock)
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
