"""The partitioned store: its files, their durability and their consistency."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.backends.partitioned import archive as archive_module
from usage_plugin.backends.partitioned import journal
from usage_plugin.backends.partitioned.archive import Archive
from usage_plugin.backends.partitioned.folder_names import folder_name, shelf_of
from usage_plugin.backends.partitioned.mirror_files import MirrorFiles
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.store import DailySum, UsageFilter
from usage_plugin.domain.usage import UsageEvent, UsageTotals
from usage_plugin.errors import StorageError, StoragePrunedError, StorageUnavailableError, StorageVersionError
from usage_plugin.testing.builders import DAY, NOON, TODAY, make_event, make_sum

BERLIN = ZoneInfo("Europe/Berlin")
EVERYTHING = UsageFilter()
ANN = "7e/ann"
MONTH = f"{ANN}/2026-11"


class Tree:
    """The folder and the archive in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "partitioned"
        self.archive = Archive(folder, BERLIN)
        self._seq = 0

    def append(self, *events: UsageEvent, writer: str = "w") -> None:
        first = self._seq + 1
        self._seq += len(events)
        self.archive.append(writer, list(enumerate(events, first)))

    def files(self) -> list[str]:
        ours = {"journal.jsonl", "lock", "store.json"}
        return sorted(
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if path.is_file() and path.name not in ours
        )

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / name).read_text())
        return found

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / name).read_text().splitlines()]

    def reopen(self) -> Archive:
        self.archive = Archive(self.folder, BERLIN)
        return self.archive

    def requests(self, first: date = TODAY, last: date = TODAY) -> int:
        groups = self.archive.aggregate((), first, last, EVERYTHING).groups
        return groups.get((), UsageTotals()).requests


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "data")


# ── the layout ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tree_is_the_previous_systems(tree: Tree) -> None:
    """Files have the places and the records of the previous system, with further keys."""
    tree.append(
        make_event(session="s1", duration_us=2_000_000),
        make_event(session="s2", duration_us=1_000_000, status="failure", cost=None, model="o3"),
        make_event(started_at=NOON + DAY, user="Zoë"),
    )
    zoe = f"{hashlib.md5('Zoë'.encode()).hexdigest()[:2]}/%5ao%c3%ab"
    assert tree.files() == sorted(
        [
            f"{MONTH}/daily_2026-11-23.json",
            f"{MONTH}/events_2026-11-23.jsonl",
            f"{ANN}/monthly_2026-11.json",
            f"{zoe}/2026-11/daily_2026-11-24.json",
            f"{zoe}/2026-11/events_2026-11-24.jsonl",
            f"{zoe}/monthly_2026-11.json",
        ]
    )
    record = {
        "total_requests": 2, "successful_requests": 1, "failed_requests": 1, "total_input_tokens": 20,
        "total_output_tokens": 10, "total_cost": 0.01, "avg_latency_ms": 1500.0, "providers_used": {"openai": 2},
        "models_used": {"gpt": 1, "o3": 1}, "session_count": 2, "unique_sessions": ["s1", "s2"], "user_id": "ann",
        "updated_at": "2026-11-23T13:00:02+01:00",
    }  # fmt: skip
    daily = tree.json(f"{MONTH}/daily_2026-11-23.json")
    assert record | {"date": "2026-11-23"} == {name: daily[name] for name in (*record, "date")}
    assert daily["total_cost_nano"] == 10_000_000
    monthly = tree.json(f"{ANN}/monthly_2026-11.json")
    assert record | {"month": "2026-11"} == {name: monthly[name] for name in (*record, "month")}
    first, second = tree.lines(f"{MONTH}/events_2026-11-23.jsonl")
    assert (first["writer"], first["seq"], first["cost"], second["seq"]) == ("w", 1, 10_000_000, 2)


