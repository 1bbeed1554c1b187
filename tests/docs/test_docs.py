"""Documents are tested: their YAML loads, their words match the code, and the README's commands work."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from tests.docs.conftest import shell
from tests.proxy.conftest import ROOT
from tests.support import plain_http
from usage_plugin import config as config_module
from usage_plugin.cli.main import main
from usage_plugin.config import LimitConfig, load_config
from usage_plugin.domain.limits import UNITS
from usage_plugin.domain.patterns import PATTERN_TYPES
from usage_plugin.domain.subjects import DIMENSIONS
from usage_plugin.domain.windows import WINDOW_KINDS
from usage_plugin.plugins import hookspecs
from usage_plugin.plugins.manager import TRACE_VARIABLE
from usage_plugin.proxy.client_response import _TYPES
from usage_plugin.tracking.analysis.patterns import LATELY_DAYS, MOST_EVENTS, MOST_USERS

if TYPE_CHECKING:
    pass

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


YAML_BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_every_yaml_in_the_documents_loads(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every YAML block is a valid configuration, once its variables are set."""
    for variable in re.findall(r"os\.environ/(USAGE_\w+)", block):
        monkeypatch.setenv(variable, "ab" * 32)
    path = tmp_path / "config.yaml"
    parsed = yaml.safe_load(block)
    if "usage_plugin" in parsed and not {"limits", "groups"} & set(parsed["usage_plugin"]):
        assert parsed["usage_plugin"]
    path.write_text(block if "usage_plugin" in parsed else f"{block}\nmodel_list: []\n")
    load_config(path)


def test_the_example_config_is_checked_by_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`usage-plugin check` finds nothing wrong with config.example.yaml, nor a model without a price."""
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(main, ["--config", str(ROOT / "config.example.yaml"), "check", "--format", "json"])
    assert result.exit_code == 0, result.output
    assert '"unpriced_models": []' in result.output


def test_every_key_is_documented() -> None:
    """docs/configuration.md has a row for each key of each section, and no other rows."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    sections = [
        config_module.Config,
        config_module.StorageConfig,
        config_module.AdmissionConfig,
        config_module.CacheConfig,
        config_module.IdentityConfig,
        config_module.RetentionConfig,
        config_module.PrivacyConfig,
        config_module.PluginConfig,
        LimitConfig,
    ]
    keys = {name for section in sections for name, field in section.model_fields.items() if not field.exclude}
    variables = {
        config_module.CONFIG_VARIABLE,
        config_module.DATA_DIR_VARIABLE,
        config_module.ENFORCE_VARIABLE,
        TRACE_VARIABLE,
    }
    assert documented == keys | variables


def test_the_words_of_the_code_are_documented() -> None:
    """Every dimension, window and unit is in docs/configuration.md, every refusal in docs/refusals.md."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    for word in (*DIMENSIONS, *WINDOW_KINDS):
        assert f"`{word}`" in page, word
    assert len(UNITS) == 6
    refusals = (ROOT / "docs" / "refusals.md").read_text()
    for reason, error_type in _TYPES.items():
        assert f"| `{reason}` |" in refusals
        assert f"`{error_type}`" in refusals


def test_every_command_is_documented() -> None:
    """docs/commands.md has every command, the README some, and neither has one that does not exist."""
    in_readme, in_page = (
        set(re.findall(r"^\| `usage-plugin ([\w-]+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("README.md", "docs/commands.md")
    )
    assert in_readme < in_page == set(main.commands)


def test_every_pattern_is_documented() -> None:
    """docs/patterns.md has a row for each type of pattern, with the thresholds of the code."""
    page = (ROOT / "docs" / "patterns.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(PATTERN_TYPES)
    assert f"the {MOST_USERS:,} who spent most in the last {LATELY_DAYS} days" in page
    assert f"newest {MOST_EVENTS:,} events" in page


def test_every_hook_is_in_the_changelog() -> None:
    """The changelog names every hook."""
    hooks = [name for name in vars(hookspecs) if name.startswith("usage_")]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert hooks
    assert all(f"`{name}`" in changelog for name in hooks)


def test_links_between_documents_lead_somewhere() -> None:
    """A relative link names an existing file."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub derives them from its headings, and the handwritten ones."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([\w-]+)">', text))


