-- What has been read of one directory. A date is YYYY-MM-DD, or YYYY-MM for a month, which so comes before its days.
CREATE TABLE IF NOT EXISTS sums (
    user TEXT NOT NULL,
    date TEXT NOT NULL,
    source INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    failed_requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    PRIMARY KEY (user, date, source)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS limits (
    user TEXT NOT NULL,
    source INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    limits TEXT NOT NULL,
    PRIMARY KEY (user, source)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS profiles (
    user TEXT NOT NULL,
    source INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    profile TEXT NOT NULL,
    PRIMARY KEY (user, source)
) WITHOUT ROWID;

-- `source` is -1 for what was found by comparing.
CREATE TABLE IF NOT EXISTS findings (
    number INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    finding TEXT NOT NULL
);

-- Sources that were read to their end, and how they looked then.
CREATE TABLE IF NOT EXISTS sources (
    number INTEGER PRIMARY KEY,
    look TEXT NOT NULL
);

-- What goes into the store, in this order, for ever: the store passes over the numbers it has.
CREATE TABLE IF NOT EXISTS plan (
    number INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    date TEXT NOT NULL,
    name TEXT NOT NULL,
    requests INTEGER NOT NULL,
    failed_requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS plan_by_user ON plan (user, date);

-- What the store had on each day of the plan that is not checked yet, before any of it.
CREATE TABLE IF NOT EXISTS before (
    day TEXT PRIMARY KEY,
    totals TEXT NOT NULL
);

-- `checked`: the number up to which the store was found to have the plan; `watermarks`: of the other writers, before;
-- `limits`: the digest of the file with limits that was written.
CREATE TABLE IF NOT EXISTS facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
