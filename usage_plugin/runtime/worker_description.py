"""The description of a worker in the register of a fleet, for `status`: its process, its limits and its batches."""

from __future__ import annotations

import json
import os
import platform
from typing import Any, NamedTuple

import usage_plugin
from usage_plugin.tracking.admission.batch_statistics import BatchSummary


class WorkerDescription(NamedTuple):
    """A worker, for people.

    Attributes:
        hostname: the name of its host or pod.
        pid: its process id there.
        version: the version of this package.
        started_at: microseconds since 1970 UTC.
        rules: the digest of the active limits.
        batches: the state of its batches.
    """

    hostname: str
    pid: int
    version: str
    started_at: int
    rules: str
    batches: BatchSummary

    def encode(self) -> str:
        """Return it as JSON."""
        return json.dumps(self._asdict() | {"batches": self.batches._asdict()}, separators=(",", ":"))


def describe_this_worker(started_at: int, rules: str, batches: BatchSummary) -> WorkerDescription:
    """Return the description of this process; the arguments are those of `WorkerDescription`."""
    return WorkerDescription(platform.node(), os.getpid(), usage_plugin.__version__, started_at, rules, batches)


def decode_description(text: str) -> WorkerDescription | None:
    """Return the description that `encode` wrote; None for a command, or if another version wrote another form."""
    try:
        facts: dict[str, Any] = json.loads(text)
        facts["batches"] = BatchSummary(**facts["batches"])
        return WorkerDescription(**facts)
    except (KeyError, TypeError, ValueError):
        return None
