from __future__ import annotations

import itertools
import os

import pytest

from usage_plugin.config import ConfigFile, load_config
from usage_plugin.errors import ConfigError

ORIGINAL = "usage_plugin: {limits: [{name: daily, per: user, window: day, max_cost: 5}]}\n"
RAISED = ORIGINAL.replace("5", "7")
INVALID = ORIGINAL.replace("5", "-5")
SECONDS = itertools.count(1_795_003_200)
"""Modification times one second apart, since a file system's clock may be slower than a test."""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(ORIGINAL, encoding="utf-8")
    return path


def changes(file, calls=4):
    """Return the results of several calls: the amounts of the limits, or the error."""
    found = []
    for _ in range(calls):
        try:
            config = file.changed()
        except ConfigError as error:
            found.append(str(error))
            continue
        if config is not None:
            assert file.config is config
            found.append(amount_of(config))
    return found


def amount_of(config):
    return config.limit_set().limits[0].amount // 10**9


def write(path, text):
    """Write in place, as some editors do."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(0, next(SECONDS) * 10**9))


def replace(path, text):
    """Write to another file and rename it, as other editors do."""
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def test_it_begins_with_what_stands_in_the_file(path):
    """The first configuration is loaded at once, and does not count as a change."""
    file = ConfigFile(path)
    assert amount_of(file.config) == 5
    assert changes(file) == []


def test_it_begins_only_with_what_can_be_used(path):
    """A file that cannot be used at the start is an error at once."""
    write(path, INVALID)
    with pytest.raises(ConfigError, match="is negative"):
        ConfigFile(path)


@pytest.mark.parametrize("how", [write, replace])
def test_a_change_is_told_once(path, how):
    """A new configuration is returned once, for any way of writing the file, and so is the return to the old one."""
    file = ConfigFile(path)
    how(path, RAISED)
    assert changes(file) == [7]
    how(path, ORIGINAL + "# back\n")
    assert changes(file) == [5]


def test_a_change_between_reading_and_watching_is_not_missed(path):
    """A configuration that was loaded before is compared with the file at the first check."""
    config = load_config(path)
    assert changes(ConfigFile(path, config)) == []
    write(path, RAISED)
    assert changes(ConfigFile(path, config)) == [7]


def test_what_is_half_written_is_never_taken(path):
    """While the file is still changing, no part of it is used, even a valid one."""
    file = ConfigFile(path)
    for text in ("", "usage_plugin:\n", "usage_plugin: {limits: []}\n"):
        write(path, text)
        assert changes(file, calls=1) == []
    write(path, RAISED)
    assert changes(file) == [7]


@pytest.mark.parametrize(
    "text", [ORIGINAL, f"# a comment\n{ORIGINAL}", f"{ORIGINAL}litellm_settings: {{drop_params: true}}\n"]
)
def test_what_changes_nothing_of_ours_is_no_change(path, text):
    """A change of the file's time, of comments or of another section leaves the configuration unchanged."""
    file = ConfigFile(path)
    before = file.config
    replace(path, text)
    os.utime(path, ns=(1, 1))
    assert changes(file) == []
    assert file.config is before


def test_a_mistake_is_told_once_and_changes_nothing(path):
    """An invalid file is an error once for each content, and the previous configuration stays in force."""
    file = ConfigFile(path)
    write(path, INVALID)
    (message,) = changes(file)
    assert "usage_plugin.limits.0.max_cost" in message
    assert amount_of(file.config) == 5
    os.utime(path, ns=(1, 1))
    assert changes(file) == []
    write(path, INVALID.replace("-5", "-50"))
    assert len(changes(file)) == 1
    write(path, ORIGINAL)
    assert changes(file) == []
    write(path, RAISED)
    assert changes(file) == [7]


def test_a_file_that_is_away_for_a_moment_is_survived(path):
    """An editor may move the file away and write it again; the previous content counts meanwhile."""
    file = ConfigFile(path)
    path.rename(path.with_suffix(".bak"))
    assert changes(file, calls=1) == []
    write(path, RAISED)
    assert changes(file) == [7]


def test_a_file_that_is_gone_is_told_once(path):
    """A missing file is an error once, the last configuration stays in force, and the file may return."""
    file = ConfigFile(path)
    path.unlink()
    (message,) = changes(file)
    assert "Config file not found" in message
    assert "stays in force" in message
    assert amount_of(file.config) == 5
    write(path, ORIGINAL)
    assert changes(file) == []
    write(path, RAISED)
    assert changes(file) == [7]


def test_a_file_that_cannot_be_read_is_told_once(path):
    """A binary file is an error once."""
    file = ConfigFile(path)
    path.write_bytes(b"\xff\xfe\x00")
    (message,) = changes(file)
    assert "Cannot read" in message
    assert amount_of(file.config) == 5


def test_a_link_that_is_moved_is_followed(path, tmp_path):
    """For a link, as in Kubernetes, its target is watched."""
    (tmp_path / "raised.yaml").write_text(RAISED, encoding="utf-8")
    link, new = tmp_path / "link.yaml", tmp_path / "new.yaml"
    link.symlink_to(path)
    file = ConfigFile(link)
    new.symlink_to(tmp_path / "raised.yaml")
    new.replace(link)
    assert changes(file) == [7]


def test_an_unchanged_file_is_not_read(path, monkeypatch):
    """A check of an unchanged file does not read it."""
    file = ConfigFile(path)
    monkeypatch.setattr(type(path), "read_text", None)
    assert changes(file, calls=100) == []
