"""Check that a test run leaves the machine's folders unchanged.

    python -m tests.system_snapshot take FILE
    make test
    python -m tests.system_snapshot compare FILE

It compares type, owner, permissions, size and modification time of all files in the system's folders and in the home
directory. Caches are excluded, since package managers and Python fill them by themselves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SYSTEM = ("/bin", "/boot", "/etc", "/lib", "/lib64", "/opt", "/sbin", "/srv", "/usr")
CACHES = frozenset({"__pycache__", ".cache", ".npm"})
MOST_SHOWN = 50


def take() -> dict[str, list[int]]:
    """Return the recorded facts of each path; links are not followed."""
    waiting = [folder for folder in map(Path, SYSTEM) if folder.is_dir() and not folder.is_symlink()] + [Path.home()]
    found: dict[str, list[int]] = {}
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            if entry.name in CACHES or is_repository(entry):
                continue
            known = entry.stat(follow_symlinks=False)
            is_folder = entry.is_dir(follow_symlinks=False)
            # A folder's size and time change with the caches in it; its other entries are compared individually.
            changing = [] if is_folder else [known.st_size, known.st_mtime_ns]
            found[entry.path] = [known.st_mode, known.st_uid, known.st_gid, *changing]
            if is_folder:
                waiting.append(Path(entry.path))
    return found


def is_repository(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is the folder of this repository, in which tools keep their caches."""
    return Path(entry.path) == Path(__file__).parents[1]


def main(verb: str, file: str) -> int:
    """Take a snapshot, or compare with one; return 1 if something differs."""
    path = Path(file)
    if verb == "take":
        path.write_text(json.dumps(take()), encoding="utf-8")
        return 0
    before, after = json.loads(path.read_text(encoding="utf-8")), take()
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed[:MOST_SHOWN]:
        print("created" if name not in before else "deleted" if name not in after else "changed", name)
    print(f"{len(changed)} of {len(after)} paths of the system differ.")
    return 1 if changed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("take", "compare"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
