from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner

from usage_plugin.cli import main
from usage_plugin.runtime import BUILTIN_PLUGINS

MINE = """
from usage_plugin.plugins import hookimpl

@hookimpl
def usage_event_recorded(event): pass

@hookimpl
def usage_request_refused(refusal): pass
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on a YAML that names the plugin mine.py."""
    monkeypatch.setenv("COLUMNS", "250")
    (tmp_path / "config.yaml").write_text("usage_plugin: {plugins: [{path: mine.py}]}\n")

    def run(*command, source=MINE):
        (tmp_path / "mine.py").write_text(source)
        (tmp_path / "mine.py").chmod(0o600)
        return CliRunner().invoke(main, ["--config", str(tmp_path / "config.yaml"), *command])

    return run


def test_plugins_are_listed_with_source_and_hooks(run, tmp_path):
    """The built-in plugins and the file are listed, with where they come from and which hooks they have."""
    found = json.loads(run("plugins", "--format", "json").stdout)
    assert [row["plugin"] for row in found["plugins"]] == [*BUILTIN_PLUGINS, "mine"]
    assert found["plugins"][-1] == {
        "plugin": "mine",
        "source": "file",
        "from": str(tmp_path / "mine.py"),
        "hooks": ["usage_event_recorded", "usage_request_refused"],
        "registers": [],
    }
    sqlite = next(row for row in found["plugins"] if row["plugin"] == "usage_plugin.backends.sqlite")
    assert (sqlite["source"], sqlite["registers"]) == ("built-in", ["storage backend sqlite"])


def test_each_format_says_the_same(run):
    """A table for people, and CSV and JSON lines with the same rows."""
    rows = json.loads(run("plugins", "--format", "json").stdout)["plugins"]
    lines = [json.loads(line) for line in run("plugins", "--format", "jsonl").stdout.splitlines()]
    cells = list(csv.DictReader(io.StringIO(run("plugins", "--format", "csv").stdout)))
    assert lines == rows
    assert [(row["plugin"], row["from"], json.loads(row["hooks"])) for row in cells] == [
        (row["plugin"], row["from"], row["hooks"]) for row in rows
    ]
    shown = run("plugins").stdout
    assert all(row["plugin"] in shown and ", ".join(row["hooks"]) in shown for row in rows)


def test_check_names_the_plugins_that_are_loaded(run):
    """`check` loads plugins too, and says which."""
    result = run("check")
    assert result.exit_code == 0
    assert "Plugins: mine." in result.stdout
    assert json.loads(run("check", "--format", "json").stdout)["plugins"] == ["mine"]


@pytest.mark.parametrize("command", ["check", "plugins"])
def test_a_plugin_that_does_not_fit_is_found_without_starting(run, command):
    """A plugin that would stop the proxy ends both commands with 1, its name and the remedy."""
    result = run(command, source=MINE.replace("(event)", "(evt)"))
    assert result.exit_code == 1
    assert "usage_event_recorded of the plugin mine" in result.output
    assert "It is called as usage_event_recorded(event)." in result.output
