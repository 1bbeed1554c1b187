"""docs/similar.md: its numbers are the code's."""

from __future__ import annotations

import re

from tests.proxy.conftest import ROOT
from usage_plugin.cli.main import main
from usage_plugin.contrib.chroma import UPDATE_INTERVAL, Options
from usage_plugin.contrib.chroma.indexer import MOST_USERS
from usage_plugin.contrib.chroma.similarity import EARLIER_WEEKS, LEAST_REQUESTS
from usage_plugin.contrib.chroma.vector_store import INSTALL, MOST_AT_ONCE
from usage_plugin.domain.behaviour import DIMENSIONS, PARTS

PAGE = (ROOT / "docs" / "similar.md").read_text()


def test_the_parts_of_a_vector_are_those_of_the_code() -> None:
    """Each with its weight, and how many numbers there are."""
    rows = re.findall(r"^\| `(\w+)` \| (0\.\d\d) \|", PAGE, re.MULTILINE)
    assert rows == [(part.name, f"{part.weight:.2f}") for part in PARTS]
    assert f"{DIMENSIONS} numbers in six parts" in PAGE
    sizes = {part.name: part.size for part in PARTS}
    assert f"into {sizes['models']} cells" in PAGE
    assert f"in {sizes['providers']} cells" in PAGE


def test_the_options_are_those_of_the_code() -> None:
    """Each with its default."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|0][^|]*) \|", PAGE, re.MULTILINE))
    assert rows == {"path": "`chroma` in `data_dir`", "weeks": str(Options().weeks)}
    assert rows.keys() == Options.model_fields.keys()


def test_the_numbers_are_those_of_the_code() -> None:
    """Bounds and patience are written as they are."""
    assert f"own up to {EARLIER_WEEKS} weeks before" in PAGE
    assert f"fewer than {LEAST_REQUESTS} requests" in PAGE
    assert f"at most {MOST_USERS:,} users" in PAGE
    assert f"opened for {MOST_AT_ONCE} users" in PAGE
    assert UPDATE_INTERVAL == 3600
    assert "at most once an hour" in PAGE
    assert INSTALL in PAGE


def test_the_commands_are_there() -> None:
    """With the options that are shown."""
    for command, options in re.findall(r"^usage-plugin (\w+)(.*)$", PAGE, re.MULTILINE):
        there_are = {option for parameter in main.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", options)) <= there_are
