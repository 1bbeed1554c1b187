from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.support.guarding import guard_variables, python_path
from usage_plugin.domain.ledger import Ledger

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "usage_plugin"
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def lint_imports(folder):
    return subprocess.run(
        [LINT_IMPORTS, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def copied(tmp_path):
    """A copy of the package for tests that change it."""
    shutil.copytree(PACKAGE, tmp_path / "usage_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_rooms_keep_to_their_contracts():
    """Dependencies have one direction; the domain imports only the standard library, and only the adapter LiteLLM."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("domain/money.py", "import litellm", ["The domain imports the standard library only", "Only the adapter knows LiteLLM"]),
        ("tracking/admission/recorder.py", "import litellm", ["Only the adapter knows LiteLLM"]),
        ("domain/usage.py", "import usage_plugin.tracking.admission.recorder", ["Edges sit on the runtime"]),
        ("backends/memory.py", "import usage_plugin.backends.sqlite.sqlite_store", ["Backends do not know each other"]),
    ],
)  # fmt: skip
def test_a_forbidden_import_breaks_its_contract(copied, module, line, broken):
    """A forbidden import, such as litellm in the domain, is reported with the contract that it breaks."""
    path = copied / "usage_plugin" / module
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")
    done = lint_imports(copied)
    assert done.returncode == 1, done.stdout + done.stderr
    said = [found for found in done.stdout.splitlines() if "BROKEN" in found]
    assert all(any(name in found for found in said) for name in broken), done.stdout
    assert str(module).removesuffix(".py").replace("/", ".") in done.stdout


def test_a_new_module_must_be_given_a_place(copied):
    """A new top-level module of the package is an error until the layers include it."""
    (copied / "usage_plugin" / "helpers.py").write_text('"""Odds and ends."""\n', encoding="utf-8")
    done = lint_imports(copied)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "helpers" in done.stdout


def loaded_by(statement):
    """Return the names of all modules that a statement loads in a new Python process."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_the_domain_loads_the_standard_library_only():
    """Importing the ledger's port loads no driver, no framework and no LiteLLM."""
    loaded = loaded_by("import usage_plugin.domain.ledger, usage_plugin.domain.limit_set, usage_plugin.domain.usage")
    assert not loaded & {"litellm", "pluggy", "pydantic", "structlog", "sqlite3", "aiosqlite", "yaml", "click", "rich"}
    strangers = {
        name for name in loaded if name.startswith("usage_plugin.") and not name.startswith("usage_plugin.domain")
    }
    assert strangers <= {"usage_plugin.errors"}


@pytest.mark.parametrize(
    "module",
    [
        "usage_plugin.api",
        "usage_plugin.cli",
        "usage_plugin.proxy",
        "usage_plugin.runtime",
        "usage_plugin.pricing.model_list",
    ],
)
def test_importing_an_edge_does_not_load_litellm(module):
    """Neither the command line nor an import of the adapter without its callback loads LiteLLM."""
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert "litellm" not in loaded


def test_importing_the_package_loads_nothing_of_it():
    """The package's own module imports no other module of the package."""
    assert not {name for name in loaded_by("import usage_plugin") if name.startswith("usage_plugin.")}


def test_importing_opens_no_file(tmp_path):
    """Importing any package but the running adapter creates no file and no thread."""
    code = (
        "import threading, usage_plugin.api, usage_plugin.cli, usage_plugin.proxy, usage_plugin.runtime;"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        timeout=60,
        check=True,
        env={**guard_variables(), "PYTHONPATH": python_path(ROOT)},
    )
    assert not list(tmp_path.iterdir())


def test_the_adapter_has_no_attribute_but_the_callback():
    """A misspelt name of the callback raises AttributeError, which LiteLLM reports, and starts nothing."""
    import usage_plugin.proxy  # noqa: PLC0415

    with pytest.raises(AttributeError, match="calback"):
        _ = usage_plugin.proxy.calback


def test_only_the_test_kit_imports_pytest():
    """Of the installed modules, only those of usage_plugin.testing import pytest."""
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported(node)
        if name.split(".")[0] in ("pytest", "hypothesis", "_pytest")
    }
    assert {name for name in importers if not name.startswith("testing/")} == set()


def _imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_no_modules_import_each_other_in_a_circle():
    """After the repeated removal of modules that import no remaining module, nothing remains; type imports count."""
    graph = grimp.build_graph("usage_plugin", exclude_type_checking_imports=False, cache_dir=None)
    remaining = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while leaves := [module for module, imported in remaining.items() if not imported & remaining.keys()]:
        for module in leaves:
            del remaining[module]
    assert not remaining


def test_the_ledger_has_few_verbs():
    """A ledger for another engine must be small enough to write."""
    assert len(Ledger.__abstractmethods__) <= 20


def test_no_module_is_long():
    """A module is at most 450 lines long."""
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {module: count for module, count in lines.items() if count > 450} == {}
