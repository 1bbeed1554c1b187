"""A running proxy and the command line see one configuration, whichever files its parts are in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.proxy.conftest import Proxy, Upstream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.proxy

SECTION = """\
usage_plugin:
  data_dir: ./data
  contact: os.environ/TEAM_NAME
  limits:
    - {name: none, per: user, match: {user: blocked}, window: day, max_cost: 0}
    - {name: daily, per: user, window: day, max_cost: %s}
    - {name: dear, per: user, match: {model: "claude-sonnet-*"}, window: day, max_cost: 5}
"""
HOOKS = """\
from litellm.integrations.custom_logger import CustomLogger

class Mine(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        return data

mine = Mine()
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("included")
    config = {
        "include": ["parts/models.yaml"],
        "model_list": [],
        "litellm_settings": {"callbacks": ["usage_plugin.proxy.callback", "my_hooks.mine"]},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        "environment_variables": {"TEAM_NAME": "Ask the platform team"},
    }
    proxy = Proxy(folder, config, environment={"THE_MODEL": "openai/gpt-4o-mini"})
    (folder / "my_hooks.py").write_text(HOOKS)
    (folder / "parts").mkdir()
    (folder / "parts" / "models.yaml").write_text(
        "include: [usage.yaml]\nmodel_list:\n  - {model_name: assistant, litellm_params: {model: os.environ/THE_MODEL,"
        f' api_base: "{upstream.url}/v1", api_key: none}}}}\n'
    )
    (folder / "parts" / "usage.yaml").write_text(SECTION % 5)
    proxy.start()
    yield proxy
    proxy.stop()


def ask(proxy: Proxy, user: str) -> httpx.Response:
    body: dict[str, Any] = {"model": "assistant", "max_tokens": 10, "user": user}
    body["messages"] = [{"role": "user", "content": '{"in": 5, "out": 5}'}]
    return proxy.post("/v1/chat/completions", body)


def test_the_section_of_an_included_file_is_in_force(proxy: Proxy) -> None:
    """A limit in a nested included file refuses, and its message contains the value of the YAML's variable."""
    assert ask(proxy, "ann").status_code == 200
    refused = ask(proxy, "blocked")
    assert refused.status_code == 402
    assert "Ask the platform team" in refused.text
    proxy.settled()
    assert {row["name"] for row in proxy.cli("limits")["limits"] if row["subject"] == {"user": "ann"}} == {"daily"}
    assert (proxy.folder / "data" / "ledger.db").exists()


def test_the_model_of_a_variable_is_priced_as_its_value(proxy: Proxy) -> None:
    """The cost of the event is computed with the price sheet of the variable's value."""
    ask(proxy, "bo")
    proxy.settled()
    (event,) = proxy.events("bo")
    assert event["cost_source"] in ("computed", "litellm")
    assert float(event["cost"]) > 0


def test_check_and_the_start_line_name_the_same(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` and the start line report a rule without a match and a later callback in the same words."""
    monkeypatch.setenv("THE_MODEL", "openai/gpt-4o-mini")
    checked = proxy.cli("check")
    assert checked["limits"] == ["none", "daily", "dear"]
    assert checked["unpriced_models"] == []
    glob, order = checked["warnings"]
    assert 'no model_name fits match.model "claude-sonnet-*"' in glob
    assert "my_hooks.mine comes after usage_plugin.proxy.callback" in order
    log = re.sub(r"\x1b\[[0-9;]*m", "", proxy.log_path.read_text())
    (started,) = [line for line in log.splitlines() if "usage_plugin.started" in line]
    assert "unpriced_models=[]" in started
    for warning in (glob, order):
        assert warning.split(";")[0] in started


def test_an_included_file_is_re_read(proxy: Proxy) -> None:
    """A change of the included file takes effect within seconds; an unusable one changes and blocks nothing."""
    section = proxy.folder / "parts" / "usage.yaml"
    for text, expected in ((SECTION % 7, "7.00"), ("usage_plugin: {limits: [[[[", "7.00"), (SECTION % 9, "9.00")):
        section.write_text(text)
        wait_for_limit(proxy, expected)
    section.unlink()
    os.mkfifo(section)
    wait_until(lambda: "config.refused" in proxy.log_path.read_text().rpartition("config.reread")[2])
    assert ask(proxy, "cy").status_code == 200
    assert ask(proxy, "blocked").status_code == 402
    section.unlink()
    section.write_text(SECTION % 11)
    wait_for_limit(proxy, "11.00")


def wait_for_limit(proxy: Proxy, amount: str) -> None:
    wait_until(lambda: round(float(ask(proxy, "dee").headers["x-usage-remaining"])) == float(amount))
