"""The workers of a ledger: by file locks in a data folder, and by the register of a fleet."""