def test_everything_is_the_owners_alone(tree: Tree) -> None:
    """Files are 0600 and folders 0700, for any umask."""
    before = os.umask(0)
    try:
        tree.append(make_event())
    finally:
        os.umask(before)
    for path in tree.root.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_sessions_are_listed_up_to_a_bound(tree: Tree) -> None:
    """A day with very many sessions lists the first thousand and says that there were more."""
    tree.append(*(make_event(session=f"s{number}") for number in range(1_200)))
    record = tree.json(f"{ANN}/monthly_2026-11.json")
    assert (record["session_count"], len(record["unique_sessions"]), record["sessions_cut"]) == (1_000, 1_000, True)


NAMES = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="aA.%-_@/\\0 ß", max_size=6),
    st.text(alphabet=".", min_size=1, max_size=4),
    st.text(alphabet="abc", min_size=95, max_size=220),
)


@given(names=st.lists(NAMES, unique=True, min_size=2, max_size=30))
def test_every_user_has_a_folder_of_their_own(names: list[str]) -> None:
    """Different users never share a folder, also where case does not count, and none leads elsewhere."""
    folders = [(shelf_of(name), folder_name(name)) for name in names]
    assert len({folder.casefold() for _, folder in folders}) == len(names)
    for name, (shelf, folder) in zip(names, folders, strict=True):
        assert Path("root", shelf, folder).parts == ("root", shelf, folder)
        assert folder not in (".", "..")
        assert 0 < len(folder.encode()) <= 200
        plain = len(name) <= 100 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._@-") and name.strip(".")
        assert (folder == name) is bool(plain)


# ── one sync, nothing rewritten ──────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_made_durable_by_one_sync(tree: Tree) -> None:
    """However many days a batch touches, it takes one fsync, before it is acknowledged."""
    tree.append(make_event())
    with mock.patch.object(os, "fsync", wraps=os.fsync) as fsync:
        tree.append(*(make_event(user=f"u{number}", started_at=NOON + number * DAY) for number in range(200)))
    assert fsync.call_count == 1


def test_nothing_is_rewritten_that_did_not_change(tree: Tree) -> None:
    """A batch touches the files of its own days and months; a batch that comes again touches none."""
    events = [make_event(), make_event(user="bo"), make_event(started_at=NOON - 40 * DAY)]
    tree.append(*events)

    def seen() -> dict[str, tuple[int, int]]:
        return {
            name: ((found := (tree.root / name).stat()).st_ino, found.st_mtime_ns) for name in tree.files()
        }  # fmt: skip

    before = seen()
    tree.append(make_event())
    changed = {name for name, facts in seen().items() if before[name] != facts}
    assert changed == {
        f"{MONTH}/daily_2026-11-23.json",
        f"{MONTH}/events_2026-11-23.jsonl",
        f"{ANN}/monthly_2026-11.json",
    }
    before = seen()
    tree.archive.append("w", list(enumerate(events, 1)))
    assert seen() == before


def test_a_record_is_the_same_however_it_came_about(tree: Tree) -> None:
    """Records are derived from the lines alone: deleted ones come back as they were."""
    for number in range(3):
        tree.append(make_event(session=f"s{number}", started_at=NOON + number * DAY), make_event(model="o3"))
    records = {name: (tree.root / name).read_bytes() for name in tree.files() if name.endswith(".json")}
    for name in records:
        (tree.root / name).unlink()
    assert tree.requests(TODAY, date(2026, 11, 30)) == 6, "and meanwhile the lines are read"
    tree.append(make_event())
    tree.archive.forget("nobody", 10)
    (tree.root / f"{MONTH}/daily_2026-11-24.json").unlink(missing_ok=True)
    tree.append(make_event(started_at=NOON + DAY))
    record = tree.json(f"{ANN}/monthly_2026-11.json")
    assert record["total_requests"] == 8
    assert tree.json(f"{MONTH}/daily_2026-11-25.json") == json.loads(records[f"{MONTH}/daily_2026-11-25.json"])


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_that_was_not_applied_is_applied_by_whoever_comes_next(tree: Tree) -> None:
    """A batch counts once the journal has it: later readers complete an interrupted one."""
    reader = Archive(tree.folder, BERLIN)
    with (
        mock.patch.object(tree.archive, "_apply", side_effect=OSError(28, "No space left")),
        pytest.raises(StorageUnavailableError, match="No space left"),
    ):
        tree.append(make_event(), make_event(user="bo"))
    assert reader.watermarks() == {"w": 2}
    assert len(list(reader.events((0, 2 * NOON), EVERYTHING, None, newest_first=False))) == 2
    assert tree.requests() == 2


