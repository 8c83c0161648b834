-- Tasks out of SQL: documents/enqueue-from-sql.md. Bounds and grammar are those of POST /tasks.
-- A parameter given as NULL is one left out. No NOTIFY: it would take a lock that all committing sessions
-- of the database share, until the caller commits; the relay polls.
CREATE FUNCTION baton_enqueue(
    kind             text,
    payload          jsonb            DEFAULT '{}',
    priority         text             DEFAULT 'MEDIUM',
    run_at           timestamptz      DEFAULT NULL,
    timeout_seconds  double precision DEFAULT 300,
    max_retries      integer          DEFAULT 3,
    tags             text[]           DEFAULT '{}',
    name             text             DEFAULT '',
    description      text             DEFAULT '',
    idempotency_key  text             DEFAULT NULL,
    kind_version     integer          DEFAULT 1
) RETURNS uuid
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
-- With the owner's rights: a role that may call it can hand tasks over, and needs no right on any table.
SECURITY DEFINER
AS $enqueue$
DECLARE
    -- Not now(): the caller's transaction may have begun long ago.
    moment    constant timestamptz := clock_timestamp();
    -- RFC 9562, version 7: milliseconds in front of the random part and the variant of a version 4.
    new_id    constant uuid := (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '7'
                                || right(replace(gen_random_uuid()::text, '-', ''), 19))::uuid;
    body      constant text := coalesce(payload, '{}')::text;
    level     constant smallint := array_position(ARRAY['HIGH', 'MEDIUM', 'LOW'], coalesce(priority, 'MEDIUM'));
    timeout   constant double precision := coalesce(timeout_seconds, 300);
    retries   constant integer := coalesce(max_retries, 3);
    labels    constant text[] := coalesce(tags, '{}');
    title     constant text := coalesce(name, '');
    about     constant text := coalesce(description, '');
    version   constant integer := coalesce(kind_version, 1);
    fault     text;
    allowed   text;
    print     text;
    first     record;
BEGIN
    SELECT f.fault, f.allowed INTO fault, allowed FROM (VALUES
        (kind IS NULL OR length(kind) > 100 OR kind !~ '^[a-z0-9_]+(\.[a-z0-9_-]+)*$',
         format('kind %L', left(kind, 100)),
         'up to 100 characters, words of a-z 0-9 _ (- after the first dot) joined by dots'),
        (octet_length(body) > 262144, format('payload of %s bytes', octet_length(body)), 'up to 262144 bytes'),
        (level IS NULL, format('priority %L', left(priority, 100)), 'HIGH, MEDIUM or LOW'),
        (NOT (run_at >= 'epoch' AND run_at < '9999-01-01 00:00+00'), format('run_at %L', run_at),
         'from the year 1970 to the year 9998'),
        (NOT timeout BETWEEN 0.1 AND 86400, format('timeout_seconds %s', timeout), '0.1 to 86400'),
        (NOT retries BETWEEN 0 AND 100, format('max_retries %s', retries), 'a whole number from 0 to 100'),
        (array_ndims(labels) > 1 OR cardinality(labels) > 20
         OR EXISTS (SELECT FROM unnest(labels) AS label WHERE (length(label) BETWEEN 1 AND 64) IS NOT TRUE),
         'tags', 'up to 20 texts of 1 to 64 characters'),
        (length(title) > 200, format('name of %s characters', length(title)), 'up to 200 characters'),
        (length(about) > 4000, format('description of %s characters', length(about)), 'up to 4000 characters'),
        (idempotency_key !~ '^[!-~]{1,200}$', format('idempotency_key %L', left(idempotency_key, 100)),
         '1 to 200 visible ASCII characters, no blanks'),
        (version < 1, format('kind_version %s', version), 'a whole number from 1')
    ) AS f(fails, fault, allowed) WHERE f.fails LIMIT 1;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'baton_enqueue: % is not allowed', fault
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Allowed: ' || allowed || '.';
    END IF;

    IF idempotency_key IS NOT NULL THEN
        print := 'sql:' || encode(sha256(convert_to(jsonb_build_array(
            kind, version, payload, level, extract(epoch FROM run_at), timeout, retries, labels, title, about
        )::text, 'UTF8')), 'hex');
        LOOP
            -- Waits for a transaction that is writing the same key: it decides who is first.
            INSERT INTO idempotency_keys (tenant, key, fingerprint, task_ids)
            VALUES ('', idempotency_key, print, ARRAY[new_id]) ON CONFLICT DO NOTHING;
            EXIT WHEN FOUND;
            SELECT k.fingerprint, k.task_ids[1] AS id INTO first
            FROM idempotency_keys k WHERE k.tenant = '' AND k.key = idempotency_key;
            CONTINUE WHEN NOT FOUND;  -- pruned in between
            IF first.fingerprint = print THEN
                RETURN first.id;
            END IF;
            RAISE EXCEPTION 'baton_enqueue: idempotency_key % belongs to another request', idempotency_key
                USING ERRCODE = 'unique_violation', DETAIL = format('It became task %s.', first.id),
                      HINT = 'Use a new key for a new request.';
        END LOOP;
    END IF;

    INSERT INTO tasks (id, kind, kind_version, priority, max_retries, timeout_seconds, created_at, due_at)
    VALUES (new_id, kind, version, level, retries, timeout, moment, run_at);
    INSERT INTO payloads (task_id, kind, name, description, tags, body)
    VALUES (new_id, kind, title, about, labels, convert_to(body, 'UTF8'));
    INSERT INTO task_tags (tag, task_id) SELECT DISTINCT label, new_id FROM unnest(labels) AS label;
    INSERT INTO outbox (task_id, dispatch, priority, route, available_at, created_at)
    SELECT new_id, 1, q.priority, q.name, greatest(moment, run_at), moment FROM queues q WHERE q.priority = level;
    RETURN new_id;
END
$enqueue$;

REVOKE ALL ON FUNCTION baton_enqueue FROM PUBLIC;

-- The caller's search_path and temporary tables must not lead the owner's rights to other tables.
DO $path$ BEGIN
    EXECUTE format('ALTER FUNCTION baton_enqueue SET search_path = pg_catalog, %I, pg_temp', current_schema());
END $path$;

COMMENT ON FUNCTION baton_enqueue IS
    'Hands a task over within the transaction of the caller; see documents/enqueue-from-sql.md';
