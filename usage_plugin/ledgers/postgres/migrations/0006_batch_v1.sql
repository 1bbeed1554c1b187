-- A batch of the request path: the verbs of one worker, in one transaction. It takes its locks in this order: the sender,
-- the members that reserve, and then as each verb does (0002). So a batch that has locked a request never waits for a
-- member that is being removed.

-- Hold a reservation again that the server has lost, or that was released, also beyond the maximum. An open one gets
-- the worker, the holds and the event.
CREATE FUNCTION {schema}.usage_v1_reassert(
    p_event_id text, p_worker text, p_started_at bigint, p_holds jsonb, p_event text
)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_held jsonb := {schema}.usage_v1_held(p_holds);
    v_known record;
BEGIN
    LOOP
        SELECT request.ended, request.is_released, request.holds INTO v_known
        FROM {schema}.requests AS request
        WHERE request.event_id = p_event_id
        FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO {schema}.requests (event_id, ended, is_released)
            SELECT p_event_id, ledger.generation, true FROM {schema}.ledger AS ledger
            ON CONFLICT DO NOTHING;
            CONTINUE;
        END IF;
        EXIT;
    END LOOP;
    IF v_known.ended IS NOT NULL AND NOT v_known.is_released THEN
        RETURN;
    END IF;
    PERFORM {schema}.usage_v1_lock(p_holds);
    IF v_known.ended IS NULL THEN
        PERFORM {schema}.usage_v1_apply(v_known.holds, '[]');
    END IF;
    UPDATE {schema}.requests AS request
    SET ended = NULL, is_released = false, worker = p_worker, started_at = p_started_at, holds = v_held,
        event = p_event,
        content = coalesce(
            request.content, {schema}.usage_v1_digest(p_worker, p_started_at, v_held, p_event)
        ),
        answer = coalesce(
            request.answer, (SELECT look.balances FROM {schema}.usage_v1_look(p_holds) AS look)
        )
    WHERE request.event_id = p_event_id;
    PERFORM {schema}.usage_v1_hold(p_holds);
END
$$;

-- Do verbs [[name, event_id, …], …] in their order, and return their answers. First lock everything that they use, in
-- the order of the locks: otherwise one verb's locks would follow those of another. `p_members` are the workers that may
-- reserve. `p_refusal` is the answer to every other reservation; null if there is no reason to refuse one.
CREATE FUNCTION {schema}.usage_v1_do(
    p_verbs jsonb, p_sender uuid, p_batch bigint, p_members text[], p_refusal jsonb
)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_accounts jsonb;
    v_verb jsonb;
    v_answer jsonb;
    v_answers jsonb := '[]';
BEGIN
    PERFORM
    FROM {schema}.requests AS request
    WHERE request.event_id IN (SELECT verb ->> 1 FROM jsonb_array_elements(p_verbs) AS verb)
    ORDER BY request.event_id
    FOR UPDATE;
    SELECT coalesce(jsonb_agg(jsonb_build_array(
        used.limit_key, used.window_start, used.subject, 0, 0, NULL, 0, used.since
    )), '[]')
    INTO v_accounts
    FROM (
        SELECT
            (part.account ->> 0)::bigint AS limit_key, (part.account ->> 1)::bigint AS window_start,
            part.account ->> 2 AS subject, min(part.since) AS since
        FROM (
            SELECT hold AS account, (hold ->> 7)::bigint AS since
            FROM jsonb_array_elements(p_verbs) AS verb
            CROSS JOIN LATERAL jsonb_array_elements(
                CASE WHEN verb ->> 0 IN ('reserve', 'reassert') THEN verb -> 4 END
            ) AS hold
            UNION ALL
            SELECT charge, NULL
            FROM jsonb_array_elements(p_verbs) AS verb
            CROSS JOIN LATERAL jsonb_array_elements(
                CASE WHEN verb ->> 0 IN ('settle', 'record') THEN verb -> 2 END
            ) AS charge
            UNION ALL
            SELECT hold, NULL
            FROM jsonb_array_elements(p_verbs) AS verb
            JOIN {schema}.requests AS request ON request.event_id = verb ->> 1
            CROSS JOIN LATERAL jsonb_array_elements(request.holds) AS hold
        ) AS part
        GROUP BY 1, 2, 3
    ) AS used;
    PERFORM {schema}.usage_v1_lock(v_accounts);
    FOR v_verb IN SELECT verb FROM jsonb_array_elements(p_verbs) AS verb LOOP
        CASE v_verb ->> 0
            WHEN 'reserve' THEN
                v_answer := CASE
                    WHEN p_refusal IS NOT NULL THEN p_refusal
                    WHEN v_verb ->> 2 <> ALL (p_members) THEN jsonb_build_object('error', 'worker')
                END;
                IF v_answer IS NULL THEN
                    v_answer := {schema}.usage_v1_reserve(
                        v_verb ->> 1, v_verb ->> 2, (v_verb ->> 3)::bigint, v_verb -> 4, v_verb ->> 5
                    );
                END IF;
            WHEN 'settle' THEN
                v_answer := {schema}.usage_v1_settle(
                    v_verb ->> 1, v_verb -> 2, v_verb ->> 3, v_verb ->> 4, p_sender, p_batch
                );
            WHEN 'record' THEN
                v_answer := {schema}.usage_v1_record(
                    v_verb ->> 1, v_verb -> 2, v_verb ->> 3, v_verb ->> 4, p_sender, p_batch
                );
            WHEN 'release' THEN
                v_answer := to_jsonb({schema}.usage_v1_release(v_verb ->> 1));
            WHEN 'abandon' THEN
                v_answer := to_jsonb({schema}.usage_v1_abandon(v_verb ->> 1));
            WHEN 'free' THEN
                v_answer := to_jsonb({schema}.usage_v1_free(v_verb ->> 1, v_verb -> 2));
            WHEN 'reassert' THEN
                IF v_verb ->> 2 = ANY (p_members) THEN
                    PERFORM {schema}.usage_v1_reassert(
                        v_verb ->> 1, v_verb ->> 2, (v_verb ->> 3)::bigint, v_verb -> 4, v_verb ->> 5
                    );
                    v_answer := 'null';
                ELSE
                    v_answer := jsonb_build_object('error', 'worker');
                END IF;
        END CASE;
        v_answers := v_answers || jsonb_build_array(v_answer);
    END LOOP;
    PERFORM {schema}.usage_v1_discard(v_accounts);
    RETURN v_answers;
