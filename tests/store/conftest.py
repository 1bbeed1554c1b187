"""The server on which the store `postgres` is tested."""

from __future__ import annotations

from tests.support.postgres import postgres, storage_options

__all__ = ["postgres", "storage_options"]
