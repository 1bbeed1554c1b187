-- The verbs of the core, each atomic and idempotent by its id. All take their locks in one order, so that they never
-- deadlock: the request, the rolling windows, the accounts in the order of their key, and the counter of the outbox.
-- Only a reservation writes its new request after the accounts, once it is admitted: no other id waits for that row.
-- They run in READ COMMITTED: each statement sees all earlier commits, so a read after a lock is current.
-- Answers are JSON, also for an id with other content: in a batch, one request must not roll back the others.
-- Sums and differences are numeric, since a bigint that overflows is an error. They are stored as at most 2^63 - 1.
-- Nearly all are in PL/pgSQL, which keeps its plans for the session. A function in SQL that is not inlined is planned
-- again at each call.

-- The rows of [[limit_key, window_start, subject, window_end, amount, maximum, if_lost, since], …].
CREATE FUNCTION {schema}.usage_v1_holds(p_holds jsonb)
RETURNS TABLE (
    number bigint, limit_key bigint, window_start bigint, subject text, window_end bigint, amount bigint,
    maximum numeric, if_lost bigint, since bigint
)
LANGUAGE sql IMMUTABLE
AS $$
    SELECT
        one.number, (one.hold ->> 0)::bigint, (one.hold ->> 1)::bigint, (one.hold ->> 2) COLLATE "C",
        (one.hold ->> 3)::bigint, (one.hold ->> 4)::bigint, (one.hold ->> 5)::numeric, (one.hold ->> 6)::bigint,
        (one.hold ->> 7)::bigint
    FROM jsonb_array_elements(p_holds) WITH ORDINALITY AS one (hold, number)
$$;

-- The balances before a reservation, in the order of its holds, and the numbers of the holds without room.
CREATE FUNCTION {schema}.usage_v1_look(p_holds jsonb, OUT balances jsonb, OUT refused bigint[])
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    SELECT
        coalesce(jsonb_agg(jsonb_build_array(balance.spent, balance.reserved) ORDER BY hold.number), '[]'),
        array_agg(hold.number) FILTER (
            WHERE hold.amount <> 0 AND balance.spent + balance.reserved + hold.amount > hold.maximum
        )
    INTO balances, refused
    FROM {schema}.usage_v1_holds(p_holds) AS hold
    CROSS JOIN LATERAL (
        SELECT
            least(coalesce(sum(account.spent), 0), 9223372036854775807) AS spent,
            least(coalesce(sum(account.reserved), 0), 9223372036854775807) AS reserved
        FROM {schema}.accounts AS account
        WHERE account.limit_key = hold.limit_key AND account.subject = hold.subject
            AND account.window_start >= coalesce(hold.since, hold.window_start)
            AND (hold.since IS NOT NULL OR account.window_start = hold.window_start)
    ) AS balance;
END
$$;

-- The answer to a refused reservation: the balances, and for each rolling window without room its buckets.
CREATE FUNCTION {schema}.usage_v1_refusal(p_holds jsonb, p_balances jsonb, p_refused bigint[])
RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN jsonb_build_object('admitted', false, 'balances', p_balances, 'buckets', (
        SELECT coalesce(jsonb_agg(jsonb_build_array(hold.number, bucket.accounts)), '[]')
        FROM {schema}.usage_v1_holds(p_holds) AS hold
        CROSS JOIN LATERAL (
            SELECT coalesce(jsonb_agg(
                jsonb_build_array(account.window_start, account.window_end, account.spent, account.reserved)
                ORDER BY account.window_start
            ), '[]') AS accounts
            FROM {schema}.accounts AS account
            WHERE account.limit_key = hold.limit_key AND account.subject = hold.subject
                AND account.window_start >= hold.since AND account.window_end <> -9223372036854775808
        ) AS bucket
        WHERE hold.since IS NOT NULL AND hold.number = ANY (p_refused)
    ));
END
$$;