def test_a_torn_batch_was_never_there(tree: Tree) -> None:
    """The rest of a batch after a power cut is ignored and overwritten."""
    tree.append(make_event())
    path = tree.root / journal.NAME
    whole = path.read_bytes()
    tree.append(make_event())
    longer = path.read_bytes()
    for cut in (1, 30, len(longer) - len(whole) - 70):
        path.write_bytes(longer[: len(whole) + cut])
        assert tree.reopen().watermarks() == {"w": 1}
    path.write_bytes(whole + b"\0" * 100)
    assert tree.reopen().watermarks() == {"w": 1}
    tree.archive.append("w", [(2, make_event(user="bo"))])
    assert tree.reopen().watermarks() == {"w": 2}


def test_a_damaged_journal_is_not_guessed_at(tree: Tree) -> None:
    """A batch that was whole once and is not any more is an error that names the file."""
    tree.append(make_event())
    tree.append(make_event())
    path = tree.root / journal.NAME
    path.write_bytes(path.read_bytes().replace(b'"user":"ann"', b'"user":"eve"', 1))
    with pytest.raises(StorageUnavailableError, match=r"journal\.jsonl is damaged at byte"):
        tree.reopen().watermarks()


def test_what_a_power_cut_took_from_the_days_comes_back(tree: Tree) -> None:
    """After another boot the journal is applied again: lost files, torn lines and stale records are made good."""
    tree.append(make_event(), make_event(user="bo"), make_event(user="cy"), make_event(user="di"))
    tree.append(make_event(), make_event(user="bo"), make_event(user="cy"), make_event(user="di"))
    for path in list(tree.root.rglob("*")):
        if path.is_file() and "bo" in path.parts:
            path.unlink()
        elif path.is_file() and "cy" in path.parts and path.suffix == ".jsonl":
            path.write_bytes(path.read_bytes()[:-40])
        elif path.is_file() and "di" in path.parts and path.suffix == ".json":
            path.write_bytes(b"\0" * 500)
    with mock.patch.object(journal, "boot", return_value="another"):
        archive = tree.reopen()
        assert archive.watermarks() == {"w": 8}
        groups = archive.aggregate(("user",), TODAY, TODAY, EVERYTHING).groups
    assert {group: totals.requests for group, totals in groups.items()} == {
        ("ann",): 2, ("bo",): 2, ("cy",): 2, ("di",): 2,
    }  # fmt: skip
    assert all(tree.json(name)["total_requests"] == 2 for name in tree.files() if name.endswith(".json"))


