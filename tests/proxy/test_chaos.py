"""Chaos: after any crashes and failures, the books agree in the end with the provider and the clients."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from collections import Counter, defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy import chaos_store
from tests.proxy.chaos_load import Load, Sent
from tests.proxy.chaos_monkey import Monkey
from tests.proxy.conftest import Proxy, proxy_config
from tests.proxy.test_sums import cost_of
from tests.support import soak
from usage_plugin.cli.events import plain_event
from usage_plugin.config import load_config
from usage_plugin.domain.store import UsageFilter
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS, open_reader

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy

LIMITS = [
    {"name": "rich", "per": "user", "match": {"user": "rich-*"}, "window": "day", "max_cost": 1000},
    {"name": "poor", "per": "user", "match": {"user": "poor-*"}, "window": "day", "max_cost": "0.05"},
    {"name": "tokens", "per": "user", "match": {"user": "tokens-*"}, "window": "day", "max_total_tokens": 10_000},
    {"name": "requests", "per": "user", "match": {"user": "requests-*"}, "window": "day", "max_requests": 10},
    {"name": "pool", "per": "global", "match": {"user": "pool-*"}, "window": "day", "max_cost": "0.20"},
    {"name": "each", "per": "user", "window": "day", "max_cost": 1_000_000},
    {"name": "everything", "per": "global", "window": "day", "max_cost": 1_000_000},
]  # fmt: skip


class Chaos:
    """The proxy with its load and its monkey, from one seed."""

    def __init__(self, folder: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
        seed = os.environ.get("CHAOS_SEED") or secrets.token_hex(4)
        print(f"CHAOS_SEED={seed}")
        chaos_store.install(folder / "installed")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "installed"), os.environ.get("PYTHONPATH", "")]))
        config = proxy_config(upstream, {"limits": LIMITS, "storage": {"backend": "flaky"}})
        config["router_settings"]["num_retries"] = 1
        fault = folder / "fault"
        self.upstream = upstream
        self.proxy = Proxy(folder, config, workers=2, environment={"CHAOS_FAULT": str(fault)})
        self.proxy.has_own_plugins = True
        self.load = Load(self.proxy, random.Random(f"load {seed}"), f"{seed}-{secrets.token_hex(3)}")
        self.monkey = Monkey(self.proxy, random.Random(f"monkey {seed}"), fault)

    async def end(self) -> None:
        """Recover after a final kill, serve some more requests without faults, and shut down in order."""
        await self.monkey.restart(signal.SIGKILL)
        await self.load.run(4, at_least=50, leaving=False)
        await asyncio.to_thread(self.proxy.settled)
        self.proxy.stop()
        print("\n".join(self.monkey.diary))
        print(self.load.outcomes())

    async def check(self) -> None:
        """Compare the books with the outcomes that the clients and the provider saw."""
        config = load_config(self.proxy.config_path)
        plugins = Plugins((*BUILTIN_PLUGINS, "tests.proxy.chaos_store"), entry_points=False)
        async with open_reader(config, plugins=plugins) as reader:
            found = reader.tracker.events(usage_filter=UsageFilter(), newest_first=True)
            events = [plain_event(event) async for event in found]
        answers = self.upstream.answers()
        problems = [
            *one_event_each(self.load.sent, events, answers),
            *paid_for(self.load.sent, events, answers),
            *within_limits(self.proxy, events),
        ]
        assert not problems, "\n".join([f"{len(problems)} problems", *problems[:20]])
        status = self.proxy.cli("status")
        assert (status["outbox"]["events"], status["reservations"]["open"]) == (0, 0)


def one_event_each(sent: list[Sent], events: list[dict[str, Any]], answers: dict[str, Any]) -> list[str]:
    """Return the requests that break the rule: one event for each admitted request, and no other events."""
    counts = Counter(event["call_id"] for event in events)
    problems = []
    for request in sent:
        count = counts.pop(request.call_id, 0)
        called = answers.get(request.call_id, {}).get("calls", 0)
        if request.outcome == "refused":
            fine = count == 0 and not called
        elif called or request.outcome in ("answered", "failed", "broken"):
            fine = count == 1
        else:
            fine = count <= 1
        if not fine:
            problems.append(f"{count} events, {called} calls: {request}")
        # If only the requested model fits under the limit, it is tried without its fallback.
        planned = request.plan.get("status", 200) != 200 or request.plan.get("fail_first") or request.kind == "fallback"
        if request.outcome == "failed" and not planned:
            problems.append(f"an unplanned failure: {request}")
    return [*problems, *(f"nobody sent {call_id}" for call_id in counts)]


def paid_for(sent: list[Sent], events: list[dict[str, Any]], answers: dict[str, Any]) -> list[str]:
    """Return the answered requests whose event does not match the provider's usage; only an estimate may be higher."""
    by_id = {event["call_id"]: event for event in events}
    problems = []
    handed_out = Decimal()
    for request in sent:
        event = by_id.get(request.call_id)
        if request.outcome != "answered" or event is None:
            continue
        answer = answers.get(request.call_id)
        if request.kind == "cached":
            cost = Decimal() if event["cache_hit"] else cost_of("chat", request.plan)
        else:
            cost = cost_of(answer["model"].removesuffix("-up"), answer)
        handed_out += cost
        recorded = Decimal(event["cost"])
        if recorded != cost and not (event["estimated"] and recorded > cost):
            problems.append(f"cost {cost}, recorded {recorded}: {request} {event}")
    recorded = sum(Decimal(event["cost"]) for event in events)
    print(f"{len(events)} events of {recorded} USD, {handed_out} of it handed out to requests that were answered")
    return problems if handed_out <= recorded else [*problems, f"{handed_out} handed out, {recorded} recorded"]


