"""Fixtures for the pure parts of the adapter. LiteLLM is imported once, which takes seconds."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="session")
def litellm():
    """LiteLLM, with its lazily built models already built, because they emit warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm  # noqa: PLC0415
        from litellm.proxy._types import UserAPIKeyAuth  # noqa: PLC0415

        UserAPIKeyAuth(api_key="x")
        litellm.get_model_info("gpt-4o-mini")
    return litellm


@pytest.fixture(scope="session")
def litellm_proxy(litellm):
    """LiteLLM's proxy as a module: another five seconds of imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from litellm.proxy import proxy_server  # noqa: PLC0415
    return proxy_server


@pytest.fixture(scope="session")
def key(litellm):
    """Return a function that makes LiteLLM's own object for an authenticated key."""
    from litellm.proxy._types import UserAPIKeyAuth  # noqa: PLC0415

    def key(**fields):
        return UserAPIKeyAuth(**{"api_key": "hash-of-a-key", **fields})

    return key
