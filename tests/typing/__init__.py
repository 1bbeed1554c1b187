"""Programs of a third party, checked by mypy in its strict mode: they import the public surface and nothing else.

`assert_type` says which types a user sees. Nothing here is run, but the modules are imported by a test.
"""
