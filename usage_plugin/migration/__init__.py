"""Import the data of the previous usage tracker, and LiteLLM's own spend logs.

`directory_migration` imports a directory of the previous tracker. `legacy_sources` lists its files and `legacy_reader`
streams them into `staging`, a SQLite file that resolves contradictions and fixes the order for the store.
`limit_conversion` converts the old limits to ordinary ones. `spend_logs` converts LiteLLM's rows to usage events.
`background` migrates in another process while the proxy runs. Everything here is idempotent: an import that was killed
and repeated, or run twice, gives the result of one run. It depends on the ports only, on no backend.
"""
