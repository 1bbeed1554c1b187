"""Mirror profiles and limits to the files of the previous system, for people and for restoration."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from usage_plugin.atomic_files import make_private_folder, open_private, replace_file, staged, sync_folder, write_all
from usage_plugin.backends.partitioned.external_sort import sorted_lines
from usage_plugin.backends.partitioned.filesystem import StoreLock, read_json, translated
from usage_plugin.backends.partitioned.running_totals import parse_line
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.profiles import UserProfile, encode_json
from usage_plugin.domain.windows import to_datetime, to_instant
from usage_plugin.encoding import encode_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_MAX_STALE_BYTES = 1_000_000
"""The size of outdated profiles at which the file is rewritten."""

_PROFILES, _LIMITS, _LOCK = "user_profiles.jsonl", "spending_limits.json", "copies.lock"


def foreign_mirror_files(folder: Path) -> list[Path]:
    """Return files of the same names that another system wrote."""
    if (folder / _LOCK).exists():
        return []
    return [path for name in (_PROFILES, _LIMITS) if (path := folder / name).exists()]


class MirrorFiles:
    """The files `user_profiles.jsonl`, to which changed profiles are appended, and `spending_limits.json`."""

    def __init__(self, folder: Path) -> None:
        """Use the files of a folder."""
        self._folder = folder
        self._profiles = folder / _PROFILES
        self._limits = folder / _LIMITS
        self._lock = StoreLock(folder / _LOCK)
        self._size_of_newest = 0

    def keep_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Append profiles; they are durable when this returns."""
        with translated(self._folder):
            make_private_folder(self._folder)
            with self._lock.held():
                handle = open_private(self._profiles, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                try:
                    size = os.fstat(handle).st_size
                    torn = size and os.pread(handle, 1, size - 1) != b"\n"
                    lines = "".join(f"{encode_json(_to_fields(profile))}\n" for profile in profiles)
                    write_all(handle, ("\n" if torn else "").encode() + lines.encode())
                    os.fsync(handle)
                finally:
                    os.close(handle)
                if self._profiles.stat().st_size > 2 * self._size_of_newest + _MAX_STALE_BYTES:
                    self._write_newest()

    def forget(self, user: str) -> None:
        """Delete a user's profile."""
        with translated(self._folder):
            if any(profile.user == user for profile in self._newest()):
                with self._lock.held():
                    self._write_newest(without=user)

    def _write_newest(self, without: str | None = None) -> None:
        handle = open_private(staged(self._profiles), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(handle, "wb") as file:
            for profile in self._newest():
                if profile.user == without:
                    continue
                file.write(f"{encode_json(_to_fields(profile))}\n".encode())
            file.flush()
            os.fsync(file.fileno())
            self._size_of_newest = file.tell()
        staged(self._profiles).rename(self._profiles)
        sync_folder(self._folder)

    def profiles(self) -> Iterator[UserProfile]:
        """Yield the newest profile of each user, by user."""
        with translated(self._folder):
            yield from self._newest()

    def _newest(self) -> Iterator[UserProfile]:
        try:
            file = self._profiles.open("rb")
        except FileNotFoundError:
            return
        with file:
            lines = ((_key_of(line), line) for line in file if parse_line(line) is not None)
            latest: UserProfile | None = None
            for line in sorted_lines(lines, _key_of):
                profile = _from_fields(parse_line(line) or {})
                if latest is not None and profile.user != latest.user:
                    yield latest
                latest = profile
            if latest is not None:
                yield latest

    def keep_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """Write the limits in force, unless the file already has them."""
        with translated(self._folder):
            make_private_folder(self._folder)
            with self._lock.held():
                kept = read_json(self._limits)
                listed = [dict(limit) for limit in limits]
                if kept is None or kept.get("limits") != listed:
                    now = to_datetime(SystemClock().now()).isoformat()
                    fields = {"last_updated": now, "limits": listed}
                    replace_file(self._limits, f"{encode_record(fields)}\n".encode(), sync=True)


def _key_of(line: bytes) -> tuple[str, int]:
    fields = parse_line(line) or {}
    return fields["user_id"], _instant(fields.get("updated_at"))


def _to_fields(profile: UserProfile) -> dict[str, Any]:
    return {
        "user_id": profile.user,
        "username": profile.username,
        "email": profile.email,
        "created_at": to_datetime(profile.created_at).isoformat(),
        "updated_at": to_datetime(profile.updated_at).isoformat(),
        "is_active": profile.is_active,
        "user_tier": profile.tier,
        "preferences": dict(profile.preferences),
        "metadata": dict(profile.metadata),
    }


def _from_fields(fields: Mapping[str, Any]) -> UserProfile:
    return UserProfile(
        user=fields["user_id"],
        username=fields.get("username"),
        email=fields.get("email"),
        tier=fields.get("user_tier", "free"),
        is_active=fields.get("is_active", True),
        preferences=fields.get("preferences") or {},
        metadata=fields.get("metadata") or {},
        created_at=_instant(fields.get("created_at")),
        updated_at=_instant(fields.get("updated_at")),
    )


def _instant(text: str | None) -> int:
    return to_instant(datetime.fromisoformat(text)) if text else 0
