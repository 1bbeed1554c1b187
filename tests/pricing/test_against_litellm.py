"""Names and arithmetic compared with LiteLLM's: the whole price map, in every documented spelling, and drawn usages."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from tests.pricing.reasoned_differences import REASONED, Compared, reason_of
from usage_plugin.domain.usage import TokenUsage
from usage_plugin.pricing.price_map import with_container
from usage_plugin.pricing.sheets import SERVICES, read_price
from usage_plugin.pricing.usage import read_usage

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore")

PRICED_BY_TOKENS = ("chat", "responses", "completion", "embedding")
ASKS_ITS_PROVIDER = ("ollama", "ollama_chat", "lemonade", "huggingface", "github_copilot", "chatgpt")
"""Providers whose models LiteLLM looks up over the network, or only after signing in."""

USAGES = 20
"""The number of usages drawn for each kind of price sheet."""


def family(provider: object) -> str:
    """Return the provider that serves a family of models in the map."""
    name = str(provider or "")
    found = [known for known in ("vertex_ai", "fireworks_ai", "bedrock") if name.startswith(known)]
    return found[0] if found and name != "bedrock_mantle" else name


def spellings(name: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield each way to write an entry in `litellm_params.model`."""
    provider, mode = family(entry.get("litellm_provider")), entry.get("mode")
    bare = name.removeprefix(f"{provider}/")
    yield name
    yield f"{provider}/{bare}"
    if provider == "bedrock":
        yield from (f"bedrock/{part}/{bare}" for part in ("converse", "invoke", "us-east-1", "eu-central-1"))
    if provider in ("openai", "azure") and mode in ("chat", "responses"):
        yield f"{provider}/responses/{bare}"
    if provider == "azure" and "/" not in bare:
        yield f"azure_ai/{bare}"
    if provider == "openai":
        yield from (f"{other}/{bare}" for other in ("azure", "azure_ai", "litellm_proxy", "github"))
    if provider == "vertex_ai":
        yield f"vertex_ai_beta/{bare}"


def test_every_spelling_of_the_map_is_priced_as_litellm_prices_it(litellm: Any, price_map: dict[str, Any]) -> None:
    """Each entry, in each documented spelling, has LiteLLM's price, or is priced by neither."""
    from usage_plugin.pricing.catalog import entry_name, provider_of  # noqa: PLC0415

    compared, wrong, reasoned = 0, [], Counter[str]()
    for name, entry in price_map.items():
        for spelling in dict.fromkeys(spellings(name, entry)) if name != "sample_spec" else ():
            model, provider = provider_of(spelling)
            if provider is None or provider in ASKS_ITS_PROVIDER:
                continue
            compared += 1
            found = entry_name(price_map, model, provider)
            if entry.get("mode") not in PRICED_BY_TOKENS:
                # Entries that LiteLLM bills by other units: the entry must be the same.
                theirs = _known_name(litellm, price_map, model, provider)
                if found != theirs:
                    wrong.append((spelling, found, theirs))
                continue
            ours, theirs = _our_cost(price_map, found, entry), _their_cost(litellm, model, provider, entry)
            if abs((ours or 0) - (theirs or 0)) > 1:
                reason = reason_of(Compared(spelling, price_map.get(found or "", {}), provider, None, {}))
                reasoned[reason or ""] += 1
                if reason is None:
                    wrong.append((spelling, ours, theirs))
    print(f"{len(wrong)} of {compared} differ; reasoned: {dict(reasoned)}")
    assert not wrong
    assert compared > 8_000


def test_names_that_are_read_without_litellm_mean_the_same(litellm: Any, price_map: dict[str, Any]) -> None:
    """The fast look-up of an entry, without LiteLLM, finds the same entry as LiteLLM."""
    from usage_plugin.pricing.catalog import entry_name, provider_of  # noqa: PLC0415
    from usage_plugin.pricing.model_list import _PLAIN, _mapped  # noqa: PLC0415

    compared = 0
    for name, entry in price_map.items():
        for spelling in spellings(name, entry):
            if spelling.partition("/")[0] in _PLAIN:
                model, provider = provider_of(spelling)
                found = entry_name(price_map, model, provider)
                assert _mapped(price_map, {"model": spelling}) == (price_map[found] if found else {}), spelling
                compared += 1
    assert compared > 500


def _known_name(litellm: Any, price_map: dict[str, Any], model: str, provider: str) -> str | None:
    try:
        name: str = litellm.get_model_info(model, provider)["key"]
    except Exception:  # noqa: BLE001  # LiteLLM raises plain exceptions if it has no price
        return None
    return name if name in price_map else None


def _our_cost(price_map: dict[str, Any], found: str | None, entry: dict[str, Any]) -> int | None:
    is_embedding = entry["mode"] == "embedding"
    price = read_price(price_map[found], "embedding" if is_embedding else "text") if found else None
    tokens = TokenUsage(1000, 0 if is_embedding else 100)
    return price.cost(tokens, at=datetime.now(timezone.utc)) if price else None


