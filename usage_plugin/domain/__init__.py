"""The domain: usage, money, windows, limits. It imports the standard library and, of this package, only `errors`."""
