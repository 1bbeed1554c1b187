"""List the sources in a directory of the previous tracker by name, without following links, and rename them at the end.

The identity of a directory is in a small file of ours, so that a moved directory is never imported twice.
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
    # If two agree on the number of requests, the first counts.
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
"""The files that show that a source belongs to our own store of files, not to the previous tracker."""
_FORMAT_1 = ("days", "months", "profiles")
DATABASE_SUFFIXES = ("-wal", "-journal", "-shm")
"""The suffixes of SQLite's extra files of a database; the first two hold changes that are not in it yet."""


class LegacySource(NamedTuple):
    """A file or folder to import; `number` is its position in the order."""

    number: int
    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """The name for people."""
        return self.path.name

    @property
    def format(self) -> int:
        """The number of the format; both formats use the same name for limits."""
        return 1 if self.kind in _FORMAT_1 else 2

    def look(self) -> str:
        """Return the state of a file without reading it; empty for folders, whose state cannot be seen."""
        if self.kind in _FOLDERS:
            return ""
        found = self.path.lstat()
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"

    def size(self) -> int | None:
        """Return the size of a file in bytes; None for folders."""
        return None if self.kind in _FOLDERS else self.path.lstat().st_size


def find_sources(directory: Path) -> tuple[list[LegacySource], list[Path]]:
    """Return the sources to import, and the paths with a source's name that are links or special files.

    Files of our own stores are in neither list.
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
            found.append(LegacySource(number, kind, path))
        else:
            strange.append(path)
    return found, strange


def formats_of(sources: list[LegacySource]) -> list[int]:
    """Return the numbers of the formats; limits alone are of the first."""
    found = {source.format for source in sources if source.kind != "limits"}
    return sorted(found) or ([1] if sources else [])


def files_below(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the files below a folder by name, and whether each is a regular file: links and special files are not."""
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
    """Return the permanent id of a directory; for a read-only directory, an id derived from its path.

    Args:
        directory: The resolved directory of the previous tracker.
        staging_folder: The folder of the staging databases: an existing one under a derived id stays in use.
        remember: Whether the id may be written to the directory.

    Raises:
        MigrationError: The file of the id holds something else.
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
        raise MigrationError(f"Cannot read {path}: {error}.") from error
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise MigrationError(
            f"{path}: expected the id of this directory, 32 hex digits.",
            hint="If this directory was never imported, delete that file.",
        )
    return text


def rename(source: LegacySource) -> list[Path]:
    """Rename an imported source to `*.legacy_backup`, without replacing a file; return the new paths.

    Raises:
        OSError: The source cannot be renamed; no file was.
    """
    paths = [source.path]
    if source.kind == "database":
        # Together with its extra files, since these hold changes.
        extra = [source.path.with_name(source.name + suffix) for suffix in DATABASE_SUFFIXES]
        paths += [path for path in extra if path.exists()]
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
