"""The schema on the server: numbered migrations, applied in one transaction under a lock.

The ledger and the store may share a schema. Each has migrations and a table of versions of its own.

Several versions of this package may use a schema at once, while a fleet is upgraded. So each migration names the oldest
schema version whose code it still works with (the column `oldest`). Functions have a version in their names.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.errors import StorageVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.postgres.server import Server

_LOCK = 8_017_263_549_103_211
"""The advisory lock of migrations, any number: held until the end of the transaction."""
_OLDEST = 130_000
"""The first version of PostgreSQL with `gen_random_uuid`."""


class Migrations(NamedTuple):
    """The migrations of a package.

    Attributes:
        package: the name of the package whose folder `migrations` has the scripts.
        versions: the table in which the applied ones are recorded; the first script creates it.
    """

    package: str
    versions: str

    def scripts(self) -> Iterator[tuple[int, str]]:
        """Yield each script with its number, in any order."""
        for script in (resources.files(self.package) / "migrations").iterdir():
            if script.name.endswith(".sql"):
                yield int(script.name.split("_", 1)[0]), script.read_text(encoding="utf-8")


def has_schema(server: Server, migrations: Migrations) -> bool:
    """Whether the schema has tables of these migrations."""
    (found,) = server.one("SELECT to_regclass(%s) IS NOT NULL", (f"{server.schema}.{migrations.versions}",))
    return bool(found)


def migrate(server: Server, migrations: Migrations) -> None:
    """Migrate to the newest schema; safe when several processes start at once.

    Raises:
        StorageVersionError: the schema is too new for this version.
    """
    _check_settings(server)
    try:
        scripts = sorted(migrations.scripts())
    except OSError as error:
        raise server.failures.unavailable(f"The migrations of {migrations.package} cannot be read: {error}.") from error
    newest = scripts[-1][0]
    if has_schema(server, migrations) and _version(server, migrations, newest) >= newest:
        return
    with server.writing():
        server.run("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # Only if it is missing: a role may own the schema without the right to create others.
        (has_namespace,) = server.one("SELECT to_regnamespace(%s) IS NOT NULL", (server.schema,))
        if not has_namespace:
            server.run(f"CREATE SCHEMA {server.schema}")
        version = _version(server, migrations, newest) if has_schema(server, migrations) else 0
        for number, script in scripts:
            if number > version:
                server.run(script.replace("{schema}", server.schema))


def _check_settings(server: Server) -> None:
    """Check the settings of the database that the functions rely on."""
    version, encoding, isolation = server.one(
        "SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'),"
        " current_setting('default_transaction_isolation')"
    )
    if version < _OLDEST:
        raise server.failures.unavailable(
            f"{server.location}: expected PostgreSQL {_OLDEST // 10_000} or newer; found {version // 10_000}.",
            hint="Use a version that PostgreSQL's developers still maintain.",
        )
    if encoding != "UTF8":
        raise server.failures.unavailable(
            f"{server.location}: expected a database in UTF8; found {encoding}.",
            hint="Create one with: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.",
        )
    # In a stricter one, a read after a lock is not current.
    if isolation != "read committed":
        raise server.failures.unavailable(
            f"{server.location}: expected default_transaction_isolation = 'read committed'; found {isolation!r}.",
            hint="Run as its owner: ALTER ROLE … IN DATABASE … SET default_transaction_isolation = 'read committed'.",
        )


def _version(server: Server, migrations: Migrations, newest: int) -> int:
    (version, oldest) = server.one(f"SELECT max(number), max(oldest) FROM {server.schema}.{migrations.versions}")
    if oldest > newest:
        raise StorageVersionError(
            f"{server.location}: expected a schema that version {newest} can use; found one for {oldest} or newer.",
            hint="Install the version of usage_plugin that wrote it, or a newer one.",
        )
    return int(version)
