"""Install the write guard in each Python process that a test starts: this folder is the first in its PYTHONPATH."""

import write_guard

write_guard.install()
