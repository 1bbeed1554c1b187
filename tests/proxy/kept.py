"""A proxy that keeps running between test runs, so that one test takes seconds, without a start of the proxy.

    make kept-proxy                                       # in one terminal, until Ctrl-C
    .venv/bin/pytest --kept-proxy tests/proxy/test_costs.py -k flex    # in another, as often as you like

It is the proxy of the fixture `proxies` with one worker, and its fake provider. Tests that need several workers, or
their own proxy, start it as usual. The kept proxy runs the code that was current at its start. If the package or the
fake provider has changed since then, a run with `--kept-proxy` stops at once with an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "kept-proxy"
STATE = FOLDER / "state.json"


class Kept(NamedTuple):
    """The running proxy and its provider, as stored in `STATE`."""

    pid: int
    code: str
    upstream: str
    folder: str
    port: int
    key: str


def code_digest() -> str:
    """Return a digest of the code of the proxy and its provider: the package, and the proxy files of the tests."""
    digest = hashlib.sha256()
    for folder, names in (("usage_plugin", "**/*.py"), ("tests/proxy", "*upstream.py"), ("tests/proxy", "conftest.py")):
        for path in sorted((ROOT / folder).glob(names)):
            digest.update(f"{path}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def read_kept() -> Kept:
    """Return the kept proxy.

    Raises:
        pytest.UsageError: No kept proxy is running, or its code differs from the current code.
    """
    try:
        kept = Kept(**json.loads(STATE.read_text()))
        os.kill(kept.pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        raise pytest.UsageError("No kept proxy is running. Start it in another terminal: make kept-proxy") from None
    if kept.code != code_digest():
        raise pytest.UsageError("The kept proxy runs older code. Stop it with Ctrl-C, and start it again.")
    return kept


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kept-proxy", action="store_true", help="use the proxy that `make kept-proxy` keeps running")


def pytest_configure(config: pytest.Config) -> None:
    """Find the kept proxy before any test runs."""
    if config.getoption("--kept-proxy"):
        config.stash[KEPT] = read_kept()


KEPT = pytest.StashKey[Kept]()


def keep() -> None:
    """Start the proxy and its provider, and keep them running until the process is interrupted."""
    from tests.proxy.conftest import Upstream, fake_provider, running, shared_config  # noqa: PLC0415  # imports this

    FOLDER.mkdir(parents=True, exist_ok=True)
    STATE.unlink(missing_ok=True)
    folder = FOLDER / str(os.getpid())
    folder.mkdir()
    code = code_digest()
    with (
        fake_provider("tests.proxy.fake_upstream", "/handed_out") as url,
        running(folder, shared_config(Upstream(url))) as proxy,
    ):
        state = Kept(os.getpid(), code, url, str(folder), proxy.port, proxy.key)
        STATE.touch(mode=0o600)
        STATE.write_text(json.dumps(state._asdict()))
        sys.stdout.write(f"The proxy is up: {proxy.url}, log in {proxy.log_path}. Ctrl-C stops it.\n")
        sys.stdout.flush()
        try:
            signal.pause()
        except KeyboardInterrupt:
            sys.stdout.write("Stopping.\n")
        finally:
            STATE.unlink(missing_ok=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep()
