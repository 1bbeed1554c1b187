-- One limit for one subject in one window or bucket. Ordered so that all accounts of a subject lie on one page.
CREATE TABLE accounts (
    limit_key INTEGER NOT NULL,
    subject TEXT NOT NULL,
    window_start INTEGER NOT NULL,
    window_end INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (subject, limit_key, window_start)
) WITHOUT ROWID;

-- What requests in flight hold: a row that is not `open` is free, and serves its process again, so that the same few
-- pages are written over and over. `holds` is JSON:
-- [[limit_key, window_start, subject, window_end, amount, if_lost], …]. `event` is recorded as it is if the worker dies.
CREATE TABLE reservations (
    slot INTEGER PRIMARY KEY,
    open INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    worker TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    holds TEXT NOT NULL,
    event TEXT NOT NULL
);

-- Settled events that the store does not have yet, and the last ones that it has, for the caches.
-- Not AUTOINCREMENT, which costs a page more in each commit: the newest entry always stays, so no number comes twice.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY,
    event TEXT NOT NULL
);

-- One row. `writer` names this outbox for ever; `copies` counts how often the write-ahead log was copied.
CREATE TABLE ledger (
    writer TEXT NOT NULL,
    acknowledged INTEGER NOT NULL,
    adjustments_version INTEGER NOT NULL,
    copies INTEGER NOT NULL
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

-- Changes of a limit's amount for one subject, kept for the audit.
CREATE TABLE adjustments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    limit_name TEXT NOT NULL,
    subject TEXT NOT NULL,
    amount INTEGER,
    before INTEGER,
    made_at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    ended_at INTEGER
);
CREATE INDEX adjustments_until ON adjustments (until);

-- Thresholds that were passed, so that each is alerted once; and who has seen to it. `details` is JSON.
CREATE TABLE alerts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    limit_key INTEGER NOT NULL,
    subject TEXT NOT NULL,
    window_start INTEGER NOT NULL,
    threshold INTEGER NOT NULL,
    at INTEGER NOT NULL,
    details TEXT NOT NULL,
    acknowledged_at INTEGER,
    acknowledged_by TEXT,
    UNIQUE (limit_key, subject, window_start, threshold)
);
CREATE INDEX alerts_at ON alerts (at);
CREATE INDEX alerts_by_subject ON alerts (subject, at);

-- What is not known exactly, or was let through.
CREATE TABLE imperfections (
    kind TEXT NOT NULL,
    concerns TEXT NOT NULL,
    times INTEGER NOT NULL,
    amount INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (kind, concerns)
) WITHOUT ROWID;
CREATE INDEX imperfections_last_at ON imperfections (last_at);

-- Short texts by which workers tell each other, and readers, how things are.
CREATE TABLE notes (
    name TEXT NOT NULL PRIMARY KEY,
    text TEXT NOT NULL
) WITHOUT ROWID;
