"""Price map: LiteLLM's list of price sheets as it was shipped, and the look-up of an entry."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAP_FILE = "model_prices_and_context_window_backup.json"


def shipped_price_map() -> dict[str, Any]:
    """Load the price map that LiteLLM ships; empty if LiteLLM is not installed."""
    found = find_spec("litellm")
    if found is None or found.origin is None:
        return {}
    path = Path(found.origin).parent / _MAP_FILE
    entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return entries


def map_entry(price_map: Mapping[str, Any], name: str, provider: object = None) -> Mapping[str, Any]:
    """Return the map's entry for a provider's model; empty if there is none.

    An entry without the provider in its name counts only if its `litellm_provider` is that provider: `groq/gpt-4o` is
    not OpenAI's `gpt-4o`.
    """
    prefix, _, bare = name.partition("/")
    if name in price_map:
        found = price_map[name]
    elif provider and f"{provider}/{name}" in price_map:
        found = price_map[f"{provider}/{name}"]
    elif bare and bare in price_map and str(price_map[bare].get("litellm_provider") or "").endswith(prefix):
        found = price_map[bare]
    else:
        return {}
    return found if isinstance(found, dict) else {}


def with_container(price_map: Mapping[str, Any], entry: Mapping[str, Any], provider: str | None) -> Mapping[str, Any]:
    """Add a provider's fee for a code sandbox, which LiteLLM's map has in a separate entry."""
    container = price_map.get(f"{provider}/container")
    fee = container.get("code_interpreter_cost_per_session") if isinstance(container, dict) else None
    return entry if fee is None else {"code_interpreter_cost_per_session": fee, **entry}
