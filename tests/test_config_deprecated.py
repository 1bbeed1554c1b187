"""Deprecated keys and values work for one minor version, with a warning that names the new form."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from usage_plugin.cli import main
from usage_plugin.config import ConfigFile, config_of, load_config
from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.config import Config

# The old form, the new form, the path of the value, the value, and both parts of the warning.
FORMS = {
    "max_wait": (
        "admission: {busy_wait: 5s}",
        "admission: {max_wait: 5s}",
        ("admission", "max_wait"),
        timedelta(seconds=5),
        ("admission.busy_wait is deprecated", "write max_wait;"),
    ),
    "deny": (
        "admission: {on_short_budget: reject}",
        "admission: {on_short_budget: deny}",
        ("admission", "on_short_budget"),
        "deny",
        ("admission.on_short_budget: reject is deprecated", "write deny;"),
    ),
    "retention": (
        "cache: {retention_days: 3}",
        "cache: {retention: 3d}",
        ("cache", "retention"),
        3,
        ("cache.retention_days is deprecated", "write retention: 3d;"),
    ),
}


def write(folder: Path, section: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(f"usage_plugin:\n  data_dir: ./data\n  {section}\n")
    return path


def value_at(config: Config, place: tuple[str, str]) -> object:
    return getattr(getattr(config, place[0]), place[1])


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_have_the_same_effect(tmp_path: Path, form: str) -> None:
    """The old form has the value of the new one, and only the old one is reported."""
    old, new, place, value, words = FORMS[form]
    deprecated = load_config(write(tmp_path, old))
    current = load_config(write(tmp_path, new))
    assert value_at(deprecated, place) == value_at(current, place) == value
    assert [found.text for found in deprecated.deprecations] == [words[0]]
    assert deprecated.deprecations[0].remedy.startswith(words[1])
    assert "removed in version 0.2" in deprecated.deprecations[0].remedy
    assert current.deprecations == ()
    assert deprecated.model_copy(update={"deprecations": ()}) == current


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("admission: {max_wait: 1s, busy_wait: 2s}", ("line 3: usage_plugin.admission.busy_wait", "max_wait")),
        ("cache: {retention: 7d, retention_days: 7}", ("line 3: usage_plugin.cache.retention_days", "retention alone")),
    ],
)
def test_both_names_of_a_key_are_an_error(tmp_path: Path, section: str, names: tuple[str, ...]) -> None:
    """Even the same value twice is an error: the error names the line and both keys."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, section))
    for part in (*names, "found both"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("admission: {busy_wait: 61s}", "line 3: usage_plugin.admission.busy_wait: expected a duration between 0s and"),
        ("cache: {retention_days: 0}", "line 3: usage_plugin.cache.retention_days: expected days between 1d and 3660d"),
        ("cache: {retention_days: true}", "usage_plugin.cache.retention_days: expected days between 1d and 3660d"),
        (
            "cache: {retention: unlimited}",
            "usage_plugin.cache.retention: expected days between 1d and 3660d, such as 7d",
        ),
        (
            "cache: {retention: 7}",
            "usage_plugin.cache.retention: expected days between 1d and 3660d, such as 7d; found 7",
        ),
        ("admission: 5", "usage_plugin.admission: expected keys and their values, such as {max_wait: 2s}"),
    ],
)
def test_an_invalid_value_is_reported_under_the_written_name(tmp_path: Path, section: str, expected: str) -> None:
    """The error names the key that is in the file, and its line."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, section))
    assert expected in str(caught.value)


def test_a_program_gets_the_warning_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A section that a program passes works in the old form too, is left unchanged, and is reported in the log."""
    section: dict[str, Any] = {"data_dir": str(tmp_path), "cache": {"retention_days": 4}}
    with caplog.at_level(logging.WARNING, logger="usage_plugin"):
        config = config_of(section)
    assert config.cache.retention == 4
    assert section["cache"] == {"retention_days": 4}
    (line,) = [record.getMessage() for record in caplog.records]
    assert "config.warning" in line
    assert "write retention: 4d" in line


def test_check_warns_and_accepts(tmp_path: Path) -> None:
    """`check` shows one warning for each deprecated key, and exits with 0."""
    path = write(tmp_path, "admission: {busy_wait: 5s, on_short_budget: reject}")
    result = CliRunner().invoke(main, ["check", "--config", str(path), "--format", "json"])
    assert result.exit_code == 0, result.output
    warnings = json.loads(result.stdout)["warnings"]
    assert [warning.partition(";")[0] for warning in warnings] == [
        "admission.busy_wait is deprecated",
        "admission.on_short_budget: reject is deprecated",
    ]


def test_a_renamed_key_is_no_other_limit(tmp_path: Path) -> None:
    """Replacing an old key while the proxy runs is a change like any other, and ends the warning."""
    path = write(tmp_path, "admission: {busy_wait: 5s}")
    file = ConfigFile(path)
    write(tmp_path, "admission: {max_wait: 5s}")
    assert file.changed() is None
    changed = file.changed()
    assert changed is not None
    assert changed.deprecations == ()
