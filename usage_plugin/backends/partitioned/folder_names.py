"""Names of users' folders: unique for any user name, and never a path outside of the tree.

The previous system used ids unchanged, and so do we for harmless ones. In all others, each harmful byte is written as
`%xx`, and a name that would be too long becomes `%%` and a hash. All names are lower case, so that they stay distinct
on a file system that does not distinguish `Ann` and `ann`.
"""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[a-z0-9._@-]{1,100}")
_HARMLESS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._@-")
LONGEST = 200
"""The maximum length; file systems accept 255 bytes."""


def folder_name(user: str) -> str:
    """Return the name of a user's folder."""
    if _PLAIN.fullmatch(user) and user.strip("."):
        return user
    harmless = _HARMLESS if user.strip(".") else _HARMLESS - {ord(".")}
    encoded = user.encode("utf-8", "surrogatepass")
    escaped = "".join(chr(byte) if byte in harmless else f"%{byte:02x}" for byte in encoded)
    if "%" in escaped and len(escaped) <= LONGEST:
        return escaped
    return f"%%{hashlib.sha256(encoded).hexdigest()}"


def shelf_of(user: str) -> str:
    """Return the parent of a user's folder: two hex digits, as in the previous system."""
    encoded = user.encode("utf-8", "surrogatepass")
    return hashlib.md5(encoded, usedforsecurity=False).hexdigest()[:2]