def test_the_journal_begins_anew(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grown journal is reset after a sync of all files; a concurrent reader sees no difference."""
    monkeypatch.setattr(journal, "MAX_BYTES", 2_000)
    reader = Archive(tree.folder, BERLIN)
    for number in range(1, 40):
        tree.append(make_event())
        assert reader.watermarks() == {"w": number}
        assert (tree.root / journal.NAME).stat().st_size < 4_000
    tree.archive.close()
    assert len((tree.root / journal.NAME).read_bytes().splitlines()) == 1
    assert tree.reopen().watermarks() == {"w": 39}


def test_a_day_knows_what_it_has(tree: Tree) -> None:
    """Numbers that a day's file has are not taken twice, also when the journal is an older copy."""
    tree.append(make_event())
    path = tree.root / journal.NAME
    older = path.read_bytes()
    event = make_event()
    tree.append(event)
    path.write_bytes(older)
    archive = tree.reopen()
    assert archive.watermarks() == {"w": 1}
    assert tree.requests() == 1, "what is ahead of the journal does not count"
    archive.append("w", [(2, event), (3, make_event())])
    assert tree.requests() == 3
    assert len(tree.lines(f"{MONTH}/events_2026-11-23.jsonl")) == 3


def test_readers_see_whole_batches(tree: Tree) -> None:
    """While batches over many users are applied, every report has whole ones."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            tree.append(*(make_event(user=f"u{number}") for number in range(10)))

    writer = threading.Thread(target=write)
    reader = Archive(tree.folder, BERLIN)
    writer.start()
    try:
        for _ in range(30):
            found = reader.aggregate((), TODAY, TODAY, EVERYTHING)
            assert found.groups.get((), UsageTotals()).requests == found.watermarks.get("w", 0)
            assert found.watermarks.get("w", 0) % 10 == 0
    finally:
        stop.set()
        writer.join()


# ── pruning, forgetting, handing out ─────────────────────────────────────────────────────────────────────────────────


def test_pruned_days_leave_their_sums(tree: Tree) -> None:
    """Deleted events leave one line of sums, and the records stay equal to the byte, except for the length."""
    tree.append(make_event(session="s", duration_us=5), make_event(team="t"), make_event(started_at=NOON + DAY))
    before = tree.json(f"{MONTH}/daily_2026-11-23.json")
    assert tree.archive.prune(NOON + DAY, date(2020, 1, 1), 100) == 2
    (kept,) = tree.lines(f"{MONTH}/events_2026-11-23.jsonl")
    assert set(kept) == {"kept"}
    after = tree.json(f"{MONTH}/daily_2026-11-23.json")
    differs = {name for name in before if before[name] != after[name]}
    assert differs == {"events_bytes", "oldest_kept"}
    assert tree.archive.prune(0, date(2026, 11, 25), 100) == 4
    assert tree.files() == []
    assert not (tree.root / "7e").exists()


def test_a_crash_between_pruning_and_its_records_is_made_good(tree: Tree) -> None:
    """A replacement of a file is in the journal first, so that the next process completes an interrupted one."""
    tree.append(make_event(user="ann"), make_event(user="bo", end_user="ann"))
    with (
        mock.patch.object(archive_module, "put_in_place", side_effect=OSError(5, "EIO")),
        pytest.raises(StorageUnavailableError),
    ):
        tree.archive.forget("ann", 100)
    tree.reopen()
    groups = tree.archive.aggregate(("user", "end_user"), TODAY, TODAY, EVERYTHING).groups
    assert {group: totals.requests for group, totals in groups.items()} == {
        ("(forgotten)", None): 1, ("bo", "(forgotten)"): 1,
    }  # fmt: skip
    assert "ann" not in "".join(path.read_text() for path in tree.root.rglob("*.json*") if "bo" in path.parts)


def test_what_was_sent_is_handed_out_in_order(tree: Tree) -> None:
    """Events and sums come by writer and number. Deleted ones come as sums, which a store that lacks only the end misses."""
    events = [make_event(user=f"u{number % 3}", started_at=NOON - number) for number in range(9)]
    tree.append(*events)
    tree.archive.append("old", [(4, make_sum())])
    marks = tree.archive.watermarks()
    sent = list(tree.archive.sent({}, marks))
    assert [(one.writer, one.seq) for one in sent] == [("old", 4), *(("w", number) for number in range(1, 10))]
    assert [one.record for one in sent[1:]] == events
    assert [one.seq for one in tree.archive.sent({"w": 7, "old": 4}, marks)] == [8, 9]
    tree.archive.prune(NOON - 6, date(2020, 1, 1), 100)
    left = list(tree.archive.sent({}, marks))
    assert [one.writer for one in left] == ["(left over)"] * 2 + ["old"] + ["w"] * 7
    assert sum(one.record.totals.requests for one in left if isinstance(one.record, DailySum)) == 2 + 2
    with pytest.raises(StoragePrunedError):
        list(tree.archive.sent({"w": 7, "old": 4}, marks))


def test_what_was_forgotten_is_missed_by_who_lacks_it(tree: Tree) -> None:
    """A store without an erased user's events cannot get their sums one by one; all others continue."""
    tree.append(make_event(), make_event(user="bo"), make_event())
    tree.archive.forget("ann", 100)
    tree.append(make_event(user="bo"))
    marks = tree.archive.watermarks()
    assert [one.seq for one in tree.archive.sent({"w": 3}, marks)] == [4]
    for archive in (tree.archive, tree.reopen()):
        with pytest.raises(StoragePrunedError):
            list(archive.sent({"w": 2}, marks))


# ── rejected folders, and mirrors ────────────────────────────────────────────────────────────────────────────────────


def test_another_zone_a_newer_version_and_others_files_are_refused(tree: Tree) -> None:
    """Days of one zone are never read as another's, and files of other systems are left alone."""
    with pytest.raises(StorageError, match=r"Europe/Berlin.*Set usage_plugin\.timezone to Europe"):
        Archive(tree.folder, ZoneInfo("UTC"))
    (tree.root / "store.json").write_text('{"v": 99, "zone": "Europe/Berlin"}\n')
    with pytest.raises(StorageVersionError):
        Archive(tree.folder, BERLIN)
    old = tree.folder / "old" / "partitioned" / ANN
    old.mkdir(parents=True)
    with pytest.raises(StorageError, match="usage-plugin migrate"):
        Archive(tree.folder / "old", BERLIN)
    assert not (old.parent.parent / "store.json").exists()
    older = tree.folder / "older"
    older.mkdir()
    (older / "spending_limits.json").write_text("{}")
    with pytest.raises(StorageError, match=r"spending_limits\.json.*usage-plugin migrate"):
        Archive(older, BERLIN)


def test_profiles_are_kept_newest_first(tmp_path: Path) -> None:
    """Of several profiles of a user the newest counts, in any order of arrival."""
    copies = MirrorFiles(tmp_path)
    new = UserProfile("ann", email="new@x", tier="premium", metadata={"a": [1]}, created_at=NOON, updated_at=NOON + 2)
    copies.keep_profiles([new, UserProfile("bo", updated_at=1)])
    copies.keep_profiles([new._replace(email="old@x", updated_at=NOON + 1)])
    assert list(MirrorFiles(tmp_path).profiles()) == [new, UserProfile("bo", updated_at=1)]
    line = json.loads((tmp_path / "user_profiles.jsonl").read_text().splitlines()[0])
    assert set(line) == {
        "user_id", "username", "email", "created_at", "updated_at", "is_active", "user_tier", "preferences", "metadata",
    }  # fmt: skip
    assert (line["user_tier"], line["updated_at"]) == ("premium", "2026-11-23T12:00:00.000002+00:00")


def test_a_forgotten_user_has_no_profile(tmp_path: Path) -> None:
    """No line of the file names an erased user, and the other users are still there."""
    copies = MirrorFiles(tmp_path)
    copies.keep_profiles([UserProfile("ann", updated_at=1), UserProfile("ann", updated_at=2), UserProfile("bo")])
    copies.forget("ann")
    assert list(copies.profiles()) == [UserProfile("bo")]
    assert "ann" not in (tmp_path / "user_profiles.jsonl").read_text()


def test_limits_are_kept_once(tmp_path: Path) -> None:
    """Limits stand in one file as in the YAML, which is left alone while they are the same."""
    copies = MirrorFiles(tmp_path)
    limits = [{"name": "daily", "per": ["user"], "max_cost": "5"}]
    copies.keep_limits(limits)
    path = tmp_path / "spending_limits.json"
    found = path.stat().st_ino
    assert json.loads(path.read_text())["limits"] == limits
    copies.keep_limits(limits)
    assert path.stat().st_ino == found
    copies.keep_limits([])
    assert json.loads(path.read_text())["limits"] == []
    assert path.stat().st_mode & 0o777 == 0o600


def test_readers_in_other_threads_take_nothing_back(tmp_path: Path) -> None:
    """Reading the watermarks while another thread appends does not change the written data."""
    tree = Tree(tmp_path)
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            tree.archive.watermarks()

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 151):
            tree.append(make_event(user=f"u{number % 3}"))
            assert tree.archive.watermarks() == {"w": number}
    finally:
        ended.set()
        for reader in readers:
            reader.join()
    assert tree.reopen().watermarks() == {"w": 150}


