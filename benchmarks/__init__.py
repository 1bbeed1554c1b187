"""Benchmarks: `python -m benchmarks.ledger`, `.request`, `.proxy` and `.overshoot`, each with `--json` for programs.

Each compares its measurements with the requirements and names a missed bound; it fails only if it cannot measure.
Times on a shared machine vary twofold within seconds, so compared code alternates in short blocks.
"""

import os

# LiteLLM looks prices up on the internet otherwise; it decides that when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
