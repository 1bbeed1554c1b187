"""Requests that are admitted in another form than they arrived in, and the body that LiteLLM goes on with."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.config.loader import load_config
from usage_plugin.domain.subjects import Subjects
from usage_plugin.runtime import Runtime
from usage_plugin.tracking.admission.decisions import Admitted, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CONFIG = """
usage_plugin:
  data_dir: ./data
  admission: {max_wait: 0s, on_short_budget: clamp}
  limits:
    - {name: short, per: user, window: request, match: {model: opus}, max_output_tokens: 300}
    - {name: money, per: user, window: day, match: {model: opus}, max_cost: "0.0001", action: downgrade, downgrade_to: mini}
    - {name: tiny, per: user, window: day, match: {model: small}, max_output_tokens: 100}
"""
PRICES = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}


@pytest.fixture
async def admit(litellm: Any, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that admits a body, and changes it where the request is admitted."""
    from usage_plugin.proxy.price_book import Deployment  # noqa: PLC0415  # imports LiteLLM
    from usage_plugin.proxy.request_admission import RequestAdmission  # noqa: PLC0415
    from usage_plugin.proxy.request_plan import RequestPlanner  # noqa: PLC0415

    prices = SimpleNamespace(
        deployments=lambda model, team: [
            Deployment(model, provider="openai", served_model="openai/gpt-4o-mini", sheet=PRICES)
        ],
        fallbacks=lambda model, body: [],
        is_listed=lambda model: True,
    )
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    runtime = Runtime(load_config(path))
    planner: Any = RequestPlanner(prices, runtime.rules, runtime.active_config, runtime.clock)
    admission = RequestAdmission(runtime.admission, planner, runtime.rules, runtime.active_config)

    async def admit(body: dict[str, Any], call_type: str = "acompletion") -> Admitted | Refusal:
        (outcome, _), plan = await admission.admit(Subjects(user="ann"), body, call_type)
        if isinstance(outcome, Admitted):
            plan.apply(body, outcome)
        return outcome

    yield admit
    await runtime.close()


async def test_the_other_model_gives_the_whole_answer(admit: Callable[..., Any]) -> None:
    """One limit shortens the answer, and the next one downgrades the request; the other model needs no shorter one."""
    body = {"model": "opus", "messages": [], "max_tokens": 1_000}
    outcome = await admit(body)
    assert isinstance(outcome, Admitted)
    assert (outcome.event.downgraded_by, outcome.event.clamped_to, outcome.event.output_tokens) == (
        "money",
        None,
        1_000,
    )
    assert body == {"model": "mini", "messages": [], "max_tokens": 1_000}


@pytest.mark.parametrize(
    ("call_type", "body"),
    [
        ("acompletion", {"messages": [], "max_retries": 5, "timeout": 5, "stream": "true", "max_tokens": -1}),
        ("acompletion", {"messages": [], "extra_body": {"max_tokens": None, "options": {"num_predict": "x"}}}),
        ("agenerate_content", {"contents": [], "generationConfig": {"maxOutputTokens": 5_000}}),
        ("agenerate_content", {"contents": []}),
        ("acompletion", {"messages": [], "metadata": {"model_group": "mini", "tags": ["a"]}}),
    ],
)
async def test_a_refused_body_stays_as_it_arrived(
    admit: Callable[..., Any], call_type: str, body: dict[str, Any]
) -> None:
    """The failure hooks of LiteLLM and of other callbacks get the client's own request, at any depth."""
    arrived = {"model": "small", **body}
    kept = copy.deepcopy(arrived)
    assert isinstance(await admit(arrived, call_type), Refusal)
    assert arrived == kept