def test_what_did_not_reach_the_disk_is_taken_back_under_the_eyes_of_readers(tmp_path: Path) -> None:
    """A batch that another thread has read, and that the disk then does not take, is not there."""
    tree = Tree(tmp_path)
    tree.append(make_event())

    def read_and_fail(_: int) -> None:
        tree.archive.watermarks()
        raise OSError("the disk is broken")

    with mock.patch.object(journal.os, "fsync", read_and_fail), pytest.raises(StorageUnavailableError):
        tree.archive.append("w", [(2, make_event())])
    assert tree.archive.watermarks() == {"w": 1}
    assert tree.reopen().watermarks() == {"w": 1}


def test_sums_are_whole_while_files_are_rewritten(tmp_path: Path) -> None:
    """A query waits while a user's days are deleted and their sums have no new owner yet."""
    tree = Tree(tmp_path)
    tree.append(*(make_event(user=user) for user in ("ann", "ann", "bo")))
    found: list[int] = []

    def ask() -> None:
        sums = Archive(tmp_path, BERLIN).aggregate((), TODAY, TODAY, EVERYTHING)
        found.append(sums.groups[()].requests)

    asking = threading.Thread(target=ask)
    put_in_place = archive_module.put_in_place

    def put_and_be_asked(changed: Any, zone: ZoneInfo) -> None:
        put_in_place(changed, zone)
        asking.start()
        # Time enough for a wrong answer.
        asking.join(0.5)

    with mock.patch.object(archive_module, "put_in_place", put_and_be_asked):
        tree.archive.forget("ann", 100)
    asking.join()
    assert found == [3]


