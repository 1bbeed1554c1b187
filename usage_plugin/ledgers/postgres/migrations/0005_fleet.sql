-- The workers that share the ledger, and their keeper. All functions take their locks in one order: the row of the fleet
-- for a new incarnation, then the member, then the row of the fleet.

-- One row, which identifies the server's state. The table is not logged: the server empties it after a crash, also of a
-- single process, on a replica that takes over, and in a restored copy. These are the cases in which it may have lost
-- its last transactions. `synchronous_commit = off` needs no more than a crash for that.
CREATE UNLOGGED TABLE {schema}.incarnation (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    token uuid NOT NULL
);

-- One row. `incarnation` is the last one that was seen; `term` ascends with every keeper.
CREATE TABLE {schema}.fleet (
    incarnation text NOT NULL,
    keeper text COLLATE "C",
    term bigint NOT NULL
) WITH (fillfactor = 20);

-- `incarnation` is the one to which the member has sent its reservations. While that of some member is another one than
-- the present one, the ledger admits no reservations.
CREATE TABLE {schema}.members (
    name text COLLATE "C" PRIMARY KEY,
    host text NOT NULL,
    beats bigint NOT NULL,
    details text NOT NULL,
    incarnation text NOT NULL
) WITH (fillfactor = 20);

-- The present incarnation: the time at which the server started, and the token. With the time, also a clean restart and
-- a restored dump are other incarnations.
CREATE FUNCTION {schema}.usage_v1_incarnation()
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_token uuid;
BEGIN
    LOOP
        SELECT incarnation.token INTO v_token FROM {schema}.incarnation AS incarnation;
        IF FOUND THEN
            RETURN to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS') || '-' || v_token;
        END IF;
        INSERT INTO {schema}.incarnation (token) VALUES (gen_random_uuid()) ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;

INSERT INTO {schema}.fleet (incarnation, term) VALUES ({schema}.usage_v1_incarnation(), 0);

-- Return the present incarnation. A new one has no keeper: it may have forgotten the last ones. Its term is higher than
-- those that it can have forgotten.
CREATE FUNCTION {schema}.usage_v1_renew()
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_incarnation text := {schema}.usage_v1_incarnation();
BEGIN
    IF (SELECT fleet.incarnation FROM {schema}.fleet AS fleet) <> v_incarnation THEN
        UPDATE {schema}.fleet
        SET incarnation = v_incarnation, keeper = NULL, term = term + 1000
        WHERE incarnation <> v_incarnation;
    END IF;
    RETURN v_incarnation;
END
$$;

-- Whether all members have sent their reservations to an incarnation.
CREATE FUNCTION {schema}.usage_v1_is_open(p_incarnation text)
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    RETURN NOT EXISTS (SELECT FROM {schema}.members AS member WHERE member.incarnation <> p_incarnation);
END
$$;

CREATE FUNCTION {schema}.usage_v1_fleet()
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_incarnation text := {schema}.usage_v1_renew();
BEGIN
    RETURN (
        SELECT jsonb_build_array(
            {schema}.usage_v1_now(), v_incarnation, {schema}.usage_v1_is_open(v_incarnation),
            (
                SELECT coalesce(jsonb_agg(jsonb_build_array(
                    member.name, member.host, member.beats, member.details, member.incarnation = v_incarnation
                ) ORDER BY member.name), '[]')
                FROM {schema}.members AS member
            ),
            fleet.keeper, fleet.term
        )
        FROM {schema}.fleet AS fleet
    );
END
$$;

-- The server's time in microseconds since 1970 UTC; not that of the transaction's start.
CREATE FUNCTION {schema}.usage_v1_now()
RETURNS bigint
LANGUAGE plpgsql
AS $$
BEGIN
    RETURN floor(extract(epoch FROM clock_timestamp())::numeric * 1000000);
END
$$;

-- A member that has reservations from before keeps a closed ledger closed until it has sent them, and an open one open.
CREATE FUNCTION {schema}.usage_v1_join(p_name text, p_host text, p_details text, p_has_reasserted boolean)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_incarnation text := {schema}.usage_v1_renew();
BEGIN
    INSERT INTO {schema}.members (name, host, beats, details, incarnation)
    VALUES (
        p_name, p_host, 0, p_details,
        CASE WHEN p_has_reasserted OR {schema}.usage_v1_is_open(v_incarnation) THEN v_incarnation ELSE '' END
    )
    ON CONFLICT (name) DO UPDATE SET details = excluded.details;
    RETURN {schema}.usage_v1_fleet();
END
$$;

-- Null if there is no such member.
CREATE FUNCTION {schema}.usage_v1_beat(p_name text, p_details text)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE {schema}.members SET beats = beats + 1, details = p_details WHERE name = p_name;
    IF FOUND THEN
        RETURN {schema}.usage_v1_fleet();
    END IF;
    RETURN NULL;
END
$$;

-- Remove a member, unless its counter is another one than `p_beats`; null removes it with any counter. Return whether
-- there is no such member any more. Batches of the member that are under way are done first.
CREATE FUNCTION {schema}.usage_v1_remove(p_name text, p_beats bigint)
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.usage_v1_renew();
    DELETE FROM {schema}.members WHERE name = p_name AND beats = coalesce(p_beats, beats);
    IF FOUND THEN
        UPDATE {schema}.fleet SET keeper = NULL WHERE keeper = p_name;
        RETURN true;
    END IF;
    RETURN NOT EXISTS (SELECT FROM {schema}.members AS member WHERE member.name = p_name);
END
$$;

CREATE FUNCTION {schema}.usage_v1_keep(p_name text, p_term bigint)
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.usage_v1_renew();
    PERFORM FROM {schema}.members AS member WHERE member.name = p_name FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE {schema}.fleet SET keeper = p_name, term = term + 1 WHERE keeper IS NULL AND term = p_term;
    RETURN FOUND;
END
$$;

CREATE FUNCTION {schema}.usage_v1_stop_keeping(p_name text)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.usage_v1_renew();
    UPDATE {schema}.fleet SET keeper = NULL WHERE keeper = p_name;
END
$$;

-- Fail unless a term is the present one; it stays so until the end of the transaction.
CREATE FUNCTION {schema}.usage_v1_check_term(p_term bigint)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.usage_v1_renew();
    PERFORM FROM {schema}.fleet AS fleet WHERE fleet.term = p_term FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another worker is the keeper now' USING ERRCODE = 'UP001';
    END IF;
END
$$;

-- Note that a member has sent its reservations to the present incarnation, if that is `p_incarnation`.
CREATE FUNCTION {schema}.usage_v1_reasserted(p_name text, p_incarnation text)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_incarnation text := {schema}.usage_v1_renew();
BEGIN
    IF p_incarnation <> v_incarnation THEN
        RETURN jsonb_build_object('incarnation', v_incarnation, 'is_replaced', true);
    END IF;
    UPDATE {schema}.members SET incarnation = v_incarnation WHERE name = p_name;
    RETURN jsonb_build_object('incarnation', v_incarnation, 'is_member', FOUND);
END
$$;

DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = '{schema}'::regnamespace AND proname IN (
            'usage_v1_fleet', 'usage_v1_join', 'usage_v1_beat', 'usage_v1_remove', 'usage_v1_keep',
            'usage_v1_stop_keeping', 'usage_v1_check_term', 'usage_v1_reasserted'
        )
    LOOP
        EXECUTE format(
            'ALTER FUNCTION %s SET lock_timeout = ''2s'''
            ' SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off', v_function
        );
    END LOOP;
END
$$;

INSERT INTO {schema}.versions (number, oldest) VALUES (5, 5);
