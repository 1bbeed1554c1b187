"""What holds for all tests: no variable of the shell they run in moves them, and every run draws the same examples."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, settings

# LiteLLM looks prices up on the internet otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.register_profile("first failure", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, in one of the processes that share the tests, what shares a server that takes long to start."""
    for item in items:
        shared = "proxies" if "proxies" in getattr(item, "fixturenames", ()) else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(shared))


@pytest.fixture(autouse=True)
def _no_variables_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("USAGE_PLUGIN_") or name == "CONFIG_FILE_PATH"]:
        monkeypatch.delenv(name)