-- Lock the accounts of holds in the order of their key; first create those that are missing, in the same order. The
-- other way round, two transactions can wait for each other: one for a row that the other has created, and vice versa.
-- A rolling window is locked as a whole: two requests in different buckets have no row in common.
CREATE FUNCTION {schema}.usage_v1_lock(p_holds jsonb)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_wanted bigint := jsonb_array_length(p_holds);
    v_locked bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(rolling.lock)
    FROM (
        SELECT DISTINCT hashtextextended(hold.subject, hold.limit_key) AS lock
        FROM {schema}.usage_v1_holds(p_holds) AS hold
        WHERE hold.since IS NOT NULL
        ORDER BY lock
    ) AS rolling;
    LOOP
        INSERT INTO {schema}.accounts (limit_key, subject, window_start, window_end, spent, reserved)
        SELECT hold.limit_key, hold.subject, hold.window_start, -9223372036854775808, 0, 0
        FROM {schema}.usage_v1_holds(p_holds) AS hold
        ORDER BY hold.limit_key, hold.subject COLLATE "C", hold.window_start
        ON CONFLICT DO NOTHING;
        PERFORM
        FROM {schema}.accounts AS account
        JOIN {schema}.usage_v1_holds(p_holds) AS hold USING (limit_key, subject, window_start)
        ORDER BY account.limit_key, account.subject, account.window_start
        FOR NO KEY UPDATE OF account;
        GET DIAGNOSTICS v_locked = ROW_COUNT;
        -- A row that was there may have been deleted in between.
        EXIT WHEN v_locked = v_wanted;
    END LOOP;
END
$$;

-- Delete the accounts that `usage_v1_lock` has created, unless they are used.
CREATE FUNCTION {schema}.usage_v1_discard(p_holds jsonb)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM {schema}.accounts AS account
    USING {schema}.usage_v1_holds(p_holds) AS hold
    WHERE account.limit_key = hold.limit_key AND account.subject = hold.subject
        AND account.window_start = hold.window_start AND account.window_end = -9223372036854775808;
END
$$;

-- Hold on accounts that are locked.
CREATE FUNCTION {schema}.usage_v1_hold(p_holds jsonb)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE {schema}.accounts AS account
    SET window_end = greatest(account.window_end, hold.window_end),
        reserved = least(account.reserved::numeric + hold.amount, 9223372036854775807)::bigint
    FROM {schema}.usage_v1_holds(p_holds) AS hold
    WHERE account.limit_key = hold.limit_key AND account.subject = hold.subject
        AND account.window_start = hold.window_start;
END
$$;

-- A digest of a reservation, by which a repetition is told from another reservation of the same id.
-- `p_held` is as `requests.holds`.
CREATE FUNCTION {schema}.usage_v1_digest(p_worker text, p_started_at bigint, p_held jsonb, p_event text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN encode(sha256(convert_to(
        jsonb_build_array(p_worker, p_started_at, p_held, p_event)::text, 'UTF8'
    )), 'hex');
END
$$;

-- The holds of a reservation as `requests.holds`.
CREATE FUNCTION {schema}.usage_v1_held(p_holds jsonb)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(jsonb_build_array(
            hold.limit_key, hold.window_start, hold.subject, hold.window_end, hold.amount, hold.if_lost
        ) ORDER BY hold.number), '[]')
        FROM {schema}.usage_v1_holds(p_holds) AS hold
    );
END
$$;

CREATE FUNCTION {schema}.usage_v1_reserve(
    p_event_id text, p_worker text, p_started_at bigint, p_holds jsonb, p_event text
)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_held jsonb := {schema}.usage_v1_held(p_holds);
    v_content text := {schema}.usage_v1_digest(p_worker, p_started_at, v_held, p_event);
    v_known record;
    v_found record;
