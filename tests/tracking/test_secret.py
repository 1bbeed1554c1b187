"""The data folder's secret is created once and private, a configured one is the same for all, and changes are reported."""

from __future__ import annotations

import logging
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest

from usage_plugin.domain.pseudonyms import Pseudonyms
from usage_plugin.errors import SecretError
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.tracking.privacy.secret import (
    SecretSource,
    accept_secret,
    check_secret,
    make_secret,
    note_secret,
    read_secret,
    secret_trouble,
)

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
    note_secret(operations, pseudonyms, SecretSource(path), now)
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
    assert secret_trouble(operations, pseudonyms, SecretSource(path), DAY) is None


def test_a_lost_secret_is_named(operations, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing secret is reported to readers, and its replacement at the start and for 30 days."""
    assert secret_trouble(operations, None, SecretSource(path), 0) is None
    first = start(operations, path)
    kept = path.read_text()
    path.unlink()
    assert "is missing" in (secret_trouble(operations, None, SecretSource(path), 0) or "")
    with caplog.at_level(logging.ERROR, "usage_plugin"):
        second = start(operations, path, DAY)
    assert "secret.changed" in caplog.text
    assert "another one" in (secret_trouble(operations, first, SecretSource(path), DAY) or "")
    assert "is a new one since 1970-01-02" in (secret_trouble(operations, second, SecretSource(path), 2 * DAY) or "")
    assert secret_trouble(operations, second, SecretSource(path), 40 * DAY) is None
    path.write_text(kept)
    caplog.clear()
    with caplog.at_level(logging.ERROR, "usage_plugin"):
        again = start(operations, path, 3 * DAY)
    assert not caplog.records
    assert secret_trouble(operations, again, SecretSource(path), 3 * DAY) is None


def test_another_way_to_keep_names_is_told(operations, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A change to or from pseudonyms is reported once: accounts start from zero."""
    start(operations, path)
    for hides, told in ((True, 1), (True, 1), (False, 2)):
        with caplog.at_level(logging.WARNING, "usage_plugin"):
            start(operations, path, hides_persons=hides)
        assert caplog.text.count("privacy.changed") == told


def configured(fill: str) -> tuple[Pseudonyms, SecretSource]:
    value = bytes.fromhex(fill * 32)
    return Pseudonyms(value, hides_persons=False), SecretSource(value, is_configured=True)


@pytest.mark.parametrize("text", [f"{'aB' * 32}\n", "AB" * 32, f"\n{'ab' * 32}\r\n"])
@pytest.mark.parametrize("mode", [0o440, 0o644])
def test_a_mounted_file_is_read_through_links(tmp_path: Path, text: str, mode: int) -> None:
    """The file of a Kubernetes secret is a link to a link, readable by a group, and may end with a line break."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "usage").write_text(text)
    (tmp_path / "..2026" / "usage").chmod(mode)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "usage").symlink_to("..data/usage")
    source = SecretSource(tmp_path / "usage", is_configured=True)
    assert source.make() == source.read() == bytes.fromhex("ab" * 32)


def test_nothing_is_created_for_a_configured_file(tmp_path: Path) -> None:
    """A configured file that is missing or not valid is named with its key and the remedy, never with its content."""
    source = SecretSource(tmp_path / "usage", is_configured=True)
    with pytest.raises(SecretError, match=r"privacy\.secret_file \(.*usage\) was not found.*openssl"):
        source.make()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "usage").write_text("ab" * 31)
    with pytest.raises(SecretError, match=r"privacy\.secret_file \(.*is not a valid secret.*openssl") as caught:
        source.read()
    assert "abab" not in str(caught.value)


def test_no_representation_shows_the_secret() -> None:
    """A source can be logged."""
    _, source = configured("ab")
    assert "ab" * 4 not in f"{source} {source!r}"
    assert str(bytes.fromhex("abab"))[2:-1] not in repr(source)


def test_another_configured_secret_stops_the_start(operations) -> None:
    """The error names both fingerprints and the remedy, nothing is recorded, and the ledger's own secret goes on."""
    (first, at_first), (second, at_second) = configured("ab"), configured("cd")
    note_secret(operations, first, at_first, 0)
    before = operations.notes("")
    for _ in range(2):
        with pytest.raises(SecretError, match=r"privacy\.secret has another secret.*accept-secret") as caught:
            note_secret(operations, second, at_second, DAY)
        assert {first.fingerprint in str(caught.value), second.fingerprint in str(caught.value)} == {True}
    with pytest.raises(SecretError):
        check_secret(operations, second, at_second)
    assert "no proxy can start" in (secret_trouble(operations, second, at_second, DAY) or "")
    assert operations.notes("") == before
    note_secret(operations, first, at_first, DAY)
    check_secret(operations, first, at_first)
    assert secret_trouble(operations, first, at_first, DAY) is None


def test_an_accepted_secret_starts(operations, path: Path) -> None:
    """After the operator has accepted it, a configured secret takes the place of the data folder's."""
    start(operations, path)
    second, source = configured("cd")
    with pytest.raises(SecretError):
        note_secret(operations, second, source, 0)
    assert accept_secret(operations, second, DAY)
    assert not accept_secret(operations, second, 2 * DAY)
    note_secret(operations, second, source, 2 * DAY)
    assert "is a new one since 1970-01-02" in (secret_trouble(operations, second, source, 2 * DAY) or "")


def test_the_data_folders_secret_can_be_configured(operations, path: Path) -> None:
    """A ledger goes on without a word if its data folder's secret is configured."""
    start(operations, path)
    source = SecretSource(make_secret(path), is_configured=True)
    pseudonyms = Pseudonyms(source.make(), hides_persons=False)
    note_secret(operations, pseudonyms, source, DAY)
    assert secret_trouble(operations, pseudonyms, source, DAY) is None


class Turns:
    """Two threads whose calls are made in a given order; a thread that has ended leaves its turns to the other."""

    def __init__(self, order: list[int]) -> None:
        self._order = order
        self._changed = threading.Condition()
        self._ended: set[int] = set()

    def end(self, who: int) -> None:
        with self._changed:
            self._ended.add(who)
            self._changed.notify_all()

    def take(self, who: int, call):
        with self._changed:
            assert self._changed.wait_for(lambda: self._next() in (who, None), 20)
            if self._order:
                self._order.pop(0)
            try:
                return call()
            finally:
                self._changed.notify_all()

    def _next(self) -> int | None:
        while self._order and self._order[0] in self._ended:
            self._order.pop(0)
        return self._order[0] if self._order else None


class InTurn:
    """The notes of an operations log, each call in its turn."""

    def __init__(self, operations, turns: Turns, who: int) -> None:
        self._operations, self._turns, self._who = operations, turns, who

    def note(self, name, text):
        self._turns.take(self._who, lambda: self._operations.note(name, text))

    def notes(self, prefix):
        return self._turns.take(self._who, lambda: self._operations.notes(prefix))


def test_two_hosts_with_two_secrets_never_both_start(tmp_path: Path) -> None:
    """However the steps of two first starts interleave, at most one starts, and the ledger records its secret."""
    file = tmp_path / "ledger.db"
    most = 5
    outcomes = set()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        pools = (one, other)
        opened = [pool.submit(open_sqlite_ledger, file).result() for pool in pools]

        def begin(who: int, turns: Turns) -> str | None:
            pseudonyms, source = configured(("ab", "cd")[who])
            try:
                note_secret(InTurn(opened[who].operations, turns, who), pseudonyms, source, 0)
            except SecretError:
                return None
            else:
                return pseudonyms.fingerprint
            finally:
                turns.end(who)

        for mine in combinations(range(2 * most), most):
            turns = Turns([0 if at in mine else 1 for at in range(2 * most)])
            futures = [pools[who].submit(begin, who, turns) for who in (0, 1)]
            started = [found for future in futures if (found := future.result(30))]
            notes = one.submit(opened[0].operations.notes, "").result()
            assert len(started) <= 1
            assert [found for found in started if found not in notes["secret"]] == []
            outcomes.add(len(started))
            for name in notes:
                one.submit(opened[0].operations.note, name, None).result()
        for pool, ledger in zip(pools, opened, strict=True):
            pool.submit(ledger.close).result()
    assert outcomes == {0, 1}
