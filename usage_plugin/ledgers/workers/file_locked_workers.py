"""Detect live workers and elect the keeper by file locks, which the kernel drops when a process dies.

There are no heartbeats: a stalled worker is not dead. A lock file that can be locked belongs to a dead worker.
"""

from __future__ import annotations

import os
import platform
import uuid
from pathlib import Path

from usage_plugin.domain.liveness import Workers
from usage_plugin.file_locks import try_lock

_KEEPER = "keeper.lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class FileLockedWorkers(Workers):
    """Detect the live workers of one data folder by their lock files."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; `join` creates it."""
        self._folder = folder
        self._mine: int | None = None
        self._keeping: int | None = None
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"

    @property
    def host(self) -> str:
        """An id of this folder on this machine: only workers with the same id see each other's locks.

        It differs for a copy of the folder, for another mount of the same name, and after a restart of the machine.
        """
        self._make_folder()
        found = self._folder.stat()
        return f"{_boot_id()}:{found.st_dev:x}:{found.st_ino:x}"

    def _make_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def join(self) -> None:
        """Take this worker's own lock until the process ends."""
        self._make_folder()
        # Renamed only once it is locked: other workers would take an unlocked file for a dead worker's.
        joining = self._folder / f"joining-{self.name}"
        self._mine = try_lock(joining)
        joining.rename(self._path(self.name))

    def try_to_keep(self) -> bool:
        """Take the keeper's lock if it is free."""
        if self._keeping is None:
            self._make_folder()
            self._keeping = try_lock(self._folder / _KEEPER)
        return self._keeping is not None

    @property
    def keeps(self) -> bool:
        """Whether this worker is the keeper."""
        return self._keeping is not None

    def living(self) -> list[str]:
        """List the live workers."""
        return [name for name in self._names() if self._is_alive(name)]

    def is_dead(self, name: str) -> bool:
        """Whether a worker is dead; a worker without a lock file is dead."""
        return name != self.name and not self._is_alive(name)

    def sweep(self) -> None:
        """Remove the lock files of dead workers."""
        for name in self._names():
            if name != self.name:
                held = try_lock(self._path(name), create=False)
                if held is not None:
                    # Unlinked while locked: no process can lock a file that is already removed.
                    self._path(name).unlink(missing_ok=True)
                    os.close(held)

    def leave(self) -> None:
        """Release all locks, the keeper's too."""
        self.stop_keeping()
        if self._mine is not None:
            self._path(self.name).unlink(missing_ok=True)
            os.close(self._mine)
            self._mine = None

    def stop_keeping(self) -> None:
        """Release the keeper's lock, so that another worker can take it."""
        if self._keeping is not None:
            os.close(self._keeping)
            self._keeping = None

    def _path(self, name: str) -> Path:
        return self._folder / f"worker-{name}.lock"

    def _names(self) -> list[str]:
        return sorted(path.stem.removeprefix("worker-") for path in self._folder.glob("worker-*.lock"))

    def _is_alive(self, name: str) -> bool:
        if name == self.name and self._mine is not None:
            return True
        held = try_lock(self._path(name), create=False)
        if held is None:
            return self._path(name).exists()
        os.close(held)
        return False


def _boot_id() -> str:
    """Return an id of this machine since its start; where the system has none, an id of the machine."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode():x}"
