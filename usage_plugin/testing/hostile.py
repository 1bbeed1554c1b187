"""Names that somebody will try, some of which cannot come through the door: a store may not rely on the door."""

from __future__ import annotations

from usage_plugin.domain.subjects import ANONYMOUS, FORGOTTEN, LONGEST_NAME

# fmt: off
HOSTILE_NAMES = (
    "..", ".", "../../x", "../../../../../../tmp/x", "/etc/passwd", "a/b", "a\\b", "C:", "~", "-rf", "con", "x.json",
    "%", "%2e%2e", "_", "*", "a*", "[a]", "{a}", "$HOME", "`id`", "a;b", "a,b", "a|b", "#", "?", "=1+1", "null", "None",
    "'", '"', "''", "'; DROP TABLE events; --", 'x" OR "1"="1', "a\\'b", "0", "1e3", "true",
    "ann", "Ann", "ANN", "an", "anna", "ann.", ".ann", "ann_", "ann~1", "ann (1)", "ann ", " ann",
    # One in another's capitals, or in another's normal form.
    "straße", "STRASSE", "strasse", "\u1e9e", "\u0130", "i", "\u0131",
    "\u00e9", "e\u0301", "\ufb01", "fi", "\u00c5", "\u212b", "A\u030a",
    "😀", "𝒜𝓃𝓃", "👩\u200d👩\u200d👧", "אבג", "مرحبا", "名前", "\uff41\uff4e\uff4e", "\u0430nn",
    "x" * LONGEST_NAME, "x" * (LONGEST_NAME - 1) + "y", "é" * LONGEST_NAME, "😀" * LONGEST_NAME, "../" * 85,
    FORGOTTEN, ANONYMOUS, "(forgotten", "@", "a@b.c", "watermarks", "events", "profiles", "limits",
)
# fmt: on
