"""Plugins in a real proxy: they receive its events, and identify users and groups."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.plugins.conftest import chatting, eight_lines
from tests.proxy.conftest import ROOT, Proxy, proxy_config, running
from tests.support.waiting import wait_until
from usage_plugin.domain.money import parse_usd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.conftest import Chat
    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy

BADGES = """
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import IdentityResolver


class Badges(IdentityResolver):
    name = "badges"

    def user_of(self, claim):
        badge = claim.headers.get("x-badge")
        if badge == "broken":
            raise ValueError("no such badge")
        return badge


@hookimpl
def usage_register_identity_resolvers():
    return [Badges()]
"""


COLLECTOR = """
import contextvars
import gc
from pathlib import Path

from litellm._logging import session_id_var, trace_id_var
from litellm.litellm_core_utils.litellm_logging import Logging
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from usage_plugin.plugins import hookimpl


def abandon_a_stream():
    logging = Logging.__new__(Logging)
    logging._own_trace_id = logging._own_session_id = ""
    logging._pre_call_trace_id = logging._pre_call_session_id = "before"
    stream = CustomStreamWrapper.__new__(CustomStreamWrapper)
    stream.logging_obj, stream.itself = logging, stream
    del stream
    gc.collect()
    return [variable.name for variable in (trace_id_var, session_id_var) if variable.get()]


@hookimpl
def usage_event_recorded(event):
    Path("collected.txt").write_text(f"set: {contextvars.Context().run(abandon_a_stream)}")
    Path("apart.txt").write_text(f"{gc.get_freeze_count()} {len(gc.get_objects())}")
"""


def written(path: Path) -> str:
    """Return the text that a plugin has written to a file; a new file is empty for a moment."""
    found = ""

    def look() -> bool:
        nonlocal found
        found = path.read_text() if path.exists() else ""
        return bool(found)

    wait_until(look)
    return found


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    with chatting() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, chat: Chat) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "my_plugin.py").write_text(eight_lines())
    (folder / "badges.py").write_text(BADGES)
    (folder / "collector.py").write_text(COLLECTOR)
    (folder / "people.csv").write_text("user,group\nida,interns\n")
    for example in ("slack_notifier.py", "csv_groups.py"):
        shutil.copy(ROOT / "examples" / example, folder)
    usage = {
        "plugins": [
            {"path": "./my_plugin.py"},
            {"path": "./badges.py"},
            {"path": "./collector.py"},
            {"path": "./csv_groups.py", "options": {"file": "./people.csv"}},
            {"path": "./slack_notifier.py", "options": {"webhook": chat.url}},
        ],
        "identity": {"user": ["resolver:badges", "end_user"], "groups_from": ["csv_groups"]},
        "limits": [{"name": "interns", "per": "user", "match": {"group": "interns"}, "window": "day", "max_cost": 0}],
    }
    with running(folder, proxy_config(upstream, usage)) as started:
        yield started


def ask(proxy: Proxy, **headers: str) -> Any:
    body = {"model": "cent", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    return proxy.post("/v1/chat/completions", body, **headers)


def test_plugins_see_what_happens_in_the_proxy(proxy: Proxy, chat: Chat) -> None:
    """A resolver names the user from a header, a CSV the group whose limit refuses, and both outcomes are reported."""
    assert ask(proxy, **{"X-Badge": "ann"}).status_code == 200
    (event,) = proxy.events("ann")
    wait_until(lambda: f"ann {parse_usd(event['cost'])}" in proxy.log_path.read_text())
    refused = ask(proxy, **{"X-Badge": "ida"})
    assert refused.status_code == 402
    assert refused.headers["x-usage-limit"] == "interns"
    wait_until(lambda: chat.posted)
    assert chat.posted[0].startswith("user ida is refused by interns (too_large)")
    assert "'badges (" in proxy.log_path.read_text()


def test_a_stream_that_is_collected_sets_no_context_variable(proxy: Proxy) -> None:
    """A collected stream sets no context variable, as that can crash Python before 3.12 (python/cpython#148891).

    Later versions keep LiteLLM's finalizer.
    """
    assert ask(proxy, **{"X-Badge": "bo"}).status_code == 200
    expected = [] if sys.version_info < (3, 12) else ["trace_id", "session_id"]
    assert written(proxy.folder / "collected.txt") == f"set: {expected}"


def test_garbage_collections_pass_over_what_was_there_at_the_start(proxy: Proxy) -> None:
    """Garbage collection skips LiteLLM's modules, whose 100,000s of objects would stop all requests for 0.3 s."""
    found = proxy.folder / "apart.txt"

    def are_apart() -> bool:
        found.unlink(missing_ok=True)
        assert ask(proxy, **{"X-Badge": "cy"}).status_code == 200
        apart, others = map(int, written(found).split())
        return apart > 300_000 and others < apart / 10

    wait_until(are_apart)


def test_a_resolver_that_fails_charges_nobody(proxy: Proxy) -> None:
    """The client gets a retryable error, no user is charged, and `status` counts the failure."""
    refused = ask(proxy, **{"X-Badge": "broken"})
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "identity_unavailable"
    assert "no such badge" not in refused.text

    def counted() -> dict[str, int]:
        return {found["concerns"]: found["times"] for found in proxy.cli("status")["anomalies"]}

    wait_until(lambda: counted().get("badges") == 1)
    assert "no such badge" in proxy.log_path.read_text()
