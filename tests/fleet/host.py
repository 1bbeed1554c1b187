"""A worker of a fleet as a process: the plugin's runtime without LiteLLM, which starts in a second.

    python -m tests.fleet.host SECTION.json

Commands are lines of JSON on the standard input, answers lines on the standard output, in any order:

    {"id": 1, "do": "reserve", "user": "ann", "amount": "0.01"}     {"id": 1, "ok": "EVENT_ID"} or {"id": 1, "refused": "spent"}
    {"id": 2, "do": "settle", "event_id": "EVENT_ID", "cost": "0.01"}
    {"id": 3, "do": "stall"}                                        {"id": 3, "ok": the longest stall of the loop, in seconds}

The process ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.api import open_tracker
from usage_plugin.errors import NotAdmittedError
from usage_plugin.log import show_log

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.api import UsageTracker
    from usage_plugin.api.reservations import Reservation

_LOOK_EVERY = 0.001


class Host:
    """Executes the commands on one tracker."""

    def __init__(self, tracker: UsageTracker) -> None:
        self._tracker = tracker
        self._held: dict[str, tuple[AbstractAsyncContextManager[Reservation], Reservation]] = {}
        self._longest_stall = 0.0

    async def measure_stalls(self) -> None:
        """Measure how late the event loop wakes this task up, without end."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOK_EVERY
            await asyncio.sleep(_LOOK_EVERY)
            self._longest_stall = max(self._longest_stall, loop.time() - due)

    async def execute(self, command: dict[str, Any]) -> None:
        try:
            answer = {
                "ok": await getattr(self, command["do"])(**{k: v for k, v in command.items() if k not in ("id", "do")})
            }
        except NotAdmittedError as refused:
            answer = {"refused": refused.reason}
        except Exception as error:  # noqa: BLE001  # the test shows it
            answer = {"error": repr(error)}
        print(json.dumps({"id": command["id"], **answer}), flush=True)

    async def reserve(self, user: str, amount: str) -> str:
        context = self._tracker.reserve_budget(user, amount)
        reservation = await context.__aenter__()
        self._held[reservation.event_id] = context, reservation
        return reservation.event_id

    async def settle(self, event_id: str, cost: str) -> None:
        context, reservation = self._held.pop(event_id)
        reservation.settle(cost)
        await context.__aexit__(None, None, None)

    async def spend(self, user: str, amount: str) -> None:
        await self.settle(await self.reserve(user, amount), amount)

    async def name(self) -> str:
        return self._tracker._runtime._workers.name

    async def keeps(self) -> bool:
        return self._tracker._runtime._workers.keeps

    async def now(self) -> int:
        return self._tracker.now()

    async def stall(self) -> float:
        longest, self._longest_stall = self._longest_stall, 0.0
        return longest


async def run(section: dict[str, Any]) -> None:
    commands: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, json.loads(line))
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(commands.put_nowait, None)

    async with open_tracker(section) as tracker:
        host = Host(tracker)
        tasks = {asyncio.create_task(host.measure_stalls())}
        threading.Thread(target=read, daemon=True).start()
        print(json.dumps({"id": 0, "ok": "ready"}), flush=True)
        while (command := await commands.get()) is not None:
            task = asyncio.create_task(host.execute(command))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    show_log()
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
