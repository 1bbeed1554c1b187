-- The one zone whose days the daily sums are kept by.
CREATE TABLE store (
    zone TEXT NOT NULL
);

-- The number of each writer's last event that is stored.
CREATE TABLE watermarks (
    writer TEXT NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;

-- Every name once. Number 0 stands for no name.
CREATE TABLE names (
    number INTEGER PRIMARY KEY,
    name TEXT UNIQUE
);
INSERT INTO names (number, name) VALUES (0, NULL);

-- `rest` is JSON: the fields of the event that have no column.
CREATE TABLE events (
    started_at INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    user INTEGER NOT NULL,
    team INTEGER NOT NULL,
    api_key INTEGER NOT NULL,
    organization INTEGER NOT NULL,
    end_user INTEGER NOT NULL,
    model INTEGER NOT NULL,
    provider INTEGER NOT NULL,
    rest TEXT NOT NULL,
    PRIMARY KEY (started_at, event_id)
) WITHOUT ROWID;
CREATE INDEX events_by_user ON events (user, started_at);

-- Sums by day of the store's zone; `day` is YYYYMMDD.
CREATE TABLE daily (
    day INTEGER NOT NULL,
    user INTEGER NOT NULL,
    team INTEGER NOT NULL,
    api_key INTEGER NOT NULL,
    organization INTEGER NOT NULL,
    end_user INTEGER NOT NULL,
    model INTEGER NOT NULL,
    provider INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    failed_requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    PRIMARY KEY (day, user, team, api_key, organization, end_user, model, provider)
) WITHOUT ROWID;
CREATE INDEX daily_by_user ON daily (user, day);
