CREATE TABLE {schema}.refusal_counts (
    minute bigint NOT NULL,
    limit_name text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    reason text COLLATE "C" NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (minute, limit_name, subject, reason)
);

CREATE TABLE {schema}.refusals (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ref text COLLATE "C" NOT NULL UNIQUE,
    at bigint NOT NULL,
    details text NOT NULL
);

-- Changes of a limit's amount for one subject, kept for the audit.
CREATE TABLE {schema}.adjustments (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    limit_name text NOT NULL,
    subject text COLLATE "C" NOT NULL,
    amount bigint,
    before bigint,
    made_at bigint NOT NULL,
    until bigint NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    ended_at bigint
);
CREATE INDEX adjustments_until ON {schema}.adjustments (until);

-- Thresholds that were crossed, each once, and the first acknowledgement. `details` is JSON.
CREATE TABLE {schema}.alerts (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    limit_key bigint NOT NULL,
    subject text COLLATE "C" NOT NULL,
    window_start bigint NOT NULL,
    threshold bigint NOT NULL,
    at bigint NOT NULL,
    details text NOT NULL,
    acknowledged_at bigint,
    acknowledged_by text,
    UNIQUE (limit_key, subject, window_start, threshold)
);
CREATE INDEX alerts_at ON {schema}.alerts (at);
CREATE INDEX alerts_by_subject ON {schema}.alerts (subject, at);

-- Counts of inexact or exceptional facts.
CREATE TABLE {schema}.anomalies (
    kind text COLLATE "C" NOT NULL,
    concerns text COLLATE "C" NOT NULL,
    times bigint NOT NULL,
    amount bigint NOT NULL,
    first_at bigint NOT NULL,
    last_at bigint NOT NULL,
    PRIMARY KEY (kind, concerns)
);
CREATE INDEX anomalies_last_at ON {schema}.anomalies (last_at);

-- Short texts for other workers and readers.
CREATE TABLE {schema}.notes (
    name text COLLATE "C" PRIMARY KEY,
    text text NOT NULL
);

-- Actions on a person's records. `subject` is a pseudonym, never the name; `counts` is JSON.
CREATE TABLE {schema}.audit (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at bigint NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    counts text NOT NULL
);

INSERT INTO {schema}.versions (number, oldest) VALUES (3, 3);
