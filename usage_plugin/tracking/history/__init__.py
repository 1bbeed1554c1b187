"""History: sums and events for readers, from the cache, the outbox and the store."""
