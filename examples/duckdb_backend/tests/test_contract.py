"""The DuckDB backend keeps the contract of stores."""

import duckdb
from usage_plugin_duckdb import DuckdbBackend

from usage_plugin.testing import StoreContract


class TestDuckdbStore(StoreContract):
    backend = DuckdbBackend()
    fault_points = {"usage_plugin_duckdb.run": duckdb.IOException("disk failed")}
