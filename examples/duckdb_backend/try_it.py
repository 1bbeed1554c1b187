"""Record one request in the DuckDB store and read it back, without a proxy."""

import asyncio

from usage_plugin.api import open_tracker


async def main() -> None:
    """Open a tracker with the backend, as the proxy does, in a folder of its own."""
    async with open_tracker({"data_dir": "./try-it", "storage": {"backend": "duckdb"}}) as tracker:
        await tracker.record_usage("ann", cost="0.25", model="gpt-4o", provider="openai")
        print(await tracker.get_user_daily_usage("ann"))


asyncio.run(main())
