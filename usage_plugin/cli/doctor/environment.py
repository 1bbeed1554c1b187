"""Environment checks: versions, the file system of the data folder, the clock, the workers."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from usage_plugin.cli.doctor.findings import Finding, ok, problem, warning
from usage_plugin.domain.windows import to_datetime
from usage_plugin.sqlite_file import has_wal_reset_bug

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from usage_plugin.config import Config
    from usage_plugin.runtime import Parts

_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "afpfs", "ceph", "glusterfs", "lustre", "ncpfs",
    "ocfs2", "gfs2", "gpfs", "beegfs", "davfs", "webdav", "virtiofs", "prl_fs", "vboxsf", "fuse",
})  # fmt: skip
"""File systems whose locks may be unreliable, at least between hosts."""
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.ext2", "fuse.lxcfs", "fuseblk"})
_FULL = 64 * 2**20
_NEARLY_FULL = 2**30
_FIRST_SUPPORTED = (1, 98)
_COMPROMISED = (1, 107)
_SANE_SINCE = 1_767_225_600_000_000
"""2026-01-01: a clock with an earlier time is not set."""
_AHEAD = 300_000_000


def check_environment(config: Config, now: int, newest_event: int | None, workers: list[str]) -> Iterator[Finding]:
    """Check LiteLLM, SQLite, the data folder, the clock and the workers.

    Args:
        config: the configuration, which names the data folder.
        now: microseconds since 1970 UTC.
        newest_event: the time of admission of the newest event; None without events.
        workers: the live workers on this host.
    """
    yield check_litellm()
    yield check_sqlite()
    folder = config.data_dir
    yield check_file_system(folder, mounts())
    yield from check_folder(folder)
    yield check_disk(folder)
    yield check_clock(now, newest_event)
    yield from check_workers(config, workers)


def check_litellm() -> Finding:
    """Check that LiteLLM is installed in a supported version."""
    try:
        version = metadata.version("litellm")
    except metadata.PackageNotFoundError:
        return problem(
            "surroundings",
            f"LiteLLM is not installed in the environment of usage-plugin, {sys.prefix}.",
            "Run the doctor in the environment of the proxy: pip install 'usage-plugin[proxy]'.",
        )
    return check_litellm_version(version)


def check_litellm_version(version: str) -> Finding:
    """Check a version of LiteLLM."""
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if found == _COMPROMISED:
        return problem("surroundings", f"LiteLLM {version} is reported as compromised.", "Install another version.")
    if found < _FIRST_SUPPORTED:
        return problem(
            "surroundings",
            f"LiteLLM {version} is not supported: before 1.98, a stream that the client aborts is not billed.",
            "pip install 'litellm[proxy]>=1.98,!=1.107.*'",
        )
    return ok("surroundings", f"LiteLLM {version} is supported.")


def check_sqlite(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> Finding:
    """Check SQLite for the WAL-reset bug."""
    written = ".".join(map(str, version))
    if has_wal_reset_bug(version):
        return warning(
            "surroundings",
            f"SQLite {written} has the WAL-reset bug. The plugin is not affected: it resets the log only under the"
            " write lock.",
            "Let no other program write to ledger.db. SQLite 3.51.3 and newer have the fix.",
        )
    return ok("surroundings", f"SQLite {written} has no known bug that affects the plugin.")


def mounts() -> list[tuple[str, str]]:
    """Return the mounted file systems: (mount point, type)."""
    try:
        return list(_read_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")))
    except OSError:
        pass
    try:
        listed = subprocess.run(["/sbin/mount"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # macOS writes //ann@host/share on /Volumes/share (smbfs, nodev).
    return re.findall(r" on (/.*?) \((\w+)", listed)


def _read_mountinfo(text: str) -> Iterator[tuple[str, str]]:
    """Parse the kernel's table: the mount point is the fifth field, the type follows the dash."""
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if dash and len(fields) >= 5:
            # Spaces and other special characters in names are octal escapes.
            folder = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[4])
            yield folder, after.split()[0]


def check_file_system(folder: Path, mounted: Iterable[tuple[str, str]]) -> Finding:
    """Check that SQLite's locks are reliable on the file system of the data folder."""
    real = folder.resolve()
    holding = [(Path(point), kind) for point, kind in mounted if real.is_relative_to(point)]
    if not holding:
        return warning(
            "surroundings",
            f"The file system of {folder} is unknown.",
            "It must be a local disk: SQLite's locks are unreliable on network file systems.",
        )
    # Of two mounts on the same folder, the later one hides the earlier.
    point, kind = max(enumerate(holding), key=lambda pair: (len(pair[1][0].parts), pair[0]))[1]
    where = f"{folder} is on {kind} ({point})"
    if kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE):
        return problem(
            "surroundings",
            f"{where}, where file locks may be unreliable: limits may not hold, and files can be damaged.",
            "Put usage_plugin.data_dir on a local disk.",
        )
    if kind in ("tmpfs", "ramfs"):
        return warning("surroundings", f"{where}, which is emptied by a restart of the machine.", "Put it on a disk.")
    return ok("surroundings", f"{where}, a local file system.")


