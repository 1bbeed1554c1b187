"""What holds for all tests: no variable of the shell they run in moves them, and every run draws the same examples."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

pytest_plugins = ["tests.guarding", "tests.proxy.kept"]

# LiteLLM looks prices up on the internet otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.register_profile("first failure", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("suite")


SHARE_PROXIES = {
    f"tests/proxy/test_{name}.py"
    for name in ("costs", "doctor", "endings", "evasions", "exact_limits", "identities", "requests", "sums")
}
"""Files whose tests ask for the same proxies, of one worker, of two and of four."""


class TogetherByServer(LoadScopeScheduling):
    """Keeps together, in one of the processes that share the tests, what shares a server that takes long to start."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", maxsplit=1)[0]
        return "proxies" if file in SHARE_PROXIES else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> TogetherByServer:
    return TogetherByServer(config, log)


@pytest.fixture(autouse=True)
def _no_variables_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("USAGE_PLUGIN_") or name == "CONFIG_FILE_PATH"]:
        monkeypatch.delenv(name)
