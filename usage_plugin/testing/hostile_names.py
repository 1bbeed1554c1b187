"""Hostile names: the proxy rejects some of them, but a store must not rely on that.

A store with a bug may use a name as a path. So names that leave a folder lead only into a *canary* folder of the test,
including absolute names and the home directory. The contract checks that the canary stays empty.
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
"""Environment variables for `~` and `$HOME`; a contract sets them to its canary."""

# fmt: off
_NAMES = (
    "..", ".", "a/b", "a\\b", "C:", "~", "~/x", "-rf", "con", "x.json",
    "%", "%2e%2e", "_", "*", "a*", "[a]", "{a}", "$HOME", "$HOME/x", "`id`", "a;b", "a,b", "a|b", "#", "?", "=1+1",
    "null", "None", "'", '"', "''", "'; DROP TABLE events; --", 'x" OR "1"="1', "a\\'b", "0", "1e3", "true",
    "ann", "Ann", "ANN", "an", "anna", "ann.", ".ann", "ann_", "ann~1", "ann (1)", "ann ", " ann",
    # Variants of one name in other cases and other normal forms.
    "straße", "STRASSE", "strasse", "\u1e9e", "\u0130", "i", "\u0131",
    "\u00e9", "e\u0301", "\ufb01", "fi", "\u00c5", "\u212b", "A\u030a",
    "😀", "𝒜𝓃𝓃", "👩\u200d👩\u200d👧", "אבג", "مرحبا", "名前", "\uff41\uff4e\uff4e", "\u0430nn",
    "x" * LONGEST_NAME, "x" * (LONGEST_NAME - 1) + "y", "é" * LONGEST_NAME, "😀" * LONGEST_NAME,
    FORGOTTEN, ANONYMOUS, "(forgotten", "@", "a@b.c", "watermarks", "events", "profiles", "limits",
)
# fmt: on


def hostile_names(data_dir: Path, canary: Path) -> tuple[str, ...]:
    """Return all hostile names; those that leave the data folder lead into the canary.

    Args:
        data_dir: the folder of the store.
        canary: an empty folder of the test, outside of `data_dir`.

    Raises:
        ValueError: the canary's path is too long to be part of a name.
    """
    absolute = str(canary / "absolute")
    relative = os.path.relpath(canary / "relative", data_dir)
    # As many `../` as fit into a name: from any folder they lead to the root, and from there to the canary.
    steps = (LONGEST_NAME - len(absolute)) // len("../")
    rooted = "../" * max(0, steps) + str(canary / "rooted").lstrip("/")
    if steps <= len(data_dir.parts) or len(relative) > LONGEST_NAME:
        raise ValueError(f"expected a canary folder with a shorter path; found {canary}")
    return (*_NAMES, absolute, relative, rooted)


class HostileNames:
    """The part of a contract that tests hostile names."""

    @pytest.fixture
    def canary(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A folder outside of the data folder that is also the home directory; it must stay empty."""
        folder = tmp_path_factory.mktemp("canary")
        for name in HOME_VARIABLES:
            monkeypatch.setenv(name, str(folder))
        yield folder
        assert list(folder.iterdir()) == [], "something was written outside of the data folder"

    @pytest.fixture
    def hostile(self, opening: StoreOpening | LedgerOpening, canary: Path) -> tuple[str, ...]:
        """Hostile names that cannot harm the machine on which the contract runs."""
        return hostile_names(opening.data_dir, canary)