def within_limits(proxy: Proxy, events: list[dict[str, Any]]) -> list[str]:
    """Return open holds, accounts above their limit, and differences between events, report and accounts."""
    spent: dict[str, Decimal] = defaultdict(Decimal)
    excess: dict[str, Decimal] = defaultdict(Decimal)
    for event in events:
        spent[event["user"]] += Decimal(event["cost"])
        excess[event["user"]] += Decimal(event["excess"])
    rows = proxy.cli("report", "--by", "user", "--since", "2d")["rows"]
    problems = []
    if {row["user"]: Decimal(row["cost"]) for row in rows} != spent:
        problems.append(f"the report says {rows}, the events say {dict(spent)}")
    for account in proxy.cli("limits")["limits"]:
        name, user, amount = account["name"], account["subject"].get("user"), Decimal(account["spent"])
        if Decimal(account["reserved"]):
            problems.append(f"held for ever: {account}")
        flagged = excess[user] if user else sum(excess.values(), Decimal())
        if amount > Decimal(account["limit"]) + flagged:
            problems.append(f"over its limit by more than the excess {flagged}: {account}")
        if name == "each" and amount != spent[user]:
            problems.append(f"the events say {spent[user]}: {account}")
        if name == "everything" and amount != sum(spent.values()):
            problems.append(f"the events say {sum(spent.values())}: {account}")
    return problems


@pytest.fixture
def chaos(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Chaos(tmp_path, upstream, monkeypatch)
    made.proxy.start()
    yield made
    made.proxy.stop(signal.SIGKILL)


@pytest.mark.timeout(600)
async def test_the_books_survive_a_minute_of_chaos(chaos: Chaos) -> None:
    """Every request has its event after killed workers, a killed proxy, a failing store and clients that hang up."""
    raging = asyncio.create_task(chaos.load.run(16, at_least=300))
    await asyncio.sleep(3)
    await chaos.monkey.fail_store("forget", 2)
    await chaos.monkey.fail_store("refuse", 3)
    await asyncio.sleep(3)
    await chaos.monkey.kill_worker()
    await chaos.monkey.lock_store(2)
    await raging
    await chaos.end()
    await chaos.check()


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_the_books_survive_long_chaos(chaos: Chaos) -> None:
    """For SOAK_MINUTES (30) workers, proxies and the store fail at random under mixed load, and the books agree."""
    seconds = 60 * soak.MINUTES
    await asyncio.gather(chaos.load.run(seconds), chaos.monkey.rage(seconds))
    await chaos.end()
    await chaos.check()
