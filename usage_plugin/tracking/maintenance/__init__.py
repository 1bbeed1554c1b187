"""Maintenance: the keeper's background work, such as flushing, backfill and retention."""
