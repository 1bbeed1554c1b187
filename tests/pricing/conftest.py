"""LiteLLM in its state right after the import: its price map is the one in the package."""

from __future__ import annotations

import warnings
from typing import Any

import pytest


@pytest.fixture(scope="session")
def litellm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm as imported  # noqa: PLC0415  # takes seconds
    imported.suppress_debug_info = True
    return imported


@pytest.fixture(scope="session")
def price_map(litellm: Any) -> dict[str, Any]:
    from usage_plugin.pricing.price_map import shipped_price_map  # noqa: PLC0415

    return shipped_price_map()
