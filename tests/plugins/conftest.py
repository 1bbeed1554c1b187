"""Plugins in files next to a YAML, as people write them, and a worker that loads them."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.conftest import ROOT
from tests.tracking.test_tracking import CENT, admit, admitted, ask, configure, success
from usage_plugin.runtime import Runtime
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.maintenance import keeper as keeper_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from usage_plugin.tracking.admission.decisions import Admitted, Refusal

LIMITS = """
    - {name: daily, per: user, window: day, max_cost: 1, alert_at: [50]}
"""

IMPORTS = """
from usage_plugin.domain.store import UsageStore
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins import interface
"""


class Workplace:
    """A folder with a YAML and plugins, and the workers that were started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.runtimes: list[Runtime] = []

    def write(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.write_text(f"{IMPORTS}\n{dedent(source)}")
        path.chmod(0o600)
        return path

    def config(self, plugins: str, *, limits: str = LIMITS, more: str = "") -> Any:
        return configure(self.folder, limits, f"  plugins: {plugins}\n{more}")

    def start(self, plugins: str, *, limits: str = LIMITS, more: str = "") -> Runtime:
        runtime = Runtime(self.config(plugins, limits=limits, more=more), clock=self.clock)
        self.runtimes.append(runtime)
        return runtime

    async def spend(self, runtime: Runtime, cost: int = CENT, **who: Any) -> None:
        request = await admitted(runtime, self.clock, cost=cost, **who)
        assert runtime.recorder.record(request, success(cost))

    async def ask(self, runtime: Runtime, cost: int = CENT, **who: Any) -> Admitted | Refusal:
        return await admit(runtime, ask(self.clock, cost=cost, **who))

    async def refuse(self, runtime: Runtime, cost: int = 200 * CENT, **who: Any) -> str:
        """Request more than the limit allows, and handle the refusal as the adapter does."""
        refusal: Any = await self.ask(runtime, cost, **who)
        runtime.refusals.add(refusal)
        return str(refusal.ref)


@pytest.fixture
async def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Workplace]:
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.05)
    monkeypatch.setattr(keeper_module, "SHORTEN_EVERY", 0.05)
    made = Workplace(tmp_path)
    yield made
    await asyncio.gather(*(runtime.close() for runtime in made.runtimes))


def not_told(runtime: Runtime, kind: str = "not_told") -> dict[str, int]:
    counted: dict[str, int] = {}
    for found in runtime.operations.anomalies():
        if found.kind == kind:
            counted[found.concerns] = counted.get(found.concerns, 0) + found.times
    return counted


class Chat(ThreadingHTTPServer):
    """A server of webhooks: it keeps the posted texts, and answers with a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Posts)
        self.posted: list[str] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Posts(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        if self.server.status == 200:
            self.server.posted.append(json.loads(body)["text"])
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def chatting() -> Iterator[Chat]:
    """Run a webhook on this host."""
    with Chat() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def chat() -> Iterator[Chat]:
    with chatting() as server:
        yield server


def eight_lines() -> str:
    """The shortest plugin, as the README shows it."""
    page = (ROOT / "README.md").read_text()
    section = page[page.index("## Write a plugin") :]
    found = re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]
