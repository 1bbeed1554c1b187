-- One limit for one subject in one window. Ordered so that a window's accounts lie together and closed ones go first.
CREATE TABLE accounts (
    limit_key INTEGER NOT NULL,
    window_start INTEGER NOT NULL,
    subject TEXT NOT NULL,
    window_end INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (limit_key, window_start, subject)
) WITHOUT ROWID;

-- What requests in flight hold. `holds` is JSON: [[limit_key, window_start, subject, window_end, amount], …].
-- `event` is recorded as it is if the worker dies.
CREATE TABLE reservations (
    event_id TEXT NOT NULL PRIMARY KEY,
    worker TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    holds TEXT NOT NULL,
    event TEXT NOT NULL
) WITHOUT ROWID;

-- Settled events that the store does not have yet, and the last ones that it has, for the caches.
-- Not AUTOINCREMENT, which costs a page more in each commit: the newest entry always stays, so no number comes twice.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY,
    event TEXT NOT NULL
);

-- One row. `writer` names this outbox for ever.
CREATE TABLE ledger (
    writer TEXT NOT NULL,
    acknowledged INTEGER NOT NULL
);

CREATE TABLE refusal_counts (
    minute INTEGER NOT NULL,
    limit_name TEXT NOT NULL,
    subject TEXT NOT NULL,
    reason TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (minute, limit_name, subject, reason)
) WITHOUT ROWID;

CREATE TABLE refusals (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    ref TEXT NOT NULL UNIQUE,
    at INTEGER NOT NULL,
    details TEXT NOT NULL
);
