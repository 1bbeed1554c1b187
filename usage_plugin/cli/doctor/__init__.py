"""`usage-plugin doctor`: checks the installation, the data and every route of the proxy.

`wiring` reads the YAML, `environment` the machine, `consistency` the ledger and the store. `probes` sends requests
through every route of a proxy: the user's own, or a `temporary_proxy` in front of the `mock_provider`. Each returns
`findings`; `command` combines them and `rendering` prints them. Nothing here imports LiteLLM: only the temporary proxy
does.
"""

from __future__ import annotations
