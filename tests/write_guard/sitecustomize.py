"""Installs the write guard in every Python process that a test starts: its folder comes first in PYTHONPATH."""

import write_guard

write_guard.install()
