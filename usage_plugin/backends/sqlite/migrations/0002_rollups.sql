-- Sums of `daily`, kept by triggers: nothing else writes to `monthly` and `model_days`, so they cannot differ from it.
CREATE TABLE monthly (
    month INTEGER NOT NULL,
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
    PRIMARY KEY (month, user, team, api_key, organization, end_user, model, provider)
) WITHOUT ROWID;

CREATE TABLE model_days (
    day INTEGER NOT NULL,
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
    PRIMARY KEY (day, model, provider)
) WITHOUT ROWID;

-- Of events only: imported days have no hours. `hour` is the instant at which an hour of the store's zone begins.
CREATE TABLE hourly (
    hour INTEGER NOT NULL,
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
    PRIMARY KEY (hour, model, provider)
) WITHOUT ROWID;

INSERT INTO monthly
SELECT day / 100, user, team, api_key, organization, end_user, model, provider,
    sum(requests), sum(failed_requests), sum(input_tokens), sum(output_tokens), sum(cached_input_tokens),
    sum(cache_write_tokens), sum(reasoning_tokens), sum(cost)
FROM daily GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;

INSERT INTO model_days
SELECT day, model, provider,
    sum(requests), sum(failed_requests), sum(input_tokens), sum(output_tokens), sum(cached_input_tokens),
    sum(cache_write_tokens), sum(reasoning_tokens), sum(cost)
FROM daily GROUP BY 1, 2, 3;

INSERT INTO hourly
SELECT local_hour(started_at, (SELECT zone FROM store)), model, provider,
    count(*), sum(json_extract(rest, '$.status') = 'failure'),
    sum(coalesce(json_extract(rest, '$.input_tokens'), 0)), sum(coalesce(json_extract(rest, '$.output_tokens'), 0)),
    sum(coalesce(json_extract(rest, '$.cached_input_tokens'), 0)),
    sum(coalesce(json_extract(rest, '$.cache_write_tokens'), 0)),
    sum(coalesce(json_extract(rest, '$.reasoning_tokens'), 0)),
    sum(coalesce(json_extract(rest, '$.cost'), 0))
FROM events GROUP BY 1, 2, 3;

CREATE TRIGGER daily_insert AFTER INSERT ON daily BEGIN
    INSERT INTO monthly VALUES (
        new.day / 100, new.user, new.team, new.api_key, new.organization, new.end_user, new.model, new.provider,
        new.requests, new.failed_requests, new.input_tokens, new.output_tokens, new.cached_input_tokens,
        new.cache_write_tokens, new.reasoning_tokens, new.cost
    ) ON CONFLICT DO UPDATE SET
        requests = requests + excluded.requests,
        failed_requests = failed_requests + excluded.failed_requests,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cached_input_tokens = cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
        reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
        cost = cost + excluded.cost;
    INSERT INTO model_days VALUES (
        new.day, new.model, new.provider, new.requests, new.failed_requests, new.input_tokens, new.output_tokens,
        new.cached_input_tokens, new.cache_write_tokens, new.reasoning_tokens, new.cost
    ) ON CONFLICT DO UPDATE SET
        requests = requests + excluded.requests,
        failed_requests = failed_requests + excluded.failed_requests,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cached_input_tokens = cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
        reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
        cost = cost + excluded.cost;
END;

CREATE TRIGGER daily_update AFTER UPDATE ON daily BEGIN
    UPDATE monthly SET
        requests = requests + new.requests - old.requests,
        failed_requests = failed_requests + new.failed_requests - old.failed_requests,
        input_tokens = input_tokens + new.input_tokens - old.input_tokens,
        output_tokens = output_tokens + new.output_tokens - old.output_tokens,
        cached_input_tokens = cached_input_tokens + new.cached_input_tokens - old.cached_input_tokens,
        cache_write_tokens = cache_write_tokens + new.cache_write_tokens - old.cache_write_tokens,
        reasoning_tokens = reasoning_tokens + new.reasoning_tokens - old.reasoning_tokens,
        cost = cost + new.cost - old.cost
    WHERE month = new.day / 100 AND user = new.user AND team = new.team AND api_key = new.api_key
        AND organization = new.organization AND end_user = new.end_user
        AND model = new.model AND provider = new.provider;
    UPDATE model_days SET
        requests = requests + new.requests - old.requests,
        failed_requests = failed_requests + new.failed_requests - old.failed_requests,
        input_tokens = input_tokens + new.input_tokens - old.input_tokens,
        output_tokens = output_tokens + new.output_tokens - old.output_tokens,
        cached_input_tokens = cached_input_tokens + new.cached_input_tokens - old.cached_input_tokens,
        cache_write_tokens = cache_write_tokens + new.cache_write_tokens - old.cache_write_tokens,
        reasoning_tokens = reasoning_tokens + new.reasoning_tokens - old.reasoning_tokens,
        cost = cost + new.cost - old.cost
    WHERE day = new.day AND model = new.model AND provider = new.provider;
END;

CREATE TRIGGER daily_delete AFTER DELETE ON daily BEGIN
    UPDATE monthly SET
        requests = requests - old.requests,
        failed_requests = failed_requests - old.failed_requests,
        input_tokens = input_tokens - old.input_tokens,
        output_tokens = output_tokens - old.output_tokens,
        cached_input_tokens = cached_input_tokens - old.cached_input_tokens,
        cache_write_tokens = cache_write_tokens - old.cache_write_tokens,
        reasoning_tokens = reasoning_tokens - old.reasoning_tokens,
        cost = cost - old.cost
    WHERE month = old.day / 100 AND user = old.user AND team = old.team AND api_key = old.api_key
        AND organization = old.organization AND end_user = old.end_user
        AND model = old.model AND provider = old.provider;
    DELETE FROM monthly
    WHERE month = old.day / 100 AND user = old.user AND team = old.team AND api_key = old.api_key
        AND organization = old.organization AND end_user = old.end_user
        AND model = old.model AND provider = old.provider
        AND requests = 0 AND failed_requests = 0 AND input_tokens = 0 AND output_tokens = 0 AND cached_input_tokens = 0
        AND cache_write_tokens = 0 AND reasoning_tokens = 0 AND cost = 0;
    UPDATE model_days SET
        requests = requests - old.requests,
        failed_requests = failed_requests - old.failed_requests,
        input_tokens = input_tokens - old.input_tokens,
        output_tokens = output_tokens - old.output_tokens,
        cached_input_tokens = cached_input_tokens - old.cached_input_tokens,
        cache_write_tokens = cache_write_tokens - old.cache_write_tokens,
        reasoning_tokens = reasoning_tokens - old.reasoning_tokens,
        cost = cost - old.cost
    WHERE day = old.day AND model = old.model AND provider = old.provider;
    DELETE FROM model_days
    WHERE day = old.day AND model = old.model AND provider = old.provider
        AND requests = 0 AND failed_requests = 0 AND input_tokens = 0 AND output_tokens = 0 AND cached_input_tokens = 0
        AND cache_write_tokens = 0 AND reasoning_tokens = 0 AND cost = 0;
END;
