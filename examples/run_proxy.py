"""Start the LiteLLM proxy with an example config, and print commands to try. `make run` calls this.

LiteLLM refuses a weak master key, so a random one is created on first use. It is stored in `data/master_key`, readable
only by its owner.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

KEY_FILE = Path("data/master_key")


def master_key() -> str:
    """Return the key of LITELLM_MASTER_KEY, or the stored one, which is created on first use."""
    if key := os.environ.get("LITELLM_MASTER_KEY"):
        return key
    if not KEY_FILE.exists():
        KEY_FILE.parent.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(f"sk-{secrets.token_urlsafe(32)}")
    return KEY_FILE.read_text(encoding="utf-8").strip()


def main() -> None:
    """Print commands to try, then replace this process by the proxy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config.example.yaml")
    parser.add_argument("--port", default="4000")
    # By default LiteLLM would listen on every address of the machine.
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    arguments = parser.parse_args()
    binaries = Path(sys.executable).parent
    sys.stdout.write(f"""
Starting the proxy on port {arguments.port}; it is ready in some 20 seconds. Then, in another terminal:

  curl -i http://localhost:{arguments.port}/v1/chat/completions \\
    -H "Authorization: Bearer $(cat {KEY_FILE})" -H "Content-Type: application/json" \\
    -d '{{"model": "mock-model", "user": "eva", "max_tokens": 50, "messages": [{{"role": "user", "content": "Hi"}}]}}'

  {binaries}/usage-plugin --config {arguments.config} report --by user

""")
    sys.stdout.flush()
    os.environ |= {"LITELLM_MASTER_KEY": master_key(), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    litellm = str(binaries / "litellm")
    # Without the longer health check, uvicorn kills workers that are still importing LiteLLM.
    command = [litellm, "--config", arguments.config, "--host", arguments.host, "--port", arguments.port]
    os.execv(litellm, [*command, "--timeout_worker_healthcheck", "120"])  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