def test_links_to_sections_lead_somewhere() -> None:
    """The part of a link after # is a heading of the page, or a handwritten anchor."""
    found = 0
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            assert anchor in anchors_of(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"
            found += 1
    assert found > 50


@pytest.mark.proxy
def test_what_the_readme_says_to_type_works(example_proxy: tuple[Path, int]) -> None:
    """The first curl is answered and recorded, and after the loop a request is refused, as in the README."""
    folder, port = example_proxy
    makes, *commands = blocks(ROOT / "README.md", "bash")
    assert set(re.findall(r"^make (\w+)", makes, re.MULTILINE)) == {"run", "test"}
    first, report, loop = commands
    answer = shell(first, folder, port)
    assert answer.startswith("HTTP/1.1 200")
    shown = dict(re.findall(r"^(x-usage-[\w-]+): (.*?)\r?$", answer, re.MULTILINE))
    readme = dict(re.findall(r"^(x-usage-[\w-]+): (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert set(shown) == set(readme)
    assert (shown["x-usage-cost"], shown["x-usage-remaining"]) == (readme["x-usage-cost"], readme["x-usage-remaining"])
    table = shell(report, folder, port)
    assert re.search(r"eva +mock-model +1 +0 +10 +20 +0\.0101", table)
    answers = shell(loop, folder, port)
    assert answers.count('"chat.completion"') == 2
    assert answers.count('"budget_exceeded"') == 1
    assert "eva has used 0.0303 of 0.05 USD today (limit daily); this request may cost up to 0.0259." in answers
    key = folder / "data" / "master_key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert f"localhost:{port}/v1/chat/completions" in (folder / "out.log").read_text()
    for command in ("status", "limits --user eva", "events", "check"):
        shell(f".venv/bin/usage-plugin --config config.example.yaml {command}", folder, port)


MOCKED = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}),
    "responses": ("/v1/responses", {"input": "Hi", "max_output_tokens": 50}),
    "completions": ("/v1/completions", {"prompt": "Hi", "max_tokens": 50}),
}


@pytest.mark.proxy
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", MOCKED)
def test_the_mock_model_costs_the_same_on_every_route(
    example_proxy: tuple[Path, int], route: str, stream: bool
) -> None:
    """A route other than the README's returns the same answer at the same cost, within the daily limit."""
    folder, port = example_proxy
    path, body = MOCKED[route]
    user = f"mock-{route}-{stream}"
    key = (folder / "data" / "master_key").read_text()
    answer = plain_http.post(
        f"http://127.0.0.1:{port}{path}", json={"model": "mock-model", "stream": stream, **body}, timeout=60,
        headers={"Authorization": f"Bearer {key}", "x-litellm-end-user-id": user},
    )  # fmt: skip
    assert (answer.status_code, "mock" in answer.text) == (200, True)
    assert stream or answer.headers["x-usage-cost"] == "0.0101"
    deadline = time.monotonic() + 30
    while not (found := json.loads(shell(
        f".venv/bin/usage-plugin --config config.example.yaml events --user {user} --format json", folder, port
    ))["events"]):  # fmt: skip
        assert time.monotonic() < deadline
    (event,) = found
    assert (event["input_tokens"], event["output_tokens"], event["cost"], event["excess"]) == (10, 20, "0.0101", "0.00")


def test_make_run_and_the_tests_start_the_same_thing() -> None:
    """`make run` calls the tested script, with the example config on port 4000."""
    dry = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.installed", "run"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ,
    ).stdout  # fmt: skip
    assert "examples/run_proxy.py --config config.example.yaml --port 4000" in dry


def test_nothing_names_a_machine() -> None:
    """No tracked file names a path of a personal machine."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    patterns: Any = re.compile(r"(?:^|[\s\"'(=])/(?:root|home/\w+)/", re.MULTILINE)
    for name in filter(None, tracked):
        path = ROOT / name
        if path.is_file():
            assert not patterns.search(path.read_text(errors="replace")), name