BEGIN
    LOOP
        SELECT request.ended, request.is_released, request.content, request.answer INTO v_known
        FROM {schema}.requests AS request
        WHERE request.event_id = p_event_id;
        IF FOUND AND v_known.ended IS NULL THEN
            IF v_known.content <> v_content THEN
                RETURN jsonb_build_object('conflict', true);
            END IF;
            RETURN jsonb_build_object('admitted', true, 'balances', v_known.answer, 'buckets', '[]'::jsonb);
        END IF;
        SELECT * INTO v_found FROM {schema}.usage_v1_look(p_holds);
        -- An id that has ended holds nothing: it arrives again, from a connection that was cut.
        IF v_known.ended IS NOT NULL AND NOT v_known.is_released THEN
            RETURN {schema}.usage_v1_refusal(p_holds, v_found.balances, v_found.refused);
        END IF;
        -- A request that has no room at this instant is refused without a lock, and without writing anything.
        IF v_found.refused IS NULL THEN
            PERFORM {schema}.usage_v1_lock(p_holds);
            SELECT * INTO v_found FROM {schema}.usage_v1_look(p_holds);
            IF v_found.refused IS NOT NULL THEN
                PERFORM {schema}.usage_v1_discard(p_holds);
            END IF;
        END IF;
        IF v_found.refused IS NOT NULL THEN
            -- If it was sent twice, the room may have gone to itself.
            CONTINUE WHEN EXISTS (
                SELECT FROM {schema}.requests AS request WHERE request.event_id = p_event_id AND NOT request.is_released
            );
            RETURN {schema}.usage_v1_refusal(p_holds, v_found.balances, v_found.refused);
        END IF;
        INSERT INTO {schema}.requests AS request (event_id, worker, started_at, content, answer, holds, event)
        VALUES (p_event_id, p_worker, p_started_at, v_content, v_found.balances, v_held, p_event)
        ON CONFLICT (event_id) DO UPDATE
        SET ended = NULL, is_released = false, worker = excluded.worker, started_at = excluded.started_at,
            content = excluded.content, answer = excluded.answer, holds = excluded.holds, event = excluded.event
        WHERE request.is_released;
        EXIT WHEN FOUND;
        -- The same id was reserved or has ended meanwhile.
        PERFORM {schema}.usage_v1_discard(p_holds);
    END LOOP;
    PERFORM {schema}.usage_v1_hold(p_holds);
    RETURN jsonb_build_object('admitted', true, 'balances', v_found.balances, 'buckets', '[]'::jsonb);
END
$$;

-- Replace holds [[limit_key, window_start, subject, window_end, amount, …], …] by charges of the same form, in the
-- order of the accounts' key. Returns [[limit_key, window_start, subject, spent, reserved], …].
CREATE FUNCTION {schema}.usage_v1_apply(p_holds jsonb, p_charges jsonb)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_balances jsonb;
BEGIN
    WITH change AS (
        SELECT
            (part.change ->> 0)::bigint AS limit_key, (part.change ->> 1)::bigint AS window_start,
            (part.change ->> 2) COLLATE "C" AS subject, max((part.change ->> 3)::bigint) AS window_end,
            sum((part.change ->> 4)::numeric) FILTER (WHERE part.is_charge) AS spent,
            sum((part.change ->> 4)::numeric) FILTER (WHERE NOT part.is_charge) AS freed
        FROM (
            SELECT hold AS change, false AS is_charge FROM jsonb_array_elements(p_holds) AS hold
            UNION ALL
            SELECT charge, true FROM jsonb_array_elements(p_charges) AS charge
        ) AS part
        GROUP BY 1, 2, 3
    ), changed AS (
        INSERT INTO {schema}.accounts AS account (limit_key, subject, window_start, window_end, spent, reserved)
        SELECT
            change.limit_key, change.subject, change.window_start, change.window_end,
            least(coalesce(change.spent, 0), 9223372036854775807), -coalesce(change.freed, 0)
        FROM change
        ORDER BY change.limit_key, change.subject, change.window_start
        ON CONFLICT (limit_key, subject, window_start) DO UPDATE
        SET window_end = greatest(account.window_end, excluded.window_end),
            spent = least(account.spent::numeric + excluded.spent, 9223372036854775807)::bigint,
            reserved = (account.reserved::numeric + excluded.reserved)::bigint
        RETURNING account.limit_key, account.window_start, account.subject, account.spent, account.reserved
    )
    SELECT coalesce(jsonb_agg(jsonb_build_array(
        changed.limit_key, changed.window_start, changed.subject, changed.spent, changed.reserved
    )), '[]')
    INTO v_balances
    FROM changed;
    RETURN v_balances;
