"""How long the soak may take: `make soak` as it is, half an hour of chaos; with SOAK_MINUTES less of everything."""

from __future__ import annotations

import os

import pytest

FULL = 30.0
MINUTES = float(os.environ.get("SOAK_MINUTES", FULL))


def share_of(times: int, least: int) -> int:
    """Say how often something is done that the full soak does so many times."""
    return max(least, round(times * min(1.0, MINUTES / FULL)))


REPETITIONS = (pytest.mark.soak, pytest.mark.skipif(MINUTES < FULL, reason="only in the full soak"))
"""Marks for more of what `make test` proves already."""