def _their_cost(litellm: Any, model: str, provider: str, entry: dict[str, Any]) -> float | None:
    is_embedding = entry["mode"] == "embedding"
    answer = (litellm.EmbeddingResponse if is_embedding else litellm.ModelResponse)(
        model=model.removeprefix("responses/")
    )
    output = 0 if is_embedding else 100
    answer.usage = litellm.Usage(prompt_tokens=1000, completion_tokens=output, total_tokens=1000 + output)
    call_type = "aembedding" if is_embedding else "acompletion"
    try:
        usd = litellm.completion_cost(answer, model=model, custom_llm_provider=provider, call_type=call_type)
    except Exception:  # noqa: BLE001  # LiteLLM raises plain exceptions where it has no price
        return None
    return usd * 1e9


def kinds_of_sheets(price_map: dict[str, Any]) -> dict[tuple[str, frozenset[str]], tuple[str, str, str]]:
    """Return one entry for each provider and each set of prices that an entry states."""
    from usage_plugin.pricing.catalog import entry_name, provider_of  # noqa: PLC0415

    kinds: dict[tuple[str, frozenset[str]], tuple[str, str, str]] = {}
    for name, entry in price_map.items():
        if entry.get("mode") not in ("chat", "responses", "completion"):
            continue
        model, provider = provider_of(name)
        if provider is None or provider in ASKS_ITS_PROVIDER or entry_name(price_map, model, provider) != name:
            continue
        prices = frozenset(
            key for key in entry if "cost" in key or "pricing" in key or key == "provider_specific_entry"
        )
        kinds.setdefault((provider, prices), (name, model, provider))
    return kinds


def drawn_usage(rng: random.Random, provider: str) -> dict[str, Any]:
    """Draw a usage whose parts fit into their total, with any of the kinds that have separate prices."""
    prompt = rng.randrange(600_000 if rng.random() < 0.3 else 5_000)
    completion = rng.randrange(5_000)
    of_prompt = _drawn_parts(rng, prompt, ("cached_tokens", "cache_creation_tokens", "audio_tokens", "image_tokens"))
    if (written := of_prompt.get("cache_creation_tokens")) and rng.random() < 0.5:
        hour = rng.randrange(written + 1)
        times = {"ephemeral_1h_input_tokens": hour, "ephemeral_5m_input_tokens": written - hour}
        of_prompt["cache_creation_token_details"] = times
    usage: dict[str, Any] = {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": of_prompt or None,
        "completion_tokens_details": _drawn_parts(rng, completion, ("reasoning_tokens", "audio_tokens", "image_tokens")) or None,
    }  # fmt: skip
    if provider == "anthropic":
        usage |= {"speed": "fast"} if rng.random() < 0.2 else {}
        usage |= {"inference_geo": "us"} if rng.random() < 0.2 else {}
    return usage


def _drawn_parts(rng: random.Random, whole: int, names: tuple[str, ...]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name in names:
        if rng.random() < 0.3:
            parts[name] = rng.randrange(whole + 1)
            whole -= parts[name]
    return parts


@pytest.mark.parametrize("usages", [USAGES, pytest.param(50 * USAGES, marks=pytest.mark.soak)])
def test_drawn_usages_cost_what_litellm_says(litellm: Any, price_map: dict[str, Any], usages: int) -> None:
    """For every kind of price sheet LiteLLM's floats and the plugin's integers agree, or a rule explains why not."""
    rng = random.Random(f"usages {usages}")
    compared, wrong, reasoned = 0, [], Counter[str]()
    for name, model, provider in kinds_of_sheets(price_map).values():
        sheet = with_container(price_map, price_map[name], provider)
        price = read_price(sheet)
        for _ in range(usages if price is not None else 0):
            usage, service = litellm.Usage(**drawn_usage(rng, provider)), rng.choice([None, None, "flex", "priority"])
            answer = litellm.ModelResponse(model=model)
            answer.usage = usage
            if service:
                answer.service_tier = service
            try:
                theirs = 1e9 * litellm.completion_cost(
                    answer, model=model, custom_llm_provider=provider, call_type="acompletion"
                )
            except Exception:  # noqa: BLE001  # as above
                theirs = 0
            reported = read_usage(usage.model_dump(), provider=provider)
            ours = price.cost(
                reported.tokens, service=service if service in SERVICES else None, tools=reported.tools,
                modes=reported.modes, at=datetime.now(timezone.utc),
            )  # fmt: skip
            compared += 1
            if abs((ours or 0) - theirs) > max(1, theirs * 1e-9):
                reason = reason_of(Compared(name, sheet, provider, service, usage.model_dump()))
                reasoned[reason or ""] += 1
                if reason is None:
                    wrong.append((name, service, ours, theirs, usage))
    print(f"{len(wrong)} of {compared} differ; reasoned: {dict(reasoned)}")
    assert not wrong, wrong[:5]
    assert compared >= 200 * usages


def test_every_reasoned_difference_is_needed() -> None:
    """The list stays short, at most six rules: each one has a name and decides something."""
    assert len(REASONED) <= 6