END
$$;

-- Take the next number of the outbox for an event; 0 without an event.
CREATE FUNCTION {schema}.usage_v1_append(p_event text)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_seq bigint := 0;
BEGIN
    IF p_event IS NOT NULL THEN
        UPDATE {schema}.outbox_counter SET last = last + 1 RETURNING last INTO v_seq;
        INSERT INTO {schema}.outbox (seq, event) VALUES (v_seq, p_event);
    END IF;
    RETURN v_seq;
END
$$;

-- Replace holds by charges and append the event.
CREATE FUNCTION {schema}.usage_v1_book(p_holds jsonb, p_charges jsonb, p_event text)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_balances jsonb := {schema}.usage_v1_apply(p_holds, p_charges);
BEGIN
    RETURN jsonb_build_object('seq', {schema}.usage_v1_append(p_event), 'balances', v_balances);
END
$$;

-- Lock an id. `state` says how it was found: `open`, with its holds and its event, `ended` or `unknown`. With `p_claims`
-- an unknown id is added, and the state is `new`. The caller ends an open or new one with `usage_v1_end`.
CREATE FUNCTION {schema}.usage_v1_find(
    p_event_id text, p_claims boolean, OUT state text, OUT holds jsonb, OUT event text
)
LANGUAGE plpgsql
AS $$
BEGIN
    LOOP
        SELECT CASE WHEN request.ended IS NULL THEN 'open' ELSE 'ended' END, request.holds, request.event
        INTO state, holds, event
        FROM {schema}.requests AS request
        WHERE request.event_id = p_event_id
        FOR UPDATE;
        IF FOUND THEN
            RETURN;
        END IF;
        state := 'unknown';
        IF NOT p_claims THEN
            RETURN;
        END IF;
        INSERT INTO {schema}.requests (event_id, ended)
        SELECT p_event_id, ledger.generation FROM {schema}.ledger AS ledger
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
            state := 'new';
            holds := '[]';
            RETURN;
        END IF;
    END LOOP;
END
$$;

CREATE FUNCTION {schema}.usage_v1_end(
    p_event_id text, p_is_kept boolean DEFAULT false, p_is_released boolean DEFAULT false,
    p_key text DEFAULT NULL, p_seq bigint DEFAULT NULL, p_sender uuid DEFAULT NULL, p_batch bigint DEFAULT NULL
)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE {schema}.requests AS request
    SET ended = ledger.generation, is_kept = p_is_kept, is_released = p_is_released, key = p_key, seq = p_seq,
        sender = p_sender, batch = p_batch, worker = NULL, started_at = NULL, content = NULL, answer = NULL,
        holds = NULL, event = NULL
    FROM {schema}.ledger AS ledger
    WHERE request.event_id = p_event_id;
END
$$;

-- End an id that was found, with charges and an event.
CREATE FUNCTION {schema}.usage_v1_end_charged(
    p_event_id text, p_holds jsonb, p_charges jsonb, p_event text, p_key text, p_sender uuid, p_batch bigint
)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_settled jsonb := {schema}.usage_v1_book(p_holds, p_charges, p_event);
BEGIN
    PERFORM {schema}.usage_v1_end(
        p_event_id, p_key => p_key, p_seq => (v_settled ->> 'seq')::bigint, p_sender => p_sender, p_batch => p_batch
    );
    RETURN v_settled;
END
$$;

