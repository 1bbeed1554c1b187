"""Putting lines in order in bounded memory: sorted runs go to a temporary file, and are merged from there."""

from __future__ import annotations

import heapq
import tempfile
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

RUN = 1_000
"""So many lines are in memory at once."""

_BUFFERS = 16_000_000
"""So many bytes all runs together have in memory while they are merged, as long as they are not too many."""


def sorted_lines(
    lines: Iterable[tuple[Any, bytes]], key: Callable[[bytes], Any], *, reverse: bool = False
) -> Iterator[bytes]:
    """Put lines in order.

    Args:
        lines: each with its key.
        key: makes the key again out of a line.
        reverse: whether the greatest comes first.
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
    """Read lines between two places of a file that others read at other places meanwhile."""
    rest = b""
    while start < end:
        file.seek(start)
        block = file.read(min(size, end - start))
        start += len(block)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line + b"\n"
