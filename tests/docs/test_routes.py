"""The page of routes matches the installed LiteLLM's own table and our patterns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "routes.md"


@pytest.fixture(scope="module")
def generated() -> str:
    """Generate the page in its own process: LiteLLM's modules warn too much, and take long."""
    done = subprocess.run(
        [sys.executable, "-m", "usage_plugin.proxy.routes_page"],
        capture_output=True, text=True, check=True, timeout=180, env=os.environ,
    )  # fmt: skip
    return done.stdout


def test_every_route_of_the_installed_litellm_is_classified(generated: str) -> None:
    """A POST, PUT, PATCH or WebSocket route without a pattern fails here, for any installed version."""
    _, _, unclassified = generated.partition("## Unclassified")
    assert not unclassified


def test_the_page_is_the_generated_one(generated: str) -> None:
    """`python -m usage_plugin.proxy.routes_page > docs/routes.md` changes nothing."""
    page = PAGE.read_text()
    found = re.search(r"LiteLLM ([\d.]+),", page)
    if found and found[1] != version("litellm"):
        pytest.skip(f"the page is of LiteLLM {found[1]}")
    assert generated == page
