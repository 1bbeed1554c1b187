"""Help for tests, ours and those of plugin authors; installed with the package, with the extra `testing`.

`StoreContract`, the contracts of a ledger's parts (`LedgerContract`, `OperationsLogContract`, `ProfileStoreContract`,
`ErasableContract`) and `WorkersContract` are what backends must promise: subclass them in a test module, name the
backend, and run pytest. `FakeClock`, `make_event` and `make_sum` make what tests need. The package proper never imports
any of this.
"""

import pytest

# Before they are imported: otherwise a third party's failure reads `AssertionError` and nothing else.
pytest.register_assert_rewrite(
    "usage_plugin.testing.books",
    "usage_plugin.testing.durability",
    "usage_plugin.testing.erasable_contract",
    "usage_plugin.testing.hostile",
    "usage_plugin.testing.ledger_contract",
    "usage_plugin.testing.ledger_durability",
    "usage_plugin.testing.ledger_fixtures",
    "usage_plugin.testing.ledger_machine",
    "usage_plugin.testing.operations_contract",
    "usage_plugin.testing.profiles_contract",
    "usage_plugin.testing.store_contract",
    "usage_plugin.testing.workers_contract",
)

from usage_plugin.testing.builders import make_event, make_sum  # noqa: E402
from usage_plugin.testing.clock import FakeClock  # noqa: E402
from usage_plugin.testing.erasable_contract import ErasableContract  # noqa: E402
from usage_plugin.testing.ledger_contract import LedgerContract  # noqa: E402
from usage_plugin.testing.operations_contract import OperationsLogContract  # noqa: E402
from usage_plugin.testing.profiles_contract import ProfileStoreContract  # noqa: E402
from usage_plugin.testing.store_contract import StoreContract  # noqa: E402
from usage_plugin.testing.workers_contract import WorkersContract  # noqa: E402

__all__ = [
    "ErasableContract",
    "FakeClock",
    "LedgerContract",
    "OperationsLogContract",
    "ProfileStoreContract",
    "StoreContract",
    "WorkersContract",
    "make_event",
    "make_sum",
]
