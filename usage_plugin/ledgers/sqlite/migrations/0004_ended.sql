-- The reservation or record that an entry ended, so that the same id is never charged twice.
ALTER TABLE outbox ADD COLUMN event_id TEXT NOT NULL DEFAULT '';

-- `remembered` is the outbox number up to which ids are in `ended`. `generation` counts spans of ten minutes, the last
-- of which began at `generation_began`.
ALTER TABLE ledger ADD COLUMN remembered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN generation_began INTEGER NOT NULL DEFAULT 0;

-- Ids that have ended, in this generation and the one before; ordered so that an old generation is deleted as a range.
CREATE TABLE ended (
    generation INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (generation, event_id)
) WITHOUT ROWID;

-- Ids that were abandoned: a reservation that arrives later holds nothing. Few, since each reservation looks here.
CREATE TABLE tombstones (
    event_id TEXT NOT NULL PRIMARY KEY,
    generation INTEGER NOT NULL
) WITHOUT ROWID;
