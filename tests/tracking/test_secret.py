"""The secret of the data folder is created once, is private, and its loss is reported."""

from __future__ import annotations

import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from usage_plugin.domain.pseudonyms import Pseudonyms
from usage_plugin.errors import SecretError
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.tracking.privacy.secret import make_secret, note_secret, read_secret, secret_trouble

DAY = 86_400_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "secret"


@pytest.fixture
def operations(tmp_path):
    opened = open_sqlite_ledger(tmp_path / "data" / "ledger.db")
    yield opened.operations
    opened.close()


def start(operations, path, now=0, *, hides_persons=False) -> Pseudonyms:
    pseudonyms = Pseudonyms(make_secret(path), hides_persons=hides_persons)
    note_secret(operations, pseudonyms, path, now)
    return pseudonyms


def test_the_secret_is_made_once(path: Path) -> None:
    """If many workers start at once, one creates the secret, all use it, and only its owner can read it."""
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: make_secret(path), range(32)))
    assert found == {read_secret(path)}
    assert len(found.pop()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [other.name for other in path.parent.iterdir()] == ["secret"]


def test_no_secret_is_made_by_reading(path: Path) -> None:
    """Reading does not create a missing secret."""
    assert read_secret(path) is None
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32, "Ü"])
def test_what_is_no_secret_is_refused(path: Path, text: str) -> None:
    """A truncated or overwritten file is named in the error, and is not replaced."""
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(SecretError, match=r"secret (is not a valid secret|cannot be read)"):
        make_secret(path)
    assert path.read_text() == text


def test_a_known_secret_is_no_trouble(operations, path: Path) -> None:
    """A restart with the same secret reports nothing."""
    start(operations, path)
    pseudonyms = start(operations, path, DAY)
    assert secret_trouble(operations, pseudonyms, path, DAY) is None


def test_a_lost_secret_is_named(operations, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing secret is reported to readers, and its replacement at the start and for 30 days."""
    assert secret_trouble(operations, None, path, 0) is None
    first = start(operations, path)
    kept = path.read_text()
    path.unlink()
    assert "is missing" in (secret_trouble(operations, None, path, 0) or "")
    with caplog.at_level(logging.ERROR, "usage_plugin"):
        second = start(operations, path, DAY)
    assert "secret.changed" in caplog.text
    assert "another one" in (secret_trouble(operations, first, path, DAY) or "")
    assert "is a new one since 1970-01-02" in (secret_trouble(operations, second, path, 2 * DAY) or "")
    assert secret_trouble(operations, second, path, 40 * DAY) is None
    path.write_text(kept)
    caplog.clear()
    with caplog.at_level(logging.ERROR, "usage_plugin"):
        again = start(operations, path, 3 * DAY)
    assert not caplog.records
    assert secret_trouble(operations, again, path, 3 * DAY) is None


def test_another_way_to_keep_names_is_told(operations, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A change to or from pseudonyms is reported once: accounts start from zero."""
    start(operations, path)
    for hides, told in ((True, 1), (True, 1), (False, 2)):
        with caplog.at_level(logging.WARNING, "usage_plugin"):
            start(operations, path, hides_persons=hides)
        assert caplog.text.count("privacy.changed") == told
