-- Schema versions that were applied. `oldest` is the oldest schema whose code still works with it: a version of this
-- package adds columns and functions, and a later one removes those that they replace.
CREATE TABLE {schema}.versions (
    number integer PRIMARY KEY,
    oldest integer NOT NULL
);

-- One row. `writer` identifies this outbox for ever. `acknowledged` is the number up to which the store has everything.
-- `generation` counts spans of ten minutes, the last of which began at `generation_began`.
CREATE TABLE {schema}.ledger (
    writer text NOT NULL,
    acknowledged bigint NOT NULL DEFAULT 0,
    generation integer NOT NULL DEFAULT 0,
    generation_began bigint NOT NULL DEFAULT 0,
    adjustments_version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);
INSERT INTO {schema}.ledger (writer) VALUES (replace(gen_random_uuid()::text, '-', ''));

-- One row, the last number of the outbox. Not a sequence, which commits its numbers out of order: a reader would miss
-- an entry that commits late. Each transaction takes it last, and the others wait for its commit.
CREATE TABLE {schema}.outbox_counter (
    last bigint NOT NULL
) WITH (fillfactor = 20);
INSERT INTO {schema}.outbox_counter (last) VALUES (0);

-- One row. A transaction that changes it and waits for the disk makes all earlier ones durable.
CREATE TABLE {schema}.durability (
    syncs bigint NOT NULL
) WITH (fillfactor = 20);
INSERT INTO {schema}.durability (syncs) VALUES (0);

-- One limit for one subject in one window or bucket. Only rows of the transaction that made them have the lowest
-- possible `window_end`: they are deleted before its end unless they are used.
CREATE TABLE {schema}.accounts (
    limit_key bigint NOT NULL,
    subject text COLLATE "C" NOT NULL,
    window_start bigint NOT NULL,
    window_end bigint NOT NULL,
    spent bigint NOT NULL,
    reserved bigint NOT NULL,
    PRIMARY KEY (limit_key, subject, window_start)
) WITH (fillfactor = 80);
CREATE INDEX accounts_by_end ON {schema}.accounts (window_end);

-- Open reservations, and the ids that have ended: one row for each id, so that all verbs of an id wait for each other.
-- `content` is a digest of the reservation as it was sent, and `answer` the balances before it, for a repetition.
-- `holds` is [[limit_key, window_start, subject, window_end, amount, if_lost], …] without those that were freed.
-- `ended` is the generation in which it ended; null while it is open. An abandoned or recovered id is kept for a day. A
-- released one may be reserved again. `key` identifies the settlement, with its number `seq`, for a repetition; it came
-- with a batch of a sender.
CREATE TABLE {schema}.requests (
    event_id text COLLATE "C" PRIMARY KEY,
    ended integer,
    is_kept boolean NOT NULL DEFAULT false,
    is_released boolean NOT NULL DEFAULT false,
    worker text,
    started_at bigint,
    content text,
    answer jsonb,
    holds jsonb,
    event text,
    key text,
    seq bigint,
    sender uuid,
    batch bigint
);
CREATE INDEX requests_open ON {schema}.requests (started_at) WHERE ended IS NULL;
CREATE INDEX requests_ended ON {schema}.requests (is_kept, ended) WHERE ended IS NOT NULL;

-- The connections that send batches, each with the number of its last batch. A sender has one batch under way, so only
-- the answers of the last one can be missing. Settlements of that batch are kept as long as the sender, for a day after
-- its last batch: it may be cut off for hours, and then send them again.
CREATE TABLE {schema}.senders (
    name uuid PRIMARY KEY,
    number bigint NOT NULL,
    generation integer NOT NULL
) WITH (fillfactor = 20);

-- Settled events that the store does not have yet, and the last ones that it has, for the caches.
CREATE TABLE {schema}.outbox (
    seq bigint PRIMARY KEY,
    event text NOT NULL
);

INSERT INTO {schema}.versions (number, oldest) VALUES (1, 1);
