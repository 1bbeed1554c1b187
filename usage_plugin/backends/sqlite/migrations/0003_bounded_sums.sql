-- SQLite turns an integer sum beyond 2^63 - 1 into a float without a word. A sum stops there instead.
DROP TRIGGER daily_insert;
DROP TRIGGER daily_update;

CREATE TRIGGER daily_insert AFTER INSERT ON daily BEGIN
    INSERT INTO monthly VALUES (
        new.day / 100, new.user, new.team, new.api_key, new.organization, new.end_user, new.model, new.provider,
        new.requests, new.failed_requests, new.input_tokens, new.output_tokens, new.cached_input_tokens,
        new.cache_write_tokens, new.reasoning_tokens, new.cost
    ) ON CONFLICT DO UPDATE SET
        requests = min(requests + excluded.requests, 9223372036854775807),
        failed_requests = min(failed_requests + excluded.failed_requests, 9223372036854775807),
        input_tokens = min(input_tokens + excluded.input_tokens, 9223372036854775807),
        output_tokens = min(output_tokens + excluded.output_tokens, 9223372036854775807),
        cached_input_tokens = min(cached_input_tokens + excluded.cached_input_tokens, 9223372036854775807),
        cache_write_tokens = min(cache_write_tokens + excluded.cache_write_tokens, 9223372036854775807),
        reasoning_tokens = min(reasoning_tokens + excluded.reasoning_tokens, 9223372036854775807),
        cost = min(cost + excluded.cost, 9223372036854775807);
    INSERT INTO model_days VALUES (
        new.day, new.model, new.provider, new.requests, new.failed_requests, new.input_tokens, new.output_tokens,
        new.cached_input_tokens, new.cache_write_tokens, new.reasoning_tokens, new.cost
    ) ON CONFLICT DO UPDATE SET
        requests = min(requests + excluded.requests, 9223372036854775807),
        failed_requests = min(failed_requests + excluded.failed_requests, 9223372036854775807),
        input_tokens = min(input_tokens + excluded.input_tokens, 9223372036854775807),
        output_tokens = min(output_tokens + excluded.output_tokens, 9223372036854775807),
        cached_input_tokens = min(cached_input_tokens + excluded.cached_input_tokens, 9223372036854775807),
        cache_write_tokens = min(cache_write_tokens + excluded.cache_write_tokens, 9223372036854775807),
        reasoning_tokens = min(reasoning_tokens + excluded.reasoning_tokens, 9223372036854775807),
        cost = min(cost + excluded.cost, 9223372036854775807);
END;

CREATE TRIGGER daily_update AFTER UPDATE ON daily BEGIN
    UPDATE monthly SET
        requests = min(requests + (new.requests - old.requests), 9223372036854775807),
        failed_requests = min(failed_requests + (new.failed_requests - old.failed_requests), 9223372036854775807),
        input_tokens = min(input_tokens + (new.input_tokens - old.input_tokens), 9223372036854775807),
        output_tokens = min(output_tokens + (new.output_tokens - old.output_tokens), 9223372036854775807),
        cached_input_tokens = min(cached_input_tokens + (new.cached_input_tokens - old.cached_input_tokens), 9223372036854775807),
        cache_write_tokens = min(cache_write_tokens + (new.cache_write_tokens - old.cache_write_tokens), 9223372036854775807),
        reasoning_tokens = min(reasoning_tokens + (new.reasoning_tokens - old.reasoning_tokens), 9223372036854775807),
        cost = min(cost + (new.cost - old.cost), 9223372036854775807)
    WHERE month = new.day / 100 AND user = new.user AND team = new.team AND api_key = new.api_key
        AND organization = new.organization AND end_user = new.end_user
        AND model = new.model AND provider = new.provider;
    UPDATE model_days SET
        requests = min(requests + (new.requests - old.requests), 9223372036854775807),
        failed_requests = min(failed_requests + (new.failed_requests - old.failed_requests), 9223372036854775807),
        input_tokens = min(input_tokens + (new.input_tokens - old.input_tokens), 9223372036854775807),
        output_tokens = min(output_tokens + (new.output_tokens - old.output_tokens), 9223372036854775807),
        cached_input_tokens = min(cached_input_tokens + (new.cached_input_tokens - old.cached_input_tokens), 9223372036854775807),
        cache_write_tokens = min(cache_write_tokens + (new.cache_write_tokens - old.cache_write_tokens), 9223372036854775807),
        reasoning_tokens = min(reasoning_tokens + (new.reasoning_tokens - old.reasoning_tokens), 9223372036854775807),
        cost = min(cost + (new.cost - old.cost), 9223372036854775807)
    WHERE day = new.day AND model = new.model AND provider = new.provider;
END;
