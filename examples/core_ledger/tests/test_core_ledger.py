"""The core keeps the contract of ledgers, and all names can be erased from both files."""

from usage_plugin_core_ledger import CoreBackend

from usage_plugin.testing import ErasableContract, LedgerContract


class TestCore(LedgerContract):
    backend = CoreBackend()


class TestErasable(ErasableContract):
    backend = CoreBackend()
