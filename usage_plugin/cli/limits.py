"""`usage-plugin limits`: every account of the limits in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.cli.balances import COLUMNS, cells, plain
from usage_plugin.cli.output import Output, table
from usage_plugin.tracking.history.balances import AccountBalance, AccountBalances

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usage_plugin.domain.limits import Limit
    from usage_plugin.runtime import Reader


async def run(reader: Reader, *, output: Output, user: str | None) -> None:
    """Print the accounts of the current windows."""
    title = "Limits" if user is None else f"Limits that count {user}"
    user = None if user is None else reader.kept("user", user)
    accounts = AccountBalances(reader.ledger, reader.operations, reader.limits, reader.clock.now())
    rows = [row for limit in reader.limits.limits for row in _rows(reader, accounts, limit, user)]
    if output.is_table:
        table(title, COLUMNS, [cells(row) for row in rows])
        return
    found = [plain(row) for row in rows]
    output.document({"limits": found}, found)


def _rows(reader: Reader, accounts: AccountBalances, limit: Limit, user: str | None) -> Iterable[AccountBalance]:
    """Return the accounts of a limit; a requested user has one even before the first spend."""
    if not limit.has_accounts or (user is not None and not reader.limits.may_count(limit, {"user": user})):
        return []
    if limit.per == ("global",):
        return [accounts.of(reader.limits.account(limit, ""))]
    if user is None:
        return accounts.all_of(limit)
    if limit.per == ("user",):
        return [accounts.of(reader.limits.account(limit, user))]
    return [row for row in accounts.all_of(limit) if limit.names_of(row.subject).get("user") == user]
