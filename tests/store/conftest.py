"""The servers on which the stores `postgres` and `objects` are tested."""

from __future__ import annotations

from tests.support.object_server import s3
from tests.support.postgres import postgres, storage_options

__all__ = ["postgres", "s3", "storage_options"]
