"""`usage-plugin doctor`: proves the wiring, and names what would break.

`wiring` reads the YAML, `surroundings` the machine, `books` the ledger and the store; `probes` sends requests through
every route of a proxy: the user's own, or one that `temporary` starts in front of the mock `model`. All say what they
found as `findings`; `command` puts them together. Nothing here imports LiteLLM: only the temporary proxy does.
"""

from __future__ import annotations
