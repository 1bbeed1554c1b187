"""The example of a backend keeps the contract: from the tree, and installed from its own wheel beside ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.proxy.conftest import ROOT

EXAMPLE = ROOT / "examples" / "duckdb_backend"


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests_are_five_lines() -> None:
    """A third party needs no more than a subclass."""
    lines = (EXAMPLE / "tests" / "test_contract.py").read_text().splitlines()
    assert [line for line in lines if line.startswith(("class ", "    "))] == lines[-3:]


def test_it_keeps_the_contract_from_the_tree(tmp_path: Path) -> None:
    """Everything but what takes long: that is for the wheel."""
    quick = (
        "not order and not grouping and not writers and not outside and not side_by_side and not dies and not failing"
        " and not lead_out and not forgetting and not beside and not belong_together and not killed"
    )
    said = call(
        *(
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            EXAMPLE / "pyproject.toml",
            "-p",
            "no:cacheprovider",
            "-k",
            quick,
        ),
        EXAMPLE / "tests",
        cwd=tmp_path,
        PYTHONPATH=str(EXAMPLE),
    )
    assert " passed" in said


@pytest.mark.soak
def test_its_wheel_keeps_the_contract(tmp_path: Path) -> None:
    """Built, installed beside our own wheel into a new environment, and found through its entry point."""
    for project in (ROOT, EXAMPLE):
        call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "wheels", cwd=project)
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-index", "--no-deps", *(tmp_path / "wheels").iterdir(), cwd=tmp_path)
    # What the two depend on is lent by this environment; what the new one has itself comes first.
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(site, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    found = call(
        python,
        "-c",
        "import usage_plugin, usage_plugin_duckdb\n"
        "from usage_plugin.plugins.manager import Plugins\n"
        "from usage_plugin.runtime import BUILTIN_PLUGINS\n"
        "print(usage_plugin.__file__, usage_plugin_duckdb.__file__, sep='\\n')\n"
        "print(type(Plugins(BUILTIN_PLUGINS).storage_backends['duckdb']).__name__)",
        cwd=tmp_path,
    ).splitlines()
    assert all(path.startswith(site) for path in found[:2]), found
    assert found[2] == "DuckdbBackend"
    said = call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path / "tests", cwd=tmp_path)
    assert " passed" in said
