"""Sort lines in bounded memory: write sorted runs to a temporary file, then merge them."""

from __future__ import annotations

import heapq
import tempfile
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

RUN = 1_000
"""The maximum number of lines in memory."""

_BUFFERS = 16_000_000
"""The total size of the buffers while runs are merged, in bytes; each run has at least 2,000."""


def sorted_lines(
    lines: Iterable[tuple[Any, bytes]], key: Callable[[bytes], Any], *, reverse: bool = False
) -> Iterator[bytes]:
    """Yield lines in the order of their keys.

    Args:
        lines: The lines with their keys.
        key: Returns the key of a line.
        reverse: Whether the greatest key comes first.
    """
    run: list[tuple[Any, bytes]] = []
    with tempfile.TemporaryFile(prefix="usage-plugin-") as file:
        spans: list[tuple[int, int]] = []

        def spill() -> None:
            start = file.tell()
            file.writelines(line for _, line in sorted(run, reverse=reverse))
            spans.append((start, file.tell()))
            run.clear()

        for keyed in lines:
            run.append(keyed)
            if len(run) >= RUN:
                spill()
        rest = sorted(run, reverse=reverse)
        if not spans:
            yield from (line for _, line in rest)
            return
        file.flush()
        size = max(2_000, min(16_000, _BUFFERS // len(spans)))
        runs = [((key(line), line) for line in _lines_of(file, *span, size)) for span in spans]
        yield from (line for _, line in heapq.merge(*runs, rest, reverse=reverse))


def _lines_of(file: IO[bytes], start: int, end: int, size: int) -> Iterator[bytes]:
    """Yield the lines between two offsets of a file; other runs are read from it at the same time."""
    rest = b""
    while start < end:
        file.seek(start)
        block = file.read(min(size, end - start))
        start += len(block)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line + b"\n"