-- Answer a settlement of an id that has ended: if it is the same one, with its number and the present balances of the
-- charged accounts. From now on it is one of the batch with which it came again.
CREATE FUNCTION {schema}.usage_v1_settled_before(
    p_event_id text, p_charges jsonb, p_key text, p_sender uuid, p_batch bigint
)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_seq bigint;
BEGIN
    UPDATE {schema}.requests AS request
    SET sender = p_sender, batch = p_batch
    WHERE request.event_id = p_event_id AND request.key = p_key
    RETURNING request.seq INTO v_seq;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('state', 'ended');
    END IF;
    RETURN jsonb_build_object('seq', v_seq, 'balances', (
        SELECT coalesce(jsonb_agg(jsonb_build_array(
            charged.limit_key, charged.window_start, charged.subject,
            coalesce(account.spent, 0), coalesce(account.reserved, 0)
        )), '[]')
        FROM (
            SELECT DISTINCT
                (charge ->> 0)::bigint AS limit_key, (charge ->> 1)::bigint AS window_start,
                (charge ->> 2) COLLATE "C" AS subject
            FROM jsonb_array_elements(p_charges) AS charge
        ) AS charged
        LEFT JOIN {schema}.accounts AS account USING (limit_key, subject, window_start)
    ));
END
$$;

CREATE FUNCTION {schema}.usage_v1_settle(
    p_event_id text, p_charges jsonb, p_event text,
    p_key text DEFAULT NULL, p_sender uuid DEFAULT NULL, p_batch bigint DEFAULT NULL
)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_found record;
BEGIN
    SELECT * INTO v_found FROM {schema}.usage_v1_find(p_event_id, false);
    CASE v_found.state
        WHEN 'open' THEN
            RETURN {schema}.usage_v1_end_charged(
                p_event_id, v_found.holds, p_charges, p_event, p_key, p_sender, p_batch
            );
        WHEN 'ended' THEN
            RETURN {schema}.usage_v1_settled_before(p_event_id, p_charges, p_key, p_sender, p_batch);
        ELSE
            RETURN jsonb_build_object('state', v_found.state);
    END CASE;
END
$$;

CREATE FUNCTION {schema}.usage_v1_record(
    p_event_id text, p_charges jsonb, p_event text,
    p_key text DEFAULT NULL, p_sender uuid DEFAULT NULL, p_batch bigint DEFAULT NULL
)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_found record;
BEGIN
    SELECT * INTO v_found FROM {schema}.usage_v1_find(p_event_id, true);
    IF v_found.state = 'ended' THEN
        RETURN {schema}.usage_v1_settled_before(p_event_id, p_charges, p_key, p_sender, p_batch);
    END IF;
    RETURN {schema}.usage_v1_end_charged(p_event_id, v_found.holds, p_charges, p_event, p_key, p_sender, p_batch);
END
$$;

CREATE FUNCTION {schema}.usage_v1_recover(p_event_id text)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_found record;
    v_settled jsonb;
BEGIN
    SELECT * INTO v_found FROM {schema}.usage_v1_find(p_event_id, false);
    IF v_found.state <> 'open' THEN
        RETURN jsonb_build_object('state', v_found.state);
    END IF;
    v_settled := {schema}.usage_v1_book(v_found.holds, (
        SELECT coalesce(jsonb_agg(jsonb_build_array(hold -> 0, hold -> 1, hold -> 2, hold -> 3, hold -> 5)), '[]')
        FROM jsonb_array_elements(v_found.holds) AS hold
    ), v_found.event);
    PERFORM {schema}.usage_v1_end(p_event_id, p_is_kept => true);
    RETURN v_settled;
END
$$;

CREATE FUNCTION {schema}.usage_v1_release(p_event_id text)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_found record;
BEGIN
    SELECT * INTO v_found FROM {schema}.usage_v1_find(p_event_id, false);
    IF v_found.state <> 'open' THEN
        RETURN false;
    END IF;
    PERFORM {schema}.usage_v1_apply(v_found.holds, '[]');
    PERFORM {schema}.usage_v1_end(p_event_id, p_is_released => true);
    RETURN true;
END
$$;

CREATE FUNCTION {schema}.usage_v1_abandon(p_event_id text)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_found record;
BEGIN
    SELECT * INTO v_found FROM {schema}.usage_v1_find(p_event_id, true);
    IF v_found.state = 'ended' THEN
        RETURN false;
    END IF;
    PERFORM {schema}.usage_v1_apply(v_found.holds, '[]');
    PERFORM {schema}.usage_v1_end(p_event_id, p_is_kept => true);
    RETURN true;
END
$$;

