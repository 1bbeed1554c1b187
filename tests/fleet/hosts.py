"""Start the hosts of a fleet, command them, kill them, and look at what they share."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.child_environment import clean_environment
from tests.support.waiting import SECONDS

ROOT = Path(__file__).parents[2]
SECRET = "5ec1" * 16


class Refused(Exception):  # noqa: N818  # an outcome
    """A limit or the ledger refused the reservation; the argument is the reason."""


class HostProcess:
    """One worker with its own data folder, as on another host; or with a given one, as on the same host."""

    def __init__(self, folder: Path, section: dict[str, Any], data_dir: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.section = {"data_dir": str(data_dir or folder / "data"), **section}
        path = folder / "section.json"
        path.write_text(json.dumps(self.section))
        self.log = folder / "host.log"
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {0: queue.Queue()}
        with self.log.open("ab") as log:
            self._process: Any = subprocess.Popen(
                [sys.executable, "-m", "tests.fleet.host", str(path)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=clean_environment(),
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(0)

    def _read(self) -> None:
        for line in self._process.stdout:
            with suppress(json.JSONDecodeError):
                answer = json.loads(line)
                self._answers[answer["id"]].put(answer)
        for waiting in self._answers.values():
            waiting.put({"error": f"the process has ended:\n{self.log.read_text()[-3000:]}"})

    def begin(self, do: str, **arguments: Any) -> int:
        """Send a command, and return its number for `wait`."""
        number = next(self._numbers)
        self._answers[number] = queue.Queue()
        self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return number

    def wait(self, number: int) -> Any:
        """Return the answer to a command; raise `Refused` for a refusal."""
        return self._wait(number)

    def _wait(self, number: int) -> Any:
        answer = self._answers[number].get(timeout=SECONDS)
        if "refused" in answer:
            raise Refused(answer["refused"])
        assert "ok" in answer, answer.get("error")
        return answer["ok"]

    def do(self, do: str, **arguments: Any) -> Any:
        """Execute a command."""
        return self._wait(self.begin(do, **arguments))

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it in order, if it still runs."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._process.stdout.close()
