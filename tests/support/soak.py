"""The length of the soak: `make soak` has half an hour of chaos; with SOAK_MINUTES every part is shorter."""

from __future__ import annotations

import os

import pytest

FULL = 30.0
MINUTES = float(os.environ.get("SOAK_MINUTES", FULL))


def share_of(times: int, least: int) -> int:
    """Return a number of repetitions, scaled to the length of this soak."""
    return max(least, round(times * min(1.0, MINUTES / FULL)))


REPETITIONS = (pytest.mark.soak, pytest.mark.skipif(MINUTES < FULL, reason="only in the full soak"))
"""Marks for repetitions of promises that `make test` already tests."""