def test_what_was_interrupted_leaves_nothing_of_the_forgotten(tmp_path: Path) -> None:
    """Files that were to take the place of others, when a change or an append was killed, go with a user's folder."""
    tree = Tree(tmp_path)
    tree.append(make_event(), make_event(user="bo"))
    ours = [path for path in tree.root.glob(f"{ANN}/**/*") if path.is_file()]
    assert len(ours) == 3
    for path in ours:
        path.with_name(f"{path.name}.new").write_text("ann")
    tree.archive.forget("ann", 100)
    assert not (tree.root / ANN).exists()


def test_what_is_applied_is_left_alone_while_the_rest_is_settled(tmp_path: Path) -> None:
    """Completing an interrupted batch takes no lines away from concurrent readers."""
    tree = Tree(tmp_path)
    tree.append(make_event(), make_event(user="bo"))
    tree.archive.forget("ann", 100)
    tree.append(make_event())
    with mock.patch.object(tree.archive, "_apply", side_effect=OSError), pytest.raises(StorageUnavailableError):
        tree.append(make_event(user="bo"))
    settling = Archive(tmp_path, BERLIN)
    with mock.patch.object(Path, "unlink", side_effect=AssertionError):
        assert settling.watermarks()["w"] == 4
    assert settling.aggregate((), TODAY, TODAY, EVERYTHING).groups[()].requests == 4


def test_what_is_forgotten_while_it_is_handed_out_is_no_lack(tmp_path: Path) -> None:
    """A store that catches up during a rewrite must start again, and then learns of the deletion."""
    tree = Tree(tmp_path)
    tree.append(make_event(), make_event(user="bo"))
    marks = tree.archive.watermarks()
    other = Archive(tmp_path, BERLIN)
    lines_of_days = tree.archive._lines_beyond

    def forget_first(*what: Any) -> Any:
        other.forget("ann", 100)
        return ((line, fields) for line, fields in lines_of_days({}, what[1]))

    with mock.patch.object(tree.archive, "_lines_beyond", forget_first), pytest.raises(StorageUnavailableError):
        list(tree.archive.sent({"w": 0}, marks))
    with pytest.raises(StoragePrunedError):
        list(tree.archive.sent({"w": 0}, marks))
