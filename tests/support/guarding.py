"""The write guard of the suite: a test that writes, deletes or listens outside of its own folders fails.

Temporary files and the home directory are in pytest's temporary folder, for child processes too.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.write_guard import write_guard

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN_CACHES = (".pytest_cache", ".hypothesis")
"""Folders of pytest and Hypothesis in the root of the repository."""

KEPT_PROXY = "build/kept-proxy"
"""The folder of a proxy that outlives the run; commands of the tests write to its ledger (tests/proxy/kept.py)."""

OWNER = "WRITE_GUARD_OWNER"
"""Environment variable: set while a pytest checks the reports; a pytest that a test starts then leaves them alone."""

_checks: list[Path] = []


def python_path(*folders: str | Path) -> str:
    """Return a PYTHONPATH for a child process: the write guard first, then these folders."""
    return os.pathsep.join([write_guard.FOLDER, *map(str, folders)])


def guard_variables() -> dict[str, str]:
    """Return the environment variables that guard a child process, without PYTHONPATH."""
    return {name: os.environ[name] for name in (write_guard.ROOTS, write_guard.REPORTS, OWNER, "HOME", "TMPDIR")}


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Guard this process and its children; a pytest started by a test may write only to that test's folders."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    if write_guard.ROOTS not in os.environ:
        for name in OWN_CACHES:
            (config.rootpath / name).mkdir(exist_ok=True)
        # pytest deletes the folders of its earlier runs, which are in the same parent folder.
        own = base.parent if base.name.startswith("pytest-") else base
        kept = [config.rootpath / KEPT_PROXY] if config.getoption("--kept-proxy", default=False) else []
        roots = (own, *(config.rootpath / it for it in OWN_CACHES), *kept)
        os.environ[write_guard.ROOTS] = os.pathsep.join(map(str, roots))
        os.environ["PYTHONPATH"] = python_path(*filter(None, [os.environ.get("PYTHONPATH")]))
    if OWNER not in os.environ or hasattr(config, "workerinput"):
        for variable, name in (("HOME", "home"), ("TMPDIR", "temporary"), (write_guard.REPORTS, "reports")):
            folder = base / f"guarded-{name}"
            folder.mkdir()
            os.environ[variable] = str(folder)
        os.environ[OWNER] = str(os.getpid())
        _checks.append(base / "guarded-reports")
        tempfile.tempdir = None
    write_guard.install()


@pytest.fixture(autouse=True)
def _nothing_outside() -> Iterator[None]:
    yield
    _check_reports()


def pytest_sessionfinish() -> None:
    """Fail the run for violations after its last test, by fixtures and processes that ended late."""
    _check_reports()


def _check_reports() -> None:
    violations = [violation for folder in _checks for violation in write_guard.reported(str(folder))]
    assert not violations, "\n".join(["touched outside of the test's own folders:", *violations])