END
$$;

-- Do the verbs of a batch. Its head is [sender, number, time of sending, incarnation]. The answer has the incarnation, the
-- server's time and `answers`; without `answers` nothing was done, because `is_late`, or the incarnation is another one.
-- With `p_singly`, a verb that can never be done stops no other. It costs a subtransaction for each verb, and locks are
-- taken verb by verb, so it is for a batch that has failed.
CREATE FUNCTION {schema}.usage_v1_batch(p_head jsonb, p_verbs jsonb, p_singly boolean)
RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_now bigint := {schema}.usage_v1_now();
    v_sender uuid := (p_head ->> 0)::uuid;
    v_batch bigint := (p_head ->> 1)::bigint;
    v_incarnation text := {schema}.usage_v1_renew();
    v_known jsonb := jsonb_build_object('incarnation', v_incarnation, 'now', v_now);
    v_members text[] := '{}';
    v_refusal jsonb;
    v_verb jsonb;
    v_answers jsonb := '[]';
BEGIN
    IF p_head ->> 3 <> v_incarnation THEN
        RETURN v_known;
    END IF;
    -- A batch that is delayed on the way must not be done after a later one.
    INSERT INTO {schema}.senders AS sender (name, number, generation)
    SELECT v_sender, v_batch, ledger.generation FROM {schema}.ledger AS ledger
    ON CONFLICT (name) DO UPDATE SET number = excluded.number, generation = excluded.generation
    WHERE sender.number < excluded.number;
    IF NOT FOUND THEN
        RETURN v_known || jsonb_build_object('is_late', true);
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements(p_verbs) AS verb WHERE verb ->> 0 IN ('reserve', 'reassert')) THEN
        -- A member that is removed meanwhile holds nothing afterwards: its removal waits for this transaction.
        SELECT coalesce(array_agg(member.name), '{}') INTO v_members
        FROM (
            SELECT member.name
            FROM {schema}.members AS member
            WHERE member.name IN (
                SELECT verb ->> 2
                FROM jsonb_array_elements(p_verbs) AS verb
                WHERE verb ->> 0 IN ('reserve', 'reassert')
            )
            ORDER BY member.name
            FOR KEY SHARE
        ) AS member;
        v_refusal := CASE
            WHEN abs((p_head ->> 2)::bigint - v_now) > 5000000 THEN jsonb_build_object('error', 'clock')
            WHEN NOT {schema}.usage_v1_is_open(v_incarnation) THEN jsonb_build_object('error', 'closed')
        END;
    END IF;
    IF NOT p_singly THEN
        v_answers := {schema}.usage_v1_do(p_verbs, v_sender, v_batch, v_members, v_refusal);
    ELSE
        FOR v_verb IN SELECT verb FROM jsonb_array_elements(p_verbs) AS verb LOOP
            BEGIN
                v_answers := v_answers || {schema}.usage_v1_do(
                    jsonb_build_array(v_verb), v_sender, v_batch, v_members, v_refusal
                );
            EXCEPTION
                -- Errors of the verb itself, not those of the server or of a race.
                WHEN data_exception OR program_limit_exceeded OR integrity_constraint_violation THEN
                    v_answers := v_answers || jsonb_build_array(jsonb_build_object('invalid', SQLERRM));
            END;
        END LOOP;
    END IF;
    RETURN v_known || jsonb_build_object('answers', v_answers);
END
$$;

-- The lane gives up a batch after a second; the server gives up before that, so that the connection stays usable.
ALTER FUNCTION {schema}.usage_v1_batch(jsonb, jsonb, boolean)
    SET lock_timeout = '800ms'
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off;

INSERT INTO {schema}.versions (number, oldest) VALUES (6, 6);
