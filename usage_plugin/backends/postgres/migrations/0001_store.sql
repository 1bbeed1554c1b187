-- Schema versions that were applied, as the ledger's `versions`.
CREATE TABLE {schema}.store_versions (
    number integer PRIMARY KEY,
    oldest integer NOT NULL
);

-- One row: the zone whose days the sums are kept by.
CREATE TABLE {schema}.store_zone (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    zone text NOT NULL
);

-- The number of each writer's last record that is stored.
CREATE TABLE {schema}.store_watermarks (
    writer text COLLATE "C" PRIMARY KEY,
    seq bigint NOT NULL
) WITH (fillfactor = 50);

-- `rest` is JSON: the fields of the event that have no column. Text, since jsonb cannot contain every character.
-- "C": names are compared byte by byte, in every database.
CREATE TABLE {schema}.store_events (
    started_at bigint NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    "user" text COLLATE "C",
    "team" text COLLATE "C",
    "api_key" text COLLATE "C",
    "organization" text COLLATE "C",
    "end_user" text COLLATE "C",
    "model" text COLLATE "C",
    "provider" text COLLATE "C",
    rest text NOT NULL,
    PRIMARY KEY (started_at, event_id)
) PARTITION BY RANGE (started_at);
CREATE INDEX store_events_by_user ON {schema}.store_events ("user", started_at);
CREATE INDEX store_events_by_end_user ON {schema}.store_events (end_user, started_at) WHERE end_user IS NOT NULL;

-- The partitions of `store_events`, one for each month in UTC. `inserted` counts the events since the partition was
-- rewritten, and `live` those that are left: a deleted event leaves its space, which is not in use.
CREATE TABLE {schema}.store_partitions (
    name text COLLATE "C" PRIMARY KEY,
    first_instant bigint NOT NULL UNIQUE,
    next_instant bigint NOT NULL,
    inserted bigint NOT NULL DEFAULT 0,
    live bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Sums by day of the store's zone. `key` is the SHA-256 of the names, since an index cannot contain seven long ones.
-- numeric: a sum may exceed 64 bits.
CREATE TABLE {schema}.store_days (
    day date NOT NULL,
    key bytea NOT NULL,
    "user" text COLLATE "C",
    "team" text COLLATE "C",
    "api_key" text COLLATE "C",
    "organization" text COLLATE "C",
    "end_user" text COLLATE "C",
    "model" text COLLATE "C",
    "provider" text COLLATE "C",
    requests numeric NOT NULL,
    failed_requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    cost numeric NOT NULL,
    PRIMARY KEY (day, key)
) WITH (fillfactor = 80);
CREATE INDEX store_days_by_user ON {schema}.store_days ("user", day);
CREATE INDEX store_days_by_end_user ON {schema}.store_days (end_user, day) WHERE end_user IS NOT NULL;

-- The same by month and by model, for reports on many users and many days. `month` is its first day.
CREATE TABLE {schema}.store_months (
    month date NOT NULL,
    key bytea NOT NULL,
    "user" text COLLATE "C",
    "team" text COLLATE "C",
    "api_key" text COLLATE "C",
    "organization" text COLLATE "C",
    "end_user" text COLLATE "C",
    "model" text COLLATE "C",
    "provider" text COLLATE "C",
    requests numeric NOT NULL,
    failed_requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    cost numeric NOT NULL,
    PRIMARY KEY (month, key)
) WITH (fillfactor = 80);

CREATE TABLE {schema}.store_model_days (
    day date NOT NULL,
    "model" text COLLATE "C",
    "provider" text COLLATE "C",
    requests numeric NOT NULL,
    failed_requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    cost numeric NOT NULL
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX store_model_days_key ON {schema}.store_model_days
    (day, (model IS NULL), (coalesce(model, '')), (provider IS NULL), (coalesce(provider, '')));

-- Of events only: imported days have no hours. `hour` is the instant at which an hour of the store's zone begins.
CREATE TABLE {schema}.store_hours (
    hour bigint NOT NULL,
    "model" text COLLATE "C",
    "provider" text COLLATE "C",
    requests numeric NOT NULL,
    failed_requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    cost numeric NOT NULL
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX store_hours_key ON {schema}.store_hours
    (hour, (model IS NULL), (coalesce(model, '')), (provider IS NULL), (coalesce(provider, '')));

INSERT INTO {schema}.store_versions VALUES (1, 1);