def check_folder(folder: Path) -> Iterator[Finding]:
    """Check that the data folder is writable, and not readable by others."""
    if not folder.exists():
        parent = _existing(folder)
        if os.access(parent, os.W_OK | os.X_OK):
            yield ok("surroundings", f"{folder} does not exist yet; the proxy creates it.")
        else:
            yield problem(
                "surroundings",
                f"{folder} does not exist, and {parent} is not writable.",
                "Create the folder, or change usage_plugin.data_dir.",
            )
        return
    if not folder.is_dir():
        yield problem(
            "surroundings", f"{folder} is not a folder.", "Name a folder under usage_plugin.data_dir, or move the file."
        )
        return
    for path in (folder, *sorted(folder.glob("*.db*"))):
        if not os.access(path, os.R_OK | os.W_OK):
            yield problem(
                "surroundings",
                f"{_owner(os.getuid())} cannot read and write {path}, which belongs to {_owner(path.stat().st_uid)}.",
                "Run the doctor and the proxy as the same user, or change the owner.",
            )
            return
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.getuid():
        yield warning(
            "surroundings",
            f"{folder} belongs to {_owner(status.st_uid)}, not to {_owner(os.getuid())}.",
            "Files created by one user may not be writable for the other.",
        )
    if mode & 0o077:
        yield warning(
            "surroundings",
            f"Other users can read {folder} (mode {mode:o}), which has the spend of each user.",
            f"chmod 700 {folder}",
        )
    else:
        yield ok("surroundings", f"{folder} is readable by its owner only (mode {mode:o}).")


def check_disk(folder: Path) -> Finding:
    """Check the free disk space."""
    free = shutil.disk_usage(_existing(folder)).free
    space = f"{free / 2**30:,.1f} GiB are free for {folder}"
    if free < _FULL:
        return problem("surroundings", f"Only {space}.", "Free disk space: on a full disk, requests are refused.")
    if free < _NEARLY_FULL:
        return warning("surroundings", f"Only {space}.", "An event takes about 1 KiB.")
    return ok("surroundings", f"{space}.")


def check_clock(now: int, newest_event: int | None) -> Finding:
    """Check that the clock is plausible: windows begin and end by it."""
    written = f"{to_datetime(now):%Y-%m-%d %H:%M:%S} UTC"
    if now < _SANE_SINCE:
        return problem("surroundings", f"The clock is set to {written}, which is in the past.", "Set the clock.")
    if newest_event is not None and newest_event > now + _AHEAD:
        return problem(
            "surroundings",
            f"The clock is set to {written}, but a request was recorded at"
            f" {to_datetime(newest_event):%Y-%m-%d %H:%M:%S}.",
            "Set the clock. Requests recorded in the future count in future windows.",
        )
    return ok("surroundings", f"The clock is set to {written}.")


def check_ledger_server(parts: Parts) -> Iterator[Finding]:
    """Check the settings of the ledger's server, if it is on one.

    Raises:
        LedgerError: The server does not answer.
    """
    found = parts.ledger_trouble()
    if found is None:
        return
    if not found:
        yield ok(
            "surroundings", f"The settings of the ledger's server protect its data ({parts.config.ledger.backend})."
        )
    for text in found:
        yield warning("surroundings", text)


def check_workers(config: Config, workers: list[str]) -> Iterator[Finding]:
    """Check the requirements of several workers."""
    try:
        asked = int(os.environ.get("NUM_WORKERS", "1"))
    except ValueError:
        asked = 1
    count = max(asked, len(workers))
    if count < 2:
        return
    if config.ledger.backend == "memory":
        yield problem(
            "surroundings",
            f"{count} workers with a ledger in memory: each worker would enforce its own limits.",
            "Use ledger.backend: sqlite, or one worker.",
        )
    if config.storage.backend == "memory":
        yield warning(
            "surroundings", "The history is in the memory of one worker only.", "Use storage.backend: sqlite."
        )
    if not any("timeout_worker_healthcheck" in line for line in map(_command_lines_of, workers)):
        yield warning(
            "surroundings",
            f"{count} workers: uvicorn kills a worker that takes longer than 5 s to import LiteLLM.",
            "Start LiteLLM with --timeout_worker_healthcheck 120.",
        )


def _command_lines_of(worker: str) -> str:
    """Return the command lines of a worker and its parent; empty without /proc. A worker's name begins with its PID."""
    number = worker.partition("-")[0]
    try:
        status = Path(f"/proc/{number}/status").read_text(encoding="utf-8")
        parent = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        commands = [number, parent[1] if parent else number]
        return " ".join(Path(f"/proc/{one}/cmdline").read_text(encoding="utf-8").replace("\0", " ") for one in commands)
    except (OSError, UnicodeDecodeError):
        return ""


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _owner(number: int) -> str:
    try:
        import pwd  # noqa: PLC0415  # not on every platform

        return pwd.getpwuid(number).pw_name
    except (ImportError, KeyError):
        return f"user {number}"
