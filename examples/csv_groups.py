"""Groups of users from a CSV file with the columns user and group, one line per membership.

    plugins:
      - {path: ./csv_groups.py, options: {file: ./people.csv}}
    identity: {groups_from: [csv_groups]}
    limits:
      - {name: interns, per: user, match: {group: interns}, window: day, max_cost: 1}

The file is read again when it changes. An invalid file is rejected with an error, and the previous groups remain.
"""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path  # noqa: TC003  # pydantic needs it at run time

from usage_plugin import plugins
from usage_plugin.plugins import BackendContext, hookimpl

MOST_BYTES = 64_000_000


class Options(plugins.Options):
    """The file, relative to the folder of the YAML; whether `Ann` and `ann` are one user, as `identity.casefold`."""

    file: Path
    casefold: bool = False


class CsvGroups(plugins.IdentityResolver):
    """Keep the whole file in memory, so that each request costs one dictionary look-up."""

    name = "csv_groups"

    def __init__(self, path: Path, *, casefold: bool) -> None:
        """Store the path; `refresh` reads the file."""
        self._path = path
        self._casefold = casefold
        self._looked_at: tuple[int, ...] = ()
        self._version = ""
        self._groups: dict[str, tuple[str, ...]] = {}

    def groups_of(self, user: str) -> tuple[str, ...]:
        """Return the groups of a user, or none if the file does not have the user."""
        return self._groups.get(user, ())

    def refresh(self) -> str:
        """Read the file if it has changed; return its digest as the version, the same in all workers."""
        found = self._path.stat()
        look = (found.st_mtime_ns, found.st_size, found.st_ino)
        if look != self._looked_at:
            if found.st_size > MOST_BYTES:
                raise ValueError(f"{self._path} has {found.st_size} bytes; {MOST_BYTES} are allowed")
            content = self._path.read_bytes()
            # Replace the groups in one step, because other threads read them meanwhile.
            self._groups = self._read(content.decode("utf-8-sig"))
            self._version = hashlib.blake2b(content, digest_size=8).hexdigest()
            self._looked_at = look
        return self._version

    def _read(self, text: str) -> dict[str, tuple[str, ...]]:
        rows = csv.DictReader(io.StringIO(text))
        if not {"user", "group"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{self._path}: the first line must name the columns user and group")
        groups: dict[str, tuple[str, ...]] = {}
        for row in rows:
            user, group = (row["user"] or "").strip(), (row["group"] or "").strip()
            if not user or not group:
                raise ValueError(f"{self._path}, line {rows.line_num}: a line needs both a user and a group")
            user = user.casefold() if self._casefold else user
            groups[user] = (*groups.get(user, ()), group)
        return groups


class Plugin:
    """Register the resolver."""

    def __init__(self, options: Options, context: BackendContext) -> None:
        """Create the resolver, which reads the file once it is chosen."""
        self._resolver = CsvGroups(context.config_dir / options.file, casefold=options.casefold)

    @hookimpl
    def usage_register_identity_resolvers(self) -> list[plugins.IdentityResolver]:
        """Return the resolver."""
        return [self._resolver]
