"""The proxy of `make run`, and a shell for a page's commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.proxy.conftest import BIN, ROOT, clean_environment, free_port, wait_for
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["postgres"]


@pytest.fixture(scope="session")
def example_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """Start the proxy of `make run` in its own folder, on a free port."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copy(ROOT / "config.example.yaml", folder)
    port = free_port()
    with (folder / "out.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, ROOT / "examples" / "run_proxy.py", "--port", str(port)],
            cwd=folder, stdout=log, stderr=log, env=clean_environment(),
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health/liveliness", process)
        yield folder, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def shell(command: str, folder: Path, port: int, **environment: str) -> str:
    """Run commands of a document as printed, except for the port and the folder of the installed package."""
    command = command.replace("localhost:4000", f"127.0.0.1:{port}").replace(".venv/bin", str(BIN))
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**clean_environment(), "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
