"""The real proxy while its store is unavailable, while its outbox is full, and while its YAML is edited."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest
import yaml

from tests.proxy.conftest import LIMITS, Proxy, proxy_config
from tests.support.waiting import eventually
from usage_plugin.config import load_config
from usage_plugin.runtime import Parts
from usage_plugin.tracking.notifications.health import problems

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy

USER = "mixed-outage"
# An event with these tags has some 4,500 bytes, so that a megabyte is soon full.
TAGS = [f"{number:02d}{'x' * 250}" for number in range(16)]


def body(**plan: Any) -> dict[str, Any]:
    text = json.dumps({"in": 0, "out": 1000, **plan})
    return {
        "model": "cent", "user": USER, "max_tokens": 1000, "messages": [{"role": "user", "content": text}],
        "extra_body": {"metadata": {"tags": TAGS}},
    }  # fmt: skip


class Client:
    """Send requests of a cent each, and count the answers and refusals."""

    def __init__(self, proxy: Proxy) -> None:
        self.openai = proxy.client()
        self.answered = 0
        self.refused: list[openai.APIStatusError] = []

    async def send(self, times: int = 1) -> None:
        for _ in range(times):
            try:
                await self.openai.chat.completions.create(**body())
                self.answered += 1
            except openai.InternalServerError as error:
                self.refused.append(error)

    async def send_until(self, there: Callable[[], Any], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline
            await asyncio.gather(*(self.send(5) for _ in range(4)))

    async def answers_again(self, seconds: float = 30) -> None:
        """Wait until no worker refuses; each worker measures the outbox itself, once a second."""
        deadline = time.monotonic() + seconds
        refused = -1
        while refused != len(self.refused):
            assert time.monotonic() < deadline
            refused = len(self.refused)
            await asyncio.gather(*(self.send(5) for _ in range(4)))


async def test_the_store_comes_and_goes(tmp_path: Path, upstream: Upstream) -> None:
    """Without its store the proxy answers until the outbox is full, then refuses; no event is lost or duplicated."""
    config = proxy_config(
        upstream,
        {
            "limits": LIMITS,
            "storage": {"options": {"path": "../store/usage.db"}, "outbox_max": "1MB"},
        },
    )
    proxy = Proxy(tmp_path, config, workers=2)
    proxy.start()
    client = Client(proxy)
    stack = ExitStack()
    try:
        await client.send(10)
        opened = Parts(load_config(proxy.config_path)).open_ledger()
        stack.callback(opened.close)
        ledger = opened.ledger
        await eventually(lambda: ledger.waiting().events == 0)

        (tmp_path / "store").rename(tmp_path / "away")
        (tmp_path / "store").write_text("not a folder")
        await client.send(10)
        assert not client.refused
        await eventually(lambda: [problem.name for problem in problems(opened.operations)] == ["store"])
        assert ledger.waiting().events == 10
        assert account(proxy, "mixed") == "0.20", "limits count on"

        await client.send_until(lambda: client.refused)
        refusal = client.refused[-1]
        assert refusal.status_code == 503
        assert refusal.response.headers["x-usage-refusal"] == "outbox_full"
        assert refusal.type == "storage_unavailable"
        # The worker that refused need not be the keeper, which records the problems.
        await eventually(lambda: len(problems(opened.operations)) == 2)
        status = proxy.cli("status")
        assert status["outbox"]["bytes"] >= 1_000_000
        assert {problem["name"] for problem in status["problems"]} == {"outbox", "store"}, (
            "it says so without its store"
        )

        (tmp_path / "store").unlink()
        (tmp_path / "away").rename(tmp_path / "store")
        await eventually(lambda: not problems(opened.operations))
        await client.answers_again()
        await eventually(lambda: ledger.waiting().events == 0)
        await add_a_limit(proxy, client)
    finally:
        proxy.stop()
        await client.openai.close()
        stack.close()
    check(proxy, client)


async def add_a_limit(proxy: Proxy, client: Client) -> None:
    """Add a limit to the YAML under load: it counts exactly the existing and the new spend."""
    config = yaml.safe_load(proxy.config_path.read_text())
    config["usage_plugin"]["limits"].append({"name": "late", "per": "user", "window": "week", "max_cost": 1000})
    proxy.config_path.write_text(yaml.safe_dump(config))
    await client.send_until(lambda: seeded(proxy, "late"))
    await client.send(20)
    proxy.settled()
    assert account(proxy, "late") == account(proxy, "everything", user=False)


def seeded(proxy: Proxy, name: str) -> bool:
    lines = proxy.log_path.read_text().splitlines()
    return any("limits.seeded" in line and f"'{name}'" in line for line in lines)


def account(proxy: Proxy, name: str, *, user: bool = True) -> str:
    return str(proxy.limit(name, **({"user": USER} if user else {}))["spent"])


def check(proxy: Proxy, client: Client) -> None:
    """Check that every answered request is one event, and that the account is their sum."""
    events = proxy.events(USER)
    assert len(events) == len({event["event_id"] for event in events}) == client.answered
    assert all(event["status"] == "success" for event in events)
    assert (
        Decimal(account(proxy, "mixed"))
        == sum(Decimal(event["cost"]) for event in events)
        == client.answered / Decimal(100)
    )
