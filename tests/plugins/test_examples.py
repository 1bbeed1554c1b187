"""The examples work unchanged: loaded from a YAML, in a real worker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.plugins.conftest import CENT, not_told
from tests.proxy.conftest import ROOT
from tests.support.waiting import eventually
from usage_plugin.domain.subjects import Subjects
from usage_plugin.encoding import decode_event
from usage_plugin.errors import ConfigError
from usage_plugin.plugins import identity_resolvers as resolvers_module
from usage_plugin.runtime import load_plugins
from usage_plugin.tracking.admission.decisions import Admitted

if TYPE_CHECKING:
    from tests.plugins.conftest import Chat, Workplace

EXAMPLES = ROOT / "examples"


def slack(**options: object) -> str:
    return json.dumps([{"path": str(EXAMPLES / "slack_notifier.py"), "options": options}])


async def test_slack_notifier_posts_alerts_and_refusals(workplace: Workplace, chat: Chat) -> None:
    """An alert is posted once; of a storm of refusals the first is, for each limit and subject."""
    runtime = workplace.start(slack(webhook=chat.url))
    await workplace.spend(runtime, 60 * CENT)
    ref = await workplace.refuse(runtime, 60 * CENT)
    for _ in range(5):
        await workplace.refuse(runtime, 60 * CENT)
    other = await workplace.refuse(runtime, 101 * CENT, user="bo")
    await eventually(lambda: len(chat.posted) == 3)
    await asyncio.to_thread(runtime._listeners.stop)
    midnight = "2026-11-24 00:00 UTC"
    assert sorted(chat.posted) == [
        f"user ann is refused by daily (spent) until {midnight}. Ref {ref}",
        "user ann passed 50 % of limit daily: 0.60 USD of 1.00 USD.",
        f"user bo is refused by daily (too_large) until {midnight}. Ref {other}",
    ]
    assert not_told(runtime) == {}


async def test_slack_notifier_that_cannot_post_is_counted(
    workplace: Workplace, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    """A webhook that refuses is counted under the plugin's name, and its address is not logged."""
    chat.status = 503
    runtime = workplace.start(slack(webhook=f"{chat.url}/secret", alerts=False))
    await workplace.spend(runtime, 60 * CENT)
    await workplace.refuse(runtime, 60 * CENT)
    await eventually(lambda: not_told(runtime) == {"slack_notifier": 1})
    assert "HTTP Error 503" in caplog.text
    assert "secret" not in caplog.text


def test_slack_notifier_checks_its_options(workplace: Workplace) -> None:
    """A webhook with an invalid URL is an error at the start."""
    with pytest.raises(ConfigError, match=r"usage_plugin\.plugins\.0\.options\.webhook"):
        load_plugins(workplace.config(slack(webhook="file:///etc/passwd")))


async def test_csv_groups_follows_its_file(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """People are in the groups that the CSV says, as it is now; one that is broken changes nothing and is counted."""
    monkeypatch.setattr(resolvers_module, "REFRESH_INTERVAL", 0.05)
    people = workplace.folder / "people.csv"
    people.write_text(
        "user,group,since\nann,interns,2026\nann,berlin,2026\n Zoe , interns ,2026\n", encoding="utf-8-sig"
    )
    limits = "\n    - {name: interns, per: user, match: {group: interns}, window: day, max_cost: 0}"
    plugins = json.dumps(
        [{"path": str(EXAMPLES / "csv_groups.py"), "options": {"file": "people.csv", "casefold": True}}]
    )
    runtime = workplace.start(plugins, limits=limits, more="  identity: {groups_from: [csv_groups], casefold: true}")
    assert runtime.limits.groups_of("ann") == ("interns", "berlin")
    assert runtime.limits.groups_of("zoe") == ("interns",)
    assert not isinstance(await workplace.ask(runtime, user="ann"), Admitted)
    assert isinstance(await workplace.ask(runtime, user="bo"), Admitted)
    people.write_text("user,group\nbo,interns\n")
    await eventually(lambda: not runtime.limits.matching(Subjects(user="ann"), None, None))
    assert isinstance(await workplace.ask(runtime, user="ann"), Admitted)
    assert not isinstance(await workplace.ask(runtime, user="bo"), Admitted)
    for broken in ("name,team\n", "user,group\nann\n", ""):
        before = not_told(runtime, "unresolved").get("csv_groups", 0)
        people.write_text(broken)
        await eventually(lambda before=before: not_told(runtime, "unresolved").get("csv_groups", 0) > before)
    assert runtime.limits.groups_of("bo") == ("interns",)


async def test_json_lines_writes_what_is_recorded(workplace: Workplace) -> None:
    """Each event is a line that can be read back, whichever worker wrote it."""
    plugins = json.dumps([{"path": str(EXAMPLES / "json_lines.py"), "options": {"file": "usage.jsonl"}}])
    first, second = workplace.start(plugins), workplace.start(plugins)
    for runtime, user in ((first, "ann"), (second, "bo"), (first, "eva")):
        await workplace.spend(runtime, 2 * CENT, user=user)
    workplace.runtimes.clear()
    for runtime in (first, second):
        await runtime.close()
    lines = (workplace.folder / "usage.jsonl").read_text().splitlines()
    assert sorted((event.user, event.cost) for event in map(decode_event, lines)) == [
        ("ann", 2 * CENT), ("bo", 2 * CENT), ("eva", 2 * CENT),
    ]  # fmt: skip
