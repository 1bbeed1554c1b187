"""Hostile names: some cannot come through the proxy's door, but a store may not rely on the door.

A store that is still broken may use a name as a path. So names that leave a folder lead into a *canary* folder of the
test and nowhere else, absolute ones and the home directory included. The contract checks that the canary stays empty.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.subjects import ANONYMOUS, FORGOTTEN, LONGEST_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from usage_plugin.testing.openings import LedgerOpening, StoreOpening

HOME_VARIABLES = ("HOME", "USERPROFILE")
"""Where `~` and `$HOME` lead; a contract points them at its canary."""

# fmt: off
_NAMES = (
    "..", ".", "a/b", "a\\b", "C:", "~", "~/x", "-rf", "con", "x.json",
    "%", "%2e%2e", "_", "*", "a*", "[a]", "{a}", "$HOME", "$HOME/x", "`id`", "a;b", "a,b", "a|b", "#", "?", "=1+1",
    "null", "None", "'", '"', "''", "'; DROP TABLE events; --", 'x" OR "1"="1', "a\\'b", "0", "1e3", "true",
    "ann", "Ann", "ANN", "an", "anna", "ann.", ".ann", "ann_", "ann~1", "ann (1)", "ann ", " ann",
    # One in another's capitals, or in another's normal form.
    "straße", "STRASSE", "strasse", "\u1e9e", "\u0130", "i", "\u0131",
    "\u00e9", "e\u0301", "\ufb01", "fi", "\u00c5", "\u212b", "A\u030a",
    "😀", "𝒜𝓃𝓃", "👩\u200d👩\u200d👧", "אבג", "مرحبا", "名前", "\uff41\uff4e\uff4e", "\u0430nn",
    "x" * LONGEST_NAME, "x" * (LONGEST_NAME - 1) + "y", "é" * LONGEST_NAME, "😀" * LONGEST_NAME,
    FORGOTTEN, ANONYMOUS, "(forgotten", "@", "a@b.c", "watermarks", "events", "profiles", "limits",
)
# fmt: on


def hostile_names(data_dir: Path, canary: Path) -> tuple[str, ...]:
    """Return every hostile name; those that leave the data folder lead into the canary.

    Args:
        data_dir: the folder of the store.
        canary: an empty folder of the test, outside of `data_dir`.

    Raises:
        ValueError: the canary's path is too long to be part of a name.
    """
    absolute = str(canary / "absolute")
    relative = os.path.relpath(canary / "relative", data_dir)
    # As many steps up as there is room for: from any folder they end at the root, and turn to the canary there.
    steps = (LONGEST_NAME - len(absolute)) // len("../")
    rooted = "../" * max(0, steps) + str(canary / "rooted").lstrip("/")
    if steps <= len(data_dir.parts) or len(relative) > LONGEST_NAME:
        raise ValueError(f"expected a canary folder with a shorter path; found {canary}")
    return (*_NAMES, absolute, relative, rooted)


class HostileNames:
    """The part of a contract that has hostile names."""

    @pytest.fixture
    def canary(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A folder outside of the data folder, and the home directory, in which nothing may appear."""
        folder = tmp_path_factory.mktemp("canary")
        for name in HOME_VARIABLES:
            monkeypatch.setenv(name, str(folder))
        yield folder
        assert list(folder.iterdir()) == [], "something was written outside of the data folder"

    @pytest.fixture
    def hostile(self, opening: StoreOpening | LedgerOpening, canary: Path) -> tuple[str, ...]:
        """Hostile names, none of which can harm the machine of the person who runs the contract."""
        return hostile_names(opening.data_dir, canary)
