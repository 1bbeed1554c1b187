"""Ledgers: the SQLite ledger, and the file locks by which the workers of one host know each other."""
