"""Disk: where benchmarks keep their files. Memory posing as a disk would flatter a ledger that writes."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNTS = Path("/proc/self/mounts")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is gone afterwards: among the temporary files, or in `./data` if those are in memory."""
    parent = Path(tempfile.gettempdir())
    if _filesystem(parent) in _IN_MEMORY:
        parent = Path("data").absolute()
        parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="usage-plugin-benchmark-", dir=parent) as folder:
        yield Path(folder)


def _filesystem(path: Path) -> str | None:
    """Name the kind of file system a folder is on; None where the system does not say."""
    if not _MOUNTS.is_file():
        return None
    mounts = dict(line.split()[1:3] for line in _MOUNTS.read_text(encoding="utf-8").splitlines())
    path = path.resolve()
    return next((mounts[str(folder)] for folder in (path, *path.parents) if str(folder) in mounts), None)
