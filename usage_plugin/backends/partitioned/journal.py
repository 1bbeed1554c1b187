"""The journal: a write-ahead log of batches.

    {"header": …}       the watermarks; all earlier batches are durable elsewhere
    {"batch": …}        the length and checksum of the lines that follow: complete, or ignored
    {"applied": …}      the batches above are in the days' files, until the machine reboots

One append and one sync make a batch durable, for any number of days. The days' files are written after that, without
a sync of each. Once the journal has grown, one sync of the file system makes all of them durable, and the journal is
reset. After a power cut, or if the process died in between, the batches in the journal are applied again.
"""

from __future__ import annotations

import os
import threading
import uuid
import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from usage_plugin.atomic_files import open_private, replace_file, write_all
from usage_plugin.backends.partitioned.filesystem import boot, sync_everything
from usage_plugin.backends.partitioned.running_totals import parse_line
from usage_plugin.encoding import encode_record
from usage_plugin.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

NAME = "journal.jsonl"
MAX_BYTES = 4_000_000
"""The size at which the journal is reset."""

_BLOCK = 4_096
_LONGEST_LINE = 10_000_000

Kind = Literal["header", "batch", "applied"]


class JournalEntry(NamedTuple):
    """One entry: its kind, its fields, and the offsets at which a batch's lines start and end."""

    kind: Kind
    says: dict[str, Any]
    lines: int
    end: int


class View(NamedTuple):
    """The state of the days' files.

    Attributes:
        watermarks: The watermarks of the applied batches.
        is_settled: Whether all batches are applied. A batch that is not is being applied, or was interrupted.
        pending: The writers of the batches that are not applied.
        is_certain: Whether the applied batches are known to be in the files, because they were applied since the boot.
    """

    watermarks: Mapping[str, int]
    is_settled: bool
    pending: frozenset[str]
    is_certain: bool


class Journal:
    """One file, read by all processes, and written by the process that holds the store's lock."""

    def __init__(self, folder: Path) -> None:
        """Use the folder's journal; `create` creates it."""
        self._folder = folder
        self.path = folder / NAME
        self._reading = threading.Lock()
        self._start_over(b"")

    def _start_over(self, header: bytes) -> None:
        self._header = header
        self._end = 0
        self._applied_end = 0
        self._applied: dict[str, int] = {}
        self._boot: str | None = None
        self._pending: list[JournalEntry] = []

    def create(self, watermarks: Mapping[str, int]) -> None:
        """Write an empty journal, in place of the present one."""
        # The id distinguishes it from its predecessors: the system gives a new file the inode of an old one.
        header = encode_record({"header": {"id": uuid.uuid4().hex, "watermarks": dict(sorted(watermarks.items()))}})
        replace_file(self.path, f"{header}\n".encode(), sync=True)

    def reset(self, watermarks: Mapping[str, int]) -> None:
        """Sync the file system, and write an empty journal; all batches must be applied."""
        sync_everything(self._folder)
        self.create(watermarks)

    def view(self) -> View:
        """Return the state of the days' files.

        Raises:
            FileNotFoundError: The journal does not exist.
            StorageUnavailableError: The journal is damaged.
        """
        with self._reading:
            self._read_on()
            is_certain = self._boot in (None, boot())
            pending = frozenset(batch.says["writer"] for batch in self._pending)
            return View(dict(self._applied), is_certain and not pending, pending, is_certain)

    def _read_on(self) -> None:
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = _line_at(handle, 0)
            if header is None:
                raise StorageUnavailableError(f"{self.path} is damaged.", hint="Restore the folder from a backup.")
            if header != self._header:
                self._start_over(header)
            # A batch that is not applied may still be truncated, if it does not reach the disk.
            pending: list[JournalEntry] = []
            # Set at the end only: another thread that writes uses it.
            end = self._applied_end
            for part in self._parts(handle, end):
                if part.kind == "header":
                    self._applied = dict(part.says["watermarks"])
                    self._applied_end = part.end
                elif part.kind == "batch":
                    pending.append(part)
                else:
                    self._applied |= {batch.says["writer"]: batch.says["last"] for batch in pending}
                    pending = []
                    self._boot = part.says["boot"]
                    self._applied_end = part.end
                end = part.end
            self._pending, self._end = pending, end
        finally:
            os.close(handle)

    def batches(self, *, pending: bool) -> Iterator[list[bytes]]:
        """Yield the lines of every batch, or of the unapplied ones only; requires the lock."""
        start = self._applied_end if pending else 0
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for part in self._parts(handle, start):
                if part.kind == "batch":
                    yield os.pread(handle, part.end - part.lines, part.lines).splitlines(keepends=True)
        finally:
            os.close(handle)

    def _parts(self, handle: int, start: int) -> Iterator[JournalEntry]:
        """Yield entries until the end, or until an entry that a power cut truncated: it was never acknowledged."""
        while (line := _line_at(handle, start)) is not None:
            ((kind, says),) = (parse_line(line) or {"": {}}).items()
            if kind not in get_args(Kind):
                return
            lines = end = start + len(line)
            if kind == "batch":
                end += says["bytes"]
                size = os.fstat(handle).st_size
                if zlib.crc32(os.pread(handle, says["bytes"], lines)) != says["crc32"]:
                    if size > end:
                        # More entries follow, so it was complete once.
                        raise StorageUnavailableError(
                            f"{self.path} is damaged at byte {lines}.", hint="Restore the folder from a backup."
                        )
                    return
            yield JournalEntry(cast("Kind", kind), says, lines, end)
            start = end

    def commit(self, writer: str, last: int, lines: Sequence[bytes]) -> None:
        """Append a batch, durable when this returns; requires the lock, and all earlier batches applied."""
        body = b"".join(lines)
        says = {"writer": writer, "last": last, "bytes": len(body), "crc32": zlib.crc32(body)}
        self._append("batch", says, body, sync=True)

    def mark_applied(self) -> None:
        """Record that all batches are in the days' files."""
        self._append("applied", {"boot": boot()}, b"", sync=False)

    @property
    def is_long(self) -> bool:
        """Whether the journal should be reset."""
        return self._end > MAX_BYTES

    @property
    def is_empty(self) -> bool:
        """Whether the journal has no batch since its last reset."""
        return self._boot is None

    def _append(self, kind: Kind, says: Mapping[str, Any], body: bytes, *, sync: bool) -> None:
        # Kept here: another thread that reads sees written data before it is durable.
        end = self._end
        handle = open_private(self.path, os.O_WRONLY)
        try:
            # A truncated entry is overwritten.
            os.ftruncate(handle, end)
            try:
                os.lseek(handle, end, os.SEEK_SET)
                write_all(handle, f"{encode_record({kind: says})}\n".encode() + body)
                if sync:
                    os.fsync(handle)
            except OSError:
                # The data may be complete without being durable: it must not count as a batch.
                os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)
        self.view()


def _line_at(handle: int, start: int) -> bytes | None:
    """Return the line that starts at an offset; None if it is incomplete."""
    line = b""
    while b"\n" not in line:
        block = os.pread(handle, _BLOCK, start + len(line))
        if not block or len(line) > _LONGEST_LINE:
            return None
        line += block
    return line[: line.index(b"\n") + 1]
