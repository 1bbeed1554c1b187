-- Profiles of users. `profile` is JSON; `number` orders the rows by their last change.
CREATE TABLE {schema}.profiles (
    "user" text COLLATE "C" PRIMARY KEY,
    number bigint NOT NULL UNIQUE,
    updated_at bigint NOT NULL,
    profile text NOT NULL
);

-- One row, the number of the last change. Not a sequence, which commits its numbers out of order.
CREATE TABLE {schema}.profile_changes (
    number bigint NOT NULL
);
INSERT INTO {schema}.profile_changes (number) VALUES (0);

INSERT INTO {schema}.versions (number, oldest) VALUES (4, 4);
