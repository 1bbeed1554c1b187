"""Names of folders: every user's own, whatever the user is called, and none outside of where it belongs.

The previous system used ids as they were. Those that are harmless still are; in all others each byte that is not is
written as `%xx`, and what would be too long becomes `%%` and a hash. All names are lower case, so that they stay
apart where the file system makes no difference between `Ann` and `ann`.
"""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[a-z0-9._@-]{1,100}")
_HARMLESS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._@-")
LONGEST = 200
"""File systems take 255 bytes."""


def folder_name(user: str) -> str:
    """Name the folder of a user."""
    if _PLAIN.fullmatch(user) and user.strip("."):
        return user
    harmless = _HARMLESS if user.strip(".") else _HARMLESS - {ord(".")}
    encoded = user.encode("utf-8", "surrogatepass")
    escaped = "".join(chr(byte) if byte in harmless else f"%{byte:02x}" for byte in encoded)
    if "%" in escaped and len(escaped) <= LONGEST:
        return escaped
    return f"%%{hashlib.sha256(encoded).hexdigest()}"


def shelf_of(user: str) -> str:
    """Name the folder that users' folders stand in: two hex digits, as the previous system did."""
    encoded = user.encode("utf-8", "surrogatepass")
    return hashlib.md5(encoded, usedforsecurity=False).hexdigest()[:2]
