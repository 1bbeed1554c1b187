"""Programs of a third party, checked by mypy in its strict mode: they import the public surface and nothing else.

`assert_type` states the types that a user sees. A test imports the modules; they are not run.
"""
