"""The errors that the parts of the ledger raise for those of the driver."""

from __future__ import annotations

from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.postgres.failures import Failures

FAILURES = Failures("ledger", unavailable=LedgerError, busy=LedgerBusyError, invalid=LedgerError)
