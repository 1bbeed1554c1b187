"""Hostile names cannot harm the machine on which the contracts run, even with a broken store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.testing.hostile_names import hostile_names


@pytest.mark.parametrize("below", ["", "users", "users/by/month", "/".join("abcdefgh")])
def test_every_name_used_as_a_path_stays_with_the_test(tmp_path: Path, below: str) -> None:
    """From the data folder and from any folder below it, no name leads out of the folders of the test."""
    data, canary = tmp_path / "data" / "usage", tmp_path / "canary"
    folder = data / below
    folder.mkdir(parents=True)
    canary.mkdir()
    for name in hostile_names(data, canary):
        assert len(name) <= LONGEST_NAME
        assert Path(os.path.realpath(folder / name)).is_relative_to(tmp_path), name


def test_some_names_lead_out_of_the_data_folder(tmp_path: Path) -> None:
    """An absolute name, a relative one and one by way of the root each reach the canary."""
    data, canary = tmp_path / "data" / "usage", tmp_path / "canary"
    data.mkdir(parents=True)
    canary.mkdir()
    led = {Path(os.path.realpath(data / name)) for name in hostile_names(data, canary)}
    assert {canary / "absolute", canary / "relative", canary / "rooted"} <= led


def test_a_canary_that_fits_into_no_name_is_refused(tmp_path: Path) -> None:
    """A path that is too long for a name raises, rather than leading elsewhere."""
    with pytest.raises(ValueError, match="shorter path"):
        hostile_names(tmp_path, tmp_path / ("x" * LONGEST_NAME))
