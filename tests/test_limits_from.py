"""Limits in separate files are validated as strictly as the YAML itself, and re-read when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from usage_plugin.config import ConfigFile, LimitConfig, load_config
from usage_plugin.errors import ConfigError

LIMIT = "limits:\n  - {name: more, per: user, window: day, max_cost: 3}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        "usage_plugin:\n  limits_from: [more.yaml]\n  limits: [{name: daily, per: user, window: day, max_cost: 5}]\n"
    )
    return path


def names(config):
    return [limit.name for limit in config.limit_set().limits]


def settled(file: ConfigFile):
    """Return the result of the file once it is stable."""
    found = None
    for _ in range(5):
        found = file.changed() or found
    return found


def test_limits_of_another_file_are_in_force(path: Path) -> None:
    """The file's limits follow those of the YAML; a relative path starts in the folder of the YAML."""
    path.with_name("more.yaml").write_text(LIMIT)
    assert names(load_config(path)) == ["daily", "more"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIMIT.replace("3", "-3"), "more.yaml\n  line 2: limits.0.max_cost: -3 is negative."),
        (LIMIT.replace("more", "daily"), "expected unique names of limits; found two named 'daily'"),
        (LIMIT + "groups: {}\n", "more.yaml\n  line 3: groups: found {}; unknown key"),
        (LIMIT.replace("window: day", "window: day, window: day"), "limits.0.window: duplicate key"),
        ("- 5\n", "more.yaml\n  the file: expected keys such as limits; found [5]"),
        ("", "more.yaml\n  limits: is missing"),
        ("limits: [\n", ("Invalid YAML in", "more.yaml: while parsing")),
        (None, ("Cannot read", "more.yaml: No such file or directory. limits_from names it")),
    ],
)
def test_a_mistake_names_the_file_the_line_and_the_path(
    path: Path, text: str | None, message: str | tuple[str, ...]
) -> None:
    """An invalid limit is rejected as in the YAML itself."""
    if text is not None:
        path.with_name("more.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for part in (message,) if isinstance(message, str) else message:
        assert part in str(caught.value)
    assert str(caught.value).startswith(("Invalid configuration: ", "Invalid YAML in ", "Cannot read "))


def test_the_file_is_read_again_when_it_changes(path: Path) -> None:
    """A change is applied, an invalid file is rejected once, and the previous limits stay."""
    more = path.with_name("more.yaml")
    more.write_text(LIMIT)
    file = ConfigFile(path)
    assert settled(file) is None
    more.write_text(LIMIT.replace("more", "other-name"))
    assert names(settled(file)) == ["daily", "other-name"]
    more.write_text("limits: [5]\n")
    with pytest.raises(ConfigError, match=r"more\.yaml"):
        settled(file)
    assert settled(file) is None
    assert file.mistakes
    assert names(file.config) == ["daily", "other-name"]
    more.unlink()
    with pytest.raises(ConfigError, match=r"more\.yaml"):
        settled(file)
    more.write_text(LIMIT)
    assert names(settled(file)) == ["daily", "more"]
    assert file.mistakes is None


def test_a_file_that_comes_after_it_was_named_is_noticed(path: Path) -> None:
    """The file may be written after the YAML that names it."""
    path.with_name("more.yaml").write_text(LIMIT)
    file = ConfigFile(path)
    path.write_text(path.read_text().replace("more.yaml", "later.yaml"))
    with pytest.raises(ConfigError, match=r"later\.yaml"):
        settled(file)
    path.with_name("later.yaml").write_text(LIMIT.replace("more", "later"))
    assert names(settled(file)) == ["daily", "later"]


def test_what_a_migration_wrote_is_in_force_as_soon_as_it_is_there(path: Path) -> None:
    """`migrate_from` applies the written file, once even if it is also named."""
    path.write_text("usage_plugin: {data_dir: data, migrate_from: ./old}\n")
    file = ConfigFile(path)
    assert settled(file) is None
    written = path.parent / "data" / "migrated_limits.yaml"
    written.parent.mkdir()
    written.write_text(LIMIT)
    assert names(settled(file)) == ["more"]
    path.write_text("usage_plugin: {data_dir: data, migrate_from: ./old, limits_from: [data/migrated_limits.yaml]}\n")
    assert names(load_config(path)) == ["more"]
    path.write_text("usage_plugin: {data_dir: data}\n")
    os.utime(path, ns=(0, 10**18))
    assert names(settled(file)) == []


def test_a_limit_can_be_written_down_again() -> None:
    """The result of `written` loads as the same limit."""
    text = """
    - {name: a, per: [team, user], window: {rolling: 5h}, max_cost: "0.25", alert_at: [50, 80], count_from: now}
    - {name: b, per: user, window: week, week_starts: sunday, timezone: Europe/Berlin, max_requests: 5, dry_run: true}
    - {name: c, per: user, max_parallel_requests: unlimited, match: {model: ["o3*", gpt], tag: x}}
    - {name: d, per: user, window: day, max_total_tokens: 7, on_unbounded: allow, action: downgrade, downgrade_to: x,
       overrides: [{match: {user: ann}, max_total_tokens: unlimited, until: 2026-11-30}, {match: {user: bo},
       max_total_tokens: 0, until: "2026-11-30T10:00:00+01:00"}]}
    - {name: e, per: user, window: day, max_cost: unlimited, allow_unpriced: ["*"]}
    """
    for raw in yaml.safe_load(text):
        limit = LimitConfig.model_validate(raw)
        assert LimitConfig.model_validate(yaml.safe_load(yaml.safe_dump(limit.written()))) == limit
        assert set(limit.written()) == set(raw)
