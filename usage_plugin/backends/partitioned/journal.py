"""The journal: where a batch is on the disk before it is anywhere else.

    {"header": …}       all that was in the journal before is on the disk elsewhere; the watermarks until then
    {"batch": …}        followed by its lines, of which it names the length and the checksum: whole, or not there
    {"applied": …}      the batches above are in the days' files, as long as this boot of the machine lasts

One append and one sync make a batch durable, however many days it touches. The days' files are written after that
and not synced one by one: once the journal has grown, one sync of the file system makes all of them durable, and the
journal begins anew. After a power cut, or if the process died in between, what stands in the journal is applied again.
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
LONGEST = 4_000_000
"""So many bytes, and the journal begins anew."""

_BLOCK = 4_096
_LONGEST_LINE = 10_000_000

Kind = Literal["header", "batch", "applied"]


class Part(NamedTuple):
    """One entry: its kind, what it says, and where a batch's lines begin and end."""

    kind: Kind
    says: dict[str, Any]
    lines: int
    end: int


class View(NamedTuple):
    """What the days' files hold.

    Attributes:
        watermarks: of the batches that have been applied.
        is_settled: whether there is nothing else; what is not settled is being applied, or was interrupted.
        pending: the writers of what is not settled.
        is_certain: whether they hold even that: since the machine was started, somebody has made sure of it.
    """

    watermarks: Mapping[str, int]
    is_settled: bool
    pending: frozenset[str]
    is_certain: bool


class Journal:
    """One file, read by all processes, and written by whoever holds the store's lock."""

    def __init__(self, folder: Path) -> None:
        """Use the folder's journal; `create` makes it."""
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
        self._pending: list[Part] = []

    def create(self, watermarks: Mapping[str, int]) -> None:
        """Begin anew, in place of what there is."""
        # The id tells it from its predecessors: the system gives a new file the number of an old one.
        header = encode_record({"header": {"id": uuid.uuid4().hex, "watermarks": dict(sorted(watermarks.items()))}})
        replace_file(self.path, f"{header}\n".encode(), sync=True)

    def begin_anew(self, watermarks: Mapping[str, int]) -> None:
        """Put on the disk what was written to the folder's file system, and begin anew; all must be applied."""
        sync_everything(self._folder)
        self.create(watermarks)

    def view(self) -> View:
        """See what the days' files hold.

        Raises:
            FileNotFoundError: there is no journal.
            StorageUnavailableError: it is damaged.
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
                raise StorageUnavailableError(
                    f"{self.path} is damaged.", hint="Put a backup of the folder in its place."
                )
            if header != self._header:
                self._start_over(header)
            # A batch that is not applied may still be taken back, if it does not reach the disk.
            pending: list[Part] = []
            # Set at the end only: whoever writes in another thread goes by it.
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
        """Read the lines of every batch, or of those alone that are not applied; only for whoever has the lock."""
        start = self._applied_end if pending else 0
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for part in self._parts(handle, start):
                if part.kind == "batch":
                    yield os.pread(handle, part.end - part.lines, part.lines).splitlines(keepends=True)
        finally:
            os.close(handle)

    def _parts(self, handle: int, start: int) -> Iterator[Part]:
        """Read entries until the end, or until what was torn off by a power cut: nobody was told that it is there."""
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
                        # More follows, so that it was whole once.
                        raise StorageUnavailableError(
                            f"{self.path} is damaged at byte {lines}.", hint="Put a backup of the folder in its place."
                        )
                    return
            yield Part(cast(Kind, kind), says, lines, end)
            start = end

    def commit(self, writer: str, last: int, lines: Sequence[bytes]) -> None:
        """Add a batch, on the disk when this returns; the lock is held, and all before is applied."""
        body = b"".join(lines)
        says = {"writer": writer, "last": last, "bytes": len(body), "crc32": zlib.crc32(body)}
        self._append("batch", says, body, sync=True)

    def mark_applied(self) -> None:
        """Say that all batches are in the days' files."""
        self._append("applied", {"boot": boot()}, b"", sync=False)

    @property
    def is_long(self) -> bool:
        """Whether it should begin anew."""
        return self._end > LONGEST

    @property
    def is_empty(self) -> bool:
        """Whether all that it knows is on the disk elsewhere."""
        return self._boot is None

    def _append(self, kind: Kind, says: Mapping[str, Any], body: bytes, *, sync: bool) -> None:
        # Remembered here: whoever reads in another thread sees what is written before it is on the disk.
        end = self._end
        handle = open_private(self.path, os.O_WRONLY)
        try:
            # What was torn off is written over.
            os.ftruncate(handle, end)
            try:
                os.lseek(handle, end, os.SEEK_SET)
                write_all(handle, f"{encode_record({kind: says})}\n".encode() + body)
                if sync:
                    os.fsync(handle)
            except OSError:
                # What is there may be whole without being on the disk: it must not be taken for a batch.
                os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)
        self.view()


def _line_at(handle: int, start: int) -> bytes | None:
    """Read the line that begins there; None if there is none that is whole."""
    line = b""
    while b"\n" not in line:
        block = os.pread(handle, _BLOCK, start + len(line))
        if not block or len(line) > _LONGEST_LINE:
            return None
        line += block
    return line[: line.index(b"\n") + 1]
