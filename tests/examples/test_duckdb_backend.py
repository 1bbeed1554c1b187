"""The example backend keeps the contract: from the tree, and installed from its own wheel next to the plugin's."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.proxy.conftest import ROOT
from tests.support.environments import call, lend, make_environment
from tests.support.guarding import python_path
from usage_plugin.errors import StorageDamagedError, StorageUnavailableError
from usage_plugin.testing.builders import batch_of
from usage_plugin.testing.openings import StoreOpening

EXAMPLE = ROOT / "examples" / "duckdb_backend"


def test_its_tests_are_five_lines() -> None:
    """A third party needs only a subclass to test its store."""
    lines = (EXAMPLE / "tests" / "test_contract.py").read_text().splitlines()
    assert [line for line in lines if line.startswith(("class ", "    "))] == lines[-3:]


def test_it_keeps_the_contract_from_the_tree(tmp_path: Path) -> None:
    """The store keeps one promise of each kind; all promises take longer, and are tested on the wheel."""
    chosen = (
        "comes_back or sending or gaps or half_open or filters or days or imported or forgotten or reopening or disk"
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
            chosen,
        ),
        EXAMPLE / "tests",
        cwd=tmp_path,
        PYTHONPATH=python_path(EXAMPLE, ROOT),
    )
    assert " passed" in said


def test_its_short_program_works(tmp_path: Path) -> None:
    """The program of the page records a request and reads it back; the entry point is that of the project."""
    installed = tmp_path / "site" / "usage_plugin_duckdb-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: usage-plugin-duckdb\nVersion: 0.1.0\n")
    points = re.findall(r"^(\w+ = \"usage_plugin_duckdb\")$", (EXAMPLE / "pyproject.toml").read_text(), re.MULTILINE)
    (installed / "entry_points.txt").write_text("[usage_plugin]\n" + "\n".join(points).replace('"', ""))
    said = call(
        *(sys.executable, EXAMPLE / "try_it.py"),
        cwd=tmp_path,
        PYTHONPATH=python_path(tmp_path / "site", EXAMPLE, ROOT),
    )
    assert said == "0.25\n"
    assert (tmp_path / "try-it" / "usage.duckdb").is_file()


async def test_a_damaged_file_is_no_fault_of_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong checksum and another kind of file make the store unavailable: no event is given up for them."""
    monkeypatch.syspath_prepend(EXAMPLE)
    backend = importlib.import_module("usage_plugin_duckdb").DuckdbBackend()
    opening = StoreOpening(backend, tmp_path)
    async with opening.open() as store:
        await store.append("w", batch_of("w", 1, 100))
    path = tmp_path / "usage.duckdb"
    whole = path.read_bytes()
    damaged = whole[:4096] + bytes(byte ^ 0x5A for byte in whole[4096:5000]) + whole[5000:]
    for content, error in ((damaged, StorageDamagedError), (b"something else" * 1000, StorageUnavailableError)):
        path.write_bytes(content)
        with pytest.raises(error):
            async with opening.open() as store:
                await store.append("w", batch_of("w", 101, 1))
    path.write_bytes(whole)
    async with opening.open() as store:
        await store.append("w", batch_of("w", 101, 1))
        assert await store.watermark("w") == 101


@pytest.mark.soak
def test_its_wheel_keeps_the_contract(tmp_path: Path) -> None:
    """The wheel is built, installed into a new environment next to the plugin's, and found through its entry point."""
    for project in (ROOT, EXAMPLE):
        call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "wheels", cwd=project)
    python = make_environment(tmp_path / "venv")
    call(python, "-m", "pip", "install", "--no-index", "--no-deps", *(tmp_path / "wheels").iterdir(), cwd=tmp_path)
    # The dependencies of the two wheels.
    site = lend(python)
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
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
