"""Start the write guard and the quicker imports in each Python process of a test.

The folder of this file is the first in the PYTHONPATH of these processes.
"""

import uncollected_imports
import write_guard

write_guard.install()
uncollected_imports.install()
