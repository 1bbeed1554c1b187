"""A PostgreSQL server, for the ledger and the store: its URL, connections, errors and migrations.

`options` and `address` are imported at every start, so they load no driver; psycopg comes with the extra `postgres`.
Tables and statements are in the packages of the ledger and the store, which may share a schema.
"""