-- Free the holds on accounts [[limit_key, window_start, subject], …].
CREATE FUNCTION {schema}.usage_v1_free(p_event_id text, p_accounts jsonb)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_holds jsonb;
    v_freed jsonb;
    v_kept jsonb;
BEGIN
    SELECT request.holds INTO v_holds
    FROM {schema}.requests AS request
    WHERE request.event_id = p_event_id AND request.ended IS NULL
    FOR UPDATE;
    SELECT
        coalesce(jsonb_agg(hold) FILTER (WHERE is_freed), '[]'),
        coalesce(jsonb_agg(hold) FILTER (WHERE NOT is_freed), '[]')
    INTO v_freed, v_kept
    FROM jsonb_array_elements(v_holds) AS hold
    CROSS JOIN LATERAL (
        SELECT EXISTS (
            SELECT FROM jsonb_array_elements(p_accounts) AS account
            WHERE account = jsonb_build_array(hold -> 0, hold -> 1, hold -> 2)
        ) AS is_freed
    ) AS chosen;
    IF v_freed = '[]' THEN
        RETURN false;
    END IF;
    UPDATE {schema}.requests SET holds = v_kept WHERE event_id = p_event_id;
    PERFORM {schema}.usage_v1_apply(v_freed, '[]');
    RETURN true;
END
$$;

CREATE FUNCTION {schema}.usage_v1_correct(p_correction_id text, p_differences jsonb)
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO {schema}.requests (event_id, ended)
    SELECT p_correction_id, ledger.generation FROM {schema}.ledger AS ledger
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {schema}.usage_v1_apply('[]', p_differences);
    RETURN true;
END
$$;

-- The last number of the outbox, and the balances of accounts [[limit_key, window_start, subject], …] in their order.
-- Stable: all statements of it see one instant.
CREATE FUNCTION {schema}.usage_v1_snapshot(p_accounts jsonb)
RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN jsonb_build_object(
        'seq', (SELECT counter.last FROM {schema}.outbox_counter AS counter),
        'balances', (
            SELECT coalesce(jsonb_agg(
                jsonb_build_array(coalesce(account.spent, 0), coalesce(account.reserved, 0)) ORDER BY one.number
            ), '[]')
            FROM jsonb_array_elements(p_accounts) WITH ORDINALITY AS one (key, number)
            LEFT JOIN {schema}.accounts AS account
                ON account.limit_key = (one.key ->> 0)::bigint AND account.subject = (one.key ->> 2) COLLATE "C"
                AND account.window_start = (one.key ->> 1)::bigint
        )
    );
END
$$;

