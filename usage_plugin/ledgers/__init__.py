"""Ledgers: the SQLite ledger, and the file locks that detect the live workers of one host."""
