"""The commands for new contributors exist, and the files for the repository's host are well formed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import SLOW, SLOW_TESTS
from tests.proxy.conftest import ROOT

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/releasing.md", "README.md"])
def test_every_make_target_exists(page: str):
    """Each `make NAME` of the page is an existing target."""
    named = set(re.findall(r"\bmake ([a-z][\w-]+)(?=[`\s])", (ROOT / page).read_text()))
    assert named
    assert named <= set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))


def test_pre_commit_uses_the_tools_of_the_environment():
    """The hooks are local and download nothing, and `make lint` runs each of their tools too."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/")
        assert f"$(BIN)/{Path(tool).name}" in MAKEFILE


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_issue_templates_are_well_formed(path: Path):
    """Issue templates have a name, a description, and fields with distinct ids, at least one of them required."""
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_lists_of_slow_tests_name_tests_that_exist() -> None:
    """A stale name would hide that a test has moved into the fast lane."""
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("tests", "usage_plugin/testing")
        for path in ROOT.joinpath(folder).rglob("*.py")
    )
    assert [name for name in SLOW_TESTS if f"def {name}(" not in sources] == []
    assert [path for path in SLOW if not ROOT.joinpath(path.split("::")[0]).exists()] == []
