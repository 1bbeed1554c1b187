"""Test kit for this package and for plugin authors; installed with the package, with the extra `testing`.

`StoreContract`, `WorkersContract` and the contracts of a ledger's parts (`LedgerContract`, `OperationsLogContract`,
`ProfileStoreContract`, `ErasableContract`) contain the promises that a backend must keep. A ledger on a server keeps
three more (`FleetContract`, `LedgerTransportContract`, `KeeperTermContract`), which are provisional. Subclass them in a
test module, name the backend, and run pytest. `FakeClock`, `make_event` and `make_sum` create test data. The package
itself never imports this one.
"""

import pytest

# Before they are imported: otherwise a failure in a plugin's own tests shows only `AssertionError`.
pytest.register_assert_rewrite(
    "usage_plugin.testing.store_model",
    "usage_plugin.testing.store_durability",
    "usage_plugin.testing.erasable_contract",
    "usage_plugin.testing.fleet_contract",
    "usage_plugin.testing.hostile_names",
    "usage_plugin.testing.keeper_contract",
    "usage_plugin.testing.ledger_contents",
    "usage_plugin.testing.ledger_contract",
    "usage_plugin.testing.ledger_durability",
    "usage_plugin.testing.ledger_fixtures",
    "usage_plugin.testing.ledger_machine",
    "usage_plugin.testing.link",
    "usage_plugin.testing.operations_contract",
    "usage_plugin.testing.profiles_contract",
    "usage_plugin.testing.shared_ledger_fixtures",
    "usage_plugin.testing.store_abilities",
    "usage_plugin.testing.store_contract",
    "usage_plugin.testing.store_deletion",
    "usage_plugin.testing.store_sums",
    "usage_plugin.testing.transport_contract",
    "usage_plugin.testing.transport_repetition",
    "usage_plugin.testing.workers_contract",
)

from usage_plugin.testing.builders import make_event, make_sum  # noqa: E402
from usage_plugin.testing.clock import FakeClock  # noqa: E402
from usage_plugin.testing.erasable_contract import ErasableContract  # noqa: E402
from usage_plugin.testing.fleet_contract import FleetContract  # noqa: E402
from usage_plugin.testing.keeper_contract import KeeperTermContract  # noqa: E402
from usage_plugin.testing.ledger_contract import LedgerContract  # noqa: E402
from usage_plugin.testing.operations_contract import OperationsLogContract  # noqa: E402
from usage_plugin.testing.profiles_contract import ProfileStoreContract  # noqa: E402
from usage_plugin.testing.store_contract import StoreContract  # noqa: E402
from usage_plugin.testing.transport_contract import LedgerTransportContract  # noqa: E402
from usage_plugin.testing.workers_contract import WorkersContract  # noqa: E402

__all__ = [
    "ErasableContract",
    "FakeClock",
    "FleetContract",
    "KeeperTermContract",
    "LedgerContract",
    "LedgerTransportContract",
    "OperationsLogContract",
    "ProfileStoreContract",
    "StoreContract",
    "WorkersContract",
    "make_event",
    "make_sum",
]
