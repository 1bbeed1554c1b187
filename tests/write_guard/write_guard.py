"""Reject and report each write, deletion and listening socket outside of the folders of the test run.

An audit hook of this process; `sitecustomize` installs it in child processes. It covers files opened by Python and
SQLite, but not by a shell or a native library: for those, `tests/system_snapshot.py` compares the machine's folders.
It imports only the standard library, since it runs before all other code.
"""

from __future__ import annotations

import os
import stat
import sys
from threading import get_ident
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOTS = "WRITE_GUARD_ROOTS"
"""Environment variable: the writable folders, joined like PATH."""

REPORTS = "WRITE_GUARD_REPORTS"
"""Environment variable: the folder in which each process reports its violations."""

FOLDER = os.path.dirname(os.path.abspath(__file__))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LOOPBACK = ("127.", "::1", "localhost")
_installed: list[bool] = []


def install(environment: Mapping[str, str] = os.environ) -> None:
    """Guard this process if the environment names the folders; a guard cannot be removed."""
    if _installed or ROOTS not in environment:
        return
    _installed.append(True)
    roots = tuple(os.path.realpath(root) for root in environment[ROOTS].split(os.pathsep))
    reporting: set[int] = set()

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        found = _CHECKS.get(event)
        if found is None or get_ident() in reporting:
            return
        for violation in found(roots, *arguments):
            reporting.add(get_ident())
            try:
                _report(environment[REPORTS], f"{event}: {violation}")
            finally:
                reporting.discard(get_ident())
            raise PermissionError(f"a test may not do this: {event}: {violation}")

    sys.addaudithook(check)


def _report(folder: str, violation: str) -> None:
    with open(os.path.join(folder, str(os.getpid())), "a", encoding="utf-8", errors="replace") as file:
        file.write(f"{violation}\n")


def reported(folder: str) -> list[str]:
    """Return the violations reported so far, and delete them."""
    found: list[str] = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        with open(path, encoding="utf-8") as file:
            found += file.read().splitlines()
        os.remove(path)
    return found


def _outside(roots: tuple[str, ...], path: Any, folder: Any = -1, *, follow: bool = False) -> Iterator[str]:
    """Yield the path if it is outside of the roots; `folder` is the descriptor that a relative path starts from."""
    if isinstance(path, int):
        return
    name = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        name = os.path.join(os.path.realpath(f"/proc/self/fd/{folder}"), name)
    parent, last = os.path.split(os.path.abspath(name))
    place = os.path.join(os.path.realpath(parent), last)
    if follow:
        place = os.path.realpath(place)
    if not _is_allowed(place, roots):
        yield place


def _is_allowed(place: str, roots: tuple[str, ...]) -> bool:
    if any(place == root or place.startswith(root + os.sep) for root in roots):
        return True
    # The second path is multiprocessing's memory that is shared with children.
    if place.startswith((f"/proc/{os.getpid()}/", f"/dev/shm/pym-{os.getpid()}-")) or "__pycache__" in place.split(
        os.sep
    ):
        return True
    try:
        return stat.S_ISCHR(os.stat(place).st_mode)
    except OSError:
        return False


def _open(roots: tuple[str, ...], path: Any, mode: str | None, flags: int) -> Iterator[str]:
    writes = flags & _WRITES if mode is None else set(mode) & set("wax+")
    if writes and path is not None:
        yield from _outside(roots, path, follow=True)


def _two(roots: tuple[str, ...], source: Any, target: Any, source_folder: Any = -1, folder: Any = -1) -> Iterator[str]:
    yield from _outside(roots, source, source_folder)
    yield from _outside(roots, target, folder)


def _symlink(roots: tuple[str, ...], _: Any, target: Any, folder: Any = -1) -> Iterator[str]:
    yield from _outside(roots, target, folder)


def _mkdir(roots: tuple[str, ...], path: Any, _: int, folder: Any = -1) -> Iterator[str]:
    # Code often creates a folder only to find out whether it exists.
    yield from (place for place in _outside(roots, path, folder) if not os.path.isdir(place))


def _one(folder_at: int) -> Callable[..., Iterator[str]]:
    def check(roots: tuple[str, ...], path: Any, *rest: Any) -> Iterator[str]:
        return _outside(roots, path, rest[folder_at] if len(rest) > folder_at else -1)

    return check


def _sqlite(roots: tuple[str, ...], database: Any) -> Iterator[str]:
    name = os.fsdecode(database)
    if name in ("", ":memory:"):
        return
    if name.startswith("file:"):
        address = urlsplit(name)
        if parse_qs(address.query).get("mode", [""])[0] in ("ro", "memory") or address.path in ("", ":memory:"):
            return
        name = unquote(address.path)
    yield from _outside(roots, name, follow=True)


def _bind(roots: tuple[str, ...], _: Any, address: Any) -> Iterator[str]:
    if isinstance(address, tuple):
        if not str(address[0]).startswith(_LOOPBACK):
            yield str(address)
    elif isinstance(address, str | bytes) and address and os.fsdecode(address)[0] != "\0":
        yield from _outside(roots, address)


def _start(_: tuple[str, ...], program: Any, arguments: Any, *rest: Any) -> Iterator[str]:
    """Yield a program that starts without the guard."""
    environment = rest[-1]
    if environment is None:
        return
    names = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
    if names.get(ROOTS) is None or FOLDER not in names.get("PYTHONPATH", "").split(os.pathsep):
        yield f"{program} {arguments} without the guard in its environment"


_CHECKS: dict[str, Callable[..., Iterator[str]]] = {
    "open": _open,
    "os.mkdir": _mkdir, "os.remove": _one(0), "os.rmdir": _one(0), "os.truncate": _one(9), "os.chmod": _one(1),
    "os.chown": _one(2), "os.utime": _one(2), "os.setxattr": _one(9), "os.removexattr": _one(9),
    "os.rename": _two, "os.link": _two, "os.symlink": _symlink,
    "sqlite3.connect": _sqlite,
    "socket.bind": _bind,
    "subprocess.Popen": _start, "os.posix_spawn": _start, "os.exec": _start,
}  # fmt: skip
