"""Usage tracking and exact spend limits for the LiteLLM proxy, with nothing but a file on disk.

Enable it with `callbacks: ["usage_plugin.proxy.callback"]` in the proxy's YAML. This module imports
nothing, so that importing a part never loads the whole; `docs/how-it-works.md` describes the modules.
"""

__version__ = "0.1.0"
