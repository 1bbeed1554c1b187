"""The servers on which the stores `postgres` and `objects` are tested."""

from __future__ import annotations

from tests.support.storage_options import postgres, s3, storage_options

__all__ = ["postgres", "s3", "storage_options"]
