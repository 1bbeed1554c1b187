"""docs/compatibility.md names the public surface; examples, documents and the typed programs keep to it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_docs import PAGES, blocks
from tests.proxy.conftest import ROOT
from usage_plugin import errors

PAGE = ROOT / "docs" / "compatibility.md"
TYPED = sorted((ROOT / "tests" / "typing").glob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


def surface() -> dict[str, set[str]]:
    """Return the public names of each public module, as the page's table has them."""
    rows = re.findall(r"^\| `(usage_plugin[\w.]*)` \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    found = {}
    for module, names in rows:
        if names == "all of `__all__`":
            found[module] = set(importlib.import_module(module).__all__)
        elif names == "every error class":
            found[module] = {name for name, it in vars(errors).items() if inspect.isclass(it) and name != "Any"}
        else:
            found[module] = set(re.findall(r"`(\w+)`", names))
    return found


SURFACE = surface()


def imported(code: str) -> set[tuple[str, str]]:
    """Return the imports of our package in some code: each module, with the imported name."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "usage_plugin":
            found |= {(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "usage_plugin"}
    return found


def private(code: str) -> set[tuple[str, str]]:
    """Return the imports of our package in some code that are not public."""
    return {
        (module, name)
        for module, name in imported(code)
        if name not in SURFACE.get(module, ()) and (f"{module}.{name}" if name else module) not in SURFACE
    }


def test_the_table_has_the_public_modules():
    """Each row is a module that can be imported, with names that it has, each of them said once."""
    assert set(SURFACE) >= {"usage_plugin.api", "usage_plugin.plugins", "usage_plugin.testing", "usage_plugin.errors"}
    for module, names in SURFACE.items():
        assert names, module
        assert not [name for name in names if not hasattr(importlib.import_module(module), name)], module


@pytest.mark.parametrize("path", [*EXAMPLES, *TYPED], ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_import_the_public_surface_only(path: Path):
    """A copy of an example keeps working."""
    assert private(path.read_text()) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_import_the_public_surface_only(page: Path):
    """So do the programs of the documents."""
    for block in blocks(page, "python"):
        try:
            found = private(block)
        except SyntaxError:  # a part of a file of ours, which another test compares with it
            continue
        assert found == set(), block


def test_a_private_import_is_found():
    """The check sees names of a module, whole modules, and modules that are taken from a package."""
    assert private("from usage_plugin.domain.usage import UsageEvent") == {("usage_plugin.domain.usage", "UsageEvent")}
    assert private("from usage_plugin.api import opening") == {("usage_plugin.api", "opening")}
    assert private("import usage_plugin.runtime") == {("usage_plugin.runtime", "")}
    assert private("from usage_plugin import plugins\nfrom usage_plugin.api import open_tracker") == set()


def test_each_public_name_is_checked_by_mypy():
    """Each is imported by a program of `tests/typing`, so that a change of its type is noticed."""
    used = {pair for path in TYPED for pair in imported(path.read_text())}
    used |= {
        ("usage_plugin.plugins", name) for path in TYPED for name in re.findall(r"\bplugins\.(\w+)", path.read_text())
    }
    missing = {
        (module, name)
        for module, names in SURFACE.items()
        if module != "usage_plugin.errors"  # mypy has nothing to say of these, but that they are there
        for name in names
        if (module, name) not in used
    }
    assert missing == set()


def test_the_typed_programs_can_be_imported():
    """They are not run, but their imports exist, and their classes can be made."""
    modules = [f"tests.typing.{path.stem}" for path in TYPED if path.stem != "__init__"]
    assert modules
    for module in modules:
        importlib.import_module(module)


def test_mypy_sees_a_wrong_type(tmp_path: Path):
    """The types are really checked: a program that uses a result as something else is refused."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from usage_plugin.api import UsageTracker\n\n\n"
        "async def read(tracker: UsageTracker) -> str:\n"
        '    return await tracker.get_user_daily_usage("ann")\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", wrong],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'expected "str"' in done.stdout
