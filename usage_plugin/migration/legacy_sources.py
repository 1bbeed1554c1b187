"""What is in a directory of the previous tracker: recognised by name, opened without following links, renamed at last.

A directory keeps its identity in a small file of ours, so that it can be moved and still is never imported twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.atomic_files import open_regular
from usage_plugin.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE_FILE = ".usage_plugin_migration"
BACKUP = ".legacy_backup"

Kind = Literal["database", "tree", "days", "months", "profiles", "profile_lines", "limits", "limit_files"]

_NAMES: tuple[tuple[str, Kind], ...] = (
    # Where two are equally right, the first counts.
    ("usage_aggregations.db", "database"),
    ("partitioned", "tree"),
    ("daily_usage.json", "days"),
    ("monthly_usage.json", "months"),
    ("user_profiles.jsonl", "profile_lines"),
    ("user_profiles.json", "profiles"),
    ("spending_limits", "limit_files"),
    ("spending_limits.json", "limits"),
)
_FOLDERS = ("tree", "limit_files")
_OURS: dict[Kind, str] = {
    "tree": "partitioned/store.json",
    "profile_lines": "copies.lock",
    "limits": "copies.lock",
}
"""What stands there if it is not the previous tracker's, but belongs to the store that keeps its history in files."""
_FORMAT_1 = ("days", "months", "profiles")
BESIDE_DATABASE = ("-wal", "-journal", "-shm")
"""What SQLite may have left beside a database; the first two hold changes that are not in it yet."""


class Source(NamedTuple):
    """A file or folder that is read; `number` orders them."""

    number: int
    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """What people know it by."""
        return self.path.name

    @property
    def format(self) -> int:
        """Which of the two formats it belongs to; both have limits of one name."""
        return 1 if self.kind in _FORMAT_1 else 2

    def look(self) -> str:
        """Tell one state of a file from another without reading it; nothing for folders, which have no such sign."""
        if self.kind in _FOLDERS:
            return ""
        found = self.path.lstat()
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"

    def size(self) -> int | None:
        """Give the bytes of a file; None for folders."""
        return None if self.kind in _FOLDERS else self.path.lstat().st_size


def find_sources(directory: Path) -> tuple[list[Source], list[Path]]:
    """List what there is to import, and what has a right name but is a link or no plain file.

    What is not the previous tracker's but a store's of ours is neither.
    """
    found, strange = [], []
    for number, (name, kind) in enumerate(_NAMES):
        path = directory / name
        if kind in _OURS and (directory / _OURS[kind]).exists():
            continue
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode) if kind in _FOLDERS else stat.S_ISREG(mode):
            found.append(Source(number, kind, path))
        else:
            strange.append(path)
    return found, strange


def formats_of(sources: list[Source]) -> list[int]:
    """Say which formats are there; limits alone are of the first."""
    told = {source.format for source in sources if source.kind != "limits"}
    return sorted(told) or ([1] if sources else [])


def files_below(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Walk through a folder by name; a link, or whatever is neither file nor folder, comes with False."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        with os.scandir(here) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name, reverse=True)
        for entry in ordered:
            path = Path(entry.path)
            if entry.name.endswith(BACKUP):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                yield path, entry.is_file(follow_symlinks=False)


def identify(directory: Path, staging_folder: Path, *, remember: bool) -> str:
    """Give a directory's name for ever; where it cannot be written to, a name made of where it is.

    Args:
        directory: of the previous tracker, resolved.
        staging_folder: where the staging databases are: one under the second kind of name goes on to be used.
        remember: whether the name may be written down.

    Raises:
        MigrationError: the file with the name holds something else.
    """
    path = directory / STATE_FILE
    with suppress(FileNotFoundError):
        return _read_name(path)
    by_place = hashlib.blake2b(os.fsencode(directory), digest_size=16).hexdigest()
    name = by_place if (staging_folder / f"{by_place}.db").exists() or not remember else uuid.uuid4().hex
    if not remember:
        return name
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read_name(path)
    except OSError:
        return by_place
    with os.fdopen(handle, "wb") as file:
        file.write(f"{name}\n".encode())
        file.flush()
        os.fsync(handle)
    return name


def _read_name(path: Path) -> str:
    try:
        with open_regular(path, follow_links=False) as file:
            text = file.read(64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MigrationError(f"{path} cannot be read: {error}.") from error
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise MigrationError(
            f"{path} does not hold the name of this directory.",
            hint="If this directory was never imported, delete that file.",
        )
    return text


def rename(source: Source) -> list[Path]:
    """Rename what was imported to `*.legacy_backup`, never over anything; give the new names.

    Raises:
        OSError: it cannot be renamed; nothing was.
    """
    paths = [source.path]
    if source.kind == "database":
        # With it, or it would be another database.
        beside = [source.path.with_name(source.name + ending) for ending in BESIDE_DATABASE]
        paths += [path for path in beside if path.exists()]
    renamed = []
    for path in reversed(paths):
        target = _free_name(path)
        path.rename(target)
        renamed.append(target)
    return renamed


def _free_name(path: Path) -> Path:
    target = path.with_name(path.name + BACKUP)
    number = 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.{number}{BACKUP}")
    return target