-- The first and the last number that the store does not have, and the number and the bytes of every nth entry of them.
CREATE FUNCTION {schema}.usage_v1_waiting(
    p_sample bigint, OUT first bigint, OUT last bigint, OUT measured bigint, OUT size bigint
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    SELECT min(entry.seq), max(entry.seq) INTO first, last
    FROM {schema}.outbox AS entry
    WHERE entry.seq > (SELECT ledger.acknowledged FROM {schema}.ledger AS ledger);
    SELECT count(*), sum(octet_length(entry.event)) INTO measured, size
    FROM generate_series(first, last, (last - first) / p_sample + 1) AS chosen (seq)
    JOIN {schema}.outbox AS entry ON entry.seq = chosen.seq;
END
$$;

CREATE FUNCTION {schema}.usage_v1_acknowledge(p_seq bigint, p_kept integer)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE {schema}.ledger SET acknowledged = greatest(acknowledged, p_seq);
    DELETE FROM {schema}.outbox WHERE seq <= p_seq - p_kept;
END
$$;

CREATE FUNCTION {schema}.usage_v1_agree(p_stored bigint)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_acknowledged bigint;
    v_last bigint;
    v_by bigint;
BEGIN
    -- Until the commit, no other transaction takes a number.
    SELECT counter.last INTO v_last FROM {schema}.outbox_counter AS counter FOR UPDATE;
    SELECT ledger.acknowledged INTO v_acknowledged FROM {schema}.ledger AS ledger FOR UPDATE;
    IF p_stored > v_acknowledged THEN
        v_by := greatest(p_stored, v_last) - v_acknowledged;
        UPDATE {schema}.outbox SET seq = seq + v_by WHERE seq > v_acknowledged AND seq <= p_stored;
        UPDATE {schema}.outbox_counter
        SET last = greatest(v_last, p_stored, (SELECT max(entry.seq) FROM {schema}.outbox AS entry));
    END IF;
    UPDATE {schema}.ledger SET acknowledged = p_stored;
END
$$;

-- Let this transaction wait for the disk, also where the server is set not to, and with it all that commit before it.
CREATE FUNCTION {schema}.usage_v1_sync()
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    UPDATE {schema}.durability SET syncs = syncs + 1;
END
$$;

-- A slice of housekeeping. `p_closed`: accounts with an earlier end and without a hold are deleted, unless another
-- transaction is using the row.
CREATE FUNCTION {schema}.usage_v1_maintain(p_now bigint, p_closed bigint, p_generation bigint, p_slice integer)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_generation integer;
BEGIN
    UPDATE {schema}.ledger
    SET generation = generation + 1, generation_began = p_now
    WHERE NOT (p_now >= generation_began AND p_now < generation_began + p_generation);
    SELECT ledger.generation INTO v_generation FROM {schema}.ledger AS ledger;
    DELETE FROM {schema}.accounts AS account
    USING (
        SELECT old.limit_key, old.subject, old.window_start
        FROM {schema}.accounts AS old
        WHERE old.window_end < p_closed AND old.reserved = 0
        ORDER BY old.window_end
        LIMIT p_slice
        FOR UPDATE SKIP LOCKED
    ) AS closed
    WHERE account.limit_key = closed.limit_key AND account.subject = closed.subject
        AND account.window_start = closed.window_start;
    DELETE FROM {schema}.senders WHERE name IN (
        SELECT old.name
        FROM {schema}.senders AS old
        WHERE old.generation < v_generation - 144
        LIMIT p_slice
        FOR UPDATE SKIP LOCKED
    );
    -- An id is known for one to two generations, an abandoned or recovered one for a day more. A settlement whose answer
    -- may be missing is known as long as its sender.
    DELETE FROM {schema}.requests WHERE event_id IN (
        SELECT old.event_id
        FROM {schema}.requests AS old
        WHERE NOT old.is_kept AND old.ended < v_generation - 1 AND NOT EXISTS (
            SELECT FROM {schema}.senders AS sender WHERE sender.name = old.sender AND sender.number = old.batch
        )
        LIMIT p_slice
        FOR UPDATE OF old SKIP LOCKED
    );
    DELETE FROM {schema}.requests WHERE event_id IN (
        SELECT old.event_id
        FROM {schema}.requests AS old
        WHERE old.is_kept AND old.ended < v_generation - 144
        LIMIT p_slice
        FOR UPDATE SKIP LOCKED
    );
    PERFORM {schema}.usage_v1_sync();
END
$$;

-- All rows are looked up by an index. A plan that is made while the tables are small would read them whole, and a session
-- may keep it until long after they have grown. A table of one row has no index, and before version 18 its scan then
-- counts as so expensive that the plan is compiled first: 64 s for a test that takes 1 s without `jit`.
-- A lock that is not free within 2 s is an error that callers can retry.
DO $$
DECLARE
    v_verb regprocedure;
BEGIN
    FOR v_verb IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = '{schema}'::regnamespace AND proname IN (
            'usage_v1_reserve', 'usage_v1_settle', 'usage_v1_record', 'usage_v1_recover', 'usage_v1_release',
            'usage_v1_abandon', 'usage_v1_free', 'usage_v1_correct', 'usage_v1_snapshot',
            'usage_v1_waiting', 'usage_v1_acknowledge', 'usage_v1_agree', 'usage_v1_sync', 'usage_v1_maintain'
        )
    LOOP
        EXECUTE format(
            'ALTER FUNCTION %s SET lock_timeout = ''2s'''
            ' SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off', v_verb
        );
    END LOOP;
END
$$;

INSERT INTO {schema}.versions (number, oldest) VALUES (2, 2);
