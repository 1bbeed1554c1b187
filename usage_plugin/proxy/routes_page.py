"""Write `docs/routes.md`: the verdict on requests to each route of the installed LiteLLM.

Run it as `python -m usage_plugin.proxy.routes_page > docs/routes.md`. It imports the proxy, which takes ten seconds.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import defaultdict
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from usage_plugin.proxy.routes import ListedRoute, Verdict, listing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_READING = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_HEAD = """# Routes

The verdict on requests to each route. This page is generated from the route table of LiteLLM {version}, with every
feature loaded, and from the patterns in `usage_plugin/proxy/routes.py`:

```bash
python -m usage_plugin.proxy.routes_page > docs/routes.md
```

| verdict | routes | meaning |
|---|--:|---|
{summary}

`admission.on_unmetered` and `on_unbounded` are keys of the YAML ([configuration](configuration.md)). Reading and
deleting cost nothing, unless a table below says otherwise. Routes that `general_settings.pass_through_endpoints` adds
are metered.
"""
_MEANINGS: dict[Verdict, str] = {
    "held": "The worst case is reserved before the request is sent, and settled afterwards. An unbounded request"
    " is refused under a cost or token limit, unless the limit says `on_unbounded: allow`.",
    "metered": "The request is recorded and counted for its user. `admission.on_unmetered` decides whether it may"
    " start, and its cost if that is not reported.",
    "refused": "Refused for a user with a cost or token limit, unless the limit says `on_unbounded: allow`.",
    "free": "It costs nothing and is not recorded.",
    "unclassified": "Not in this version. A route without a pattern is refused for a user with any limit that can stop"
    " a request, and recorded for other users.",
}


def page(routes: Iterable[ListedRoute], litellm: str) -> str:
    """Return the page.

    Args:
        routes: The routes of the installed LiteLLM.
        litellm: LiteLLM's version.
    """
    by_verdict: dict[Verdict, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    counts: dict[Verdict, int] = defaultdict(int)
    for route in routes:
        verdict = route.rule.verdict
        counts[verdict] += 1
        if verdict != "free" or route.method not in _READING:
            by_verdict[verdict][route.path, route.rule.reason].add(route.method)
    summary = "\n".join(f"| {verdict} | {counts[verdict]} | {meaning} |" for verdict, meaning in _MEANINGS.items())
    tables = [
        f"## {verdict.capitalize()}\n\n" + "\n".join(_table(by_verdict[verdict])) + "\n"
        for verdict in _MEANINGS
        if by_verdict[verdict]
    ]
    return "\n".join([_HEAD.format(version=litellm, summary=summary), *tables])


def _table(rows: dict[tuple[str, str], set[str]]) -> Iterator[str]:
    yield "| route | methods | reason |"
    yield "|---|---|---|"
    for (path, reason), methods in sorted(rows.items()):
        yield f"| `{path}` | {', '.join(sorted(methods))} | {reason} |"


def app_with_everything() -> Any:  # FastAPI's
    """Return the proxy's app with every feature, including those that LiteLLM loads at their first request."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    from litellm.proxy._lazy_features import LAZY_FEATURES  # noqa: PLC0415  # slow; the variable above must be set first
    from litellm.proxy.proxy_server import app  # noqa: PLC0415

    for feature in LAZY_FEATURES:
        with suppress(ImportError):  # LiteLLM also omits features that fail to import.
            feature.register_fn(app, importlib.import_module(feature.module_path))
    return app


def main() -> None:
    """Print the page for the installed LiteLLM."""
    sys.stdout.write(page(listing(app_with_everything()), version("litellm")))


if __name__ == "__main__":
    main()
