"""The server of the store `postgres`."""

from __future__ import annotations

from tests.support.postgres import postgres, storage_options

__all__ = ["postgres", "storage_options"]
