"""Servers: the real LiteLLM proxy and the fake provider of the tests, as processes for as long as a block lasts."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

START_SECONDS = 180.0

_REPOSITORY = Path(__file__).resolve().parent.parent
_LITELLM = Path(sys.executable).parent / "litellm"


def free_port() -> int:
    """Find an unused port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """A server that can be killed and started again, on the same port.

    Attributes:
        port: where it listens, on loopback.
        key: the key of a proxy's clients.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, port: int, folder: Path, ready: str, key: str = "", workers: int = 1
    ) -> None:
        """Store the command; `ready` is a path that answers once the server is ready."""
        self.port = port
        self.key = key
        self.url = f"http://127.0.0.1:{port}"
        self._command = list(command)
        self._ready = ready
        self._workers = workers
        self._folder = folder
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that was started; with one worker, the worker."""
        if self._process is None:
            raise RuntimeError("The server does not run.")
        return self._process.pid

    async def start(self) -> None:
        """Start it, and wait until all its workers serve.

        Raises:
            RuntimeError: it has ended, or does not answer in time.
        """
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("USAGE_PLUGIN_", "LITELLM_"))
        }
        environment |= {
            "LITELLM_MASTER_KEY": self.key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONPATH": os.pathsep.join([str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        began = self._started_workers()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        async with httpx.AsyncClient(trust_env=False) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    await client.get(f"{self.url}{self._ready}")
                except httpx.TransportError:
                    await asyncio.sleep(0.25)
                else:
                    if self._workers == 1 or self._started_workers() - began >= self._workers:
                        return
                    await asyncio.sleep(0.25)
        words = self._log.read_text(errors="replace")[-3000:]
        self.stop()
        raise RuntimeError(f"A server did not start. Its last words:\n{words}")

    def _started_workers(self) -> int:
        return self._log.read_text(errors="replace").count("Application startup complete") if self._log.exists() else 0

    def worker_pids(self) -> list[int]:
        """List the processes that serve."""
        if self._workers == 1:
            return [self.pid]
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
        rows = (line.split(None, 2) for line in listed.stdout.splitlines())
        return [int(pid) for pid, parent, args in rows if int(parent) == self.pid and "spawn_main" in args]

    async def kill_a_worker(self) -> None:
        """Kill one worker; an only worker is not replaced, so the server is started again."""
        os.kill(self.worker_pids()[0], signal.SIGKILL)
        if self._workers == 1 and self._process is not None:
            self._process.wait()
            self._process = None
            await self.start()

    def check(self) -> None:
        """Raise RuntimeError if it has ended by itself: no request would ever be answered."""
        if self._process is not None and self._process.poll() is not None:
            words = self._log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"A server has ended by itself. Its last words:\n{words}")

    def stop(self) -> None:
        """Terminate it, then kill it, with all processes that it has started."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    """Run a server as long as the block lasts."""
    await server.start()
    try:
        yield server
    finally:
        server.stop()


def provider(folder: Path) -> Server:
    """Make the fake provider of the tests."""
    port = free_port()
    command = [sys.executable, "-m", "tests.proxy.fake_upstream", str(port)]
    return Server("provider", command, port=port, folder=folder, ready="/handed_out")


def proxy(name: str, config: str, folder: Path, *, workers: int = 1) -> Server:
    """Make a LiteLLM proxy with a YAML."""
    port = free_port()
    path = folder / f"{name}.yaml"
    path.write_text(config, encoding="utf-8")
    command = [str(_LITELLM), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", str(workers), "--timeout_worker_healthcheck", "120", "--keepalive_timeout", "300"]
    key = f"sk-{secrets.token_urlsafe(32)}"
    return Server(name, command, port=port, folder=folder, ready="/health/liveliness", key=key, workers=workers)
