-- The ledger. Until v0.1.0 this file may still be rewritten; afterwards migrations only move forward.
-- Why the tables are cut like this: documents/decisions/0001-schema.md

-- What changes in the life of a task; narrow, because every change copies the row. What never changes stands first:
-- of a copy on the same page the log holds only what lies between the first byte that differs and the last.
CREATE TABLE tasks (
    id               uuid PRIMARY KEY,
    created_at       timestamptz NOT NULL DEFAULT now(),
    timeout_seconds  double precision NOT NULL,
    kind_version     integer NOT NULL DEFAULT 1,
    max_retries      integer NOT NULL,
    priority         smallint NOT NULL CHECK (priority BETWEEN 1 AND 3),
    tenant           text NOT NULL DEFAULT '',
    kind             text NOT NULL,
    trace_context    text,
    dispatch         integer NOT NULL DEFAULT 1,
    attempt          integer NOT NULL DEFAULT 1,
    losses           integer NOT NULL DEFAULT 0,
    postponements    integer NOT NULL DEFAULT 0,
    replay           integer NOT NULL DEFAULT 0,
    status           smallint NOT NULL DEFAULT 0 CHECK (status BETWEEN 0 AND 5),
    cancel_requested boolean NOT NULL DEFAULT false,
    worker_id        uuid,
    due_at           timestamptz,
    queued_at        timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    reason           text,
    errors           jsonb
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX tasks_running ON tasks (worker_id) WHERE worker_id IS NOT NULL;
CREATE INDEX tasks_queued ON tasks (priority, queued_at) WHERE status = 1;
-- COMPLETED is dense: a list of it walks the primary key. The others are rare among many and need a way in.
CREATE INDEX tasks_not_completed ON tasks (tenant, status, id) WHERE status <> 3;

-- What a client asked for; written once, so its indexes cost once. Tenant and kind are copies, for the lists.
CREATE TABLE payloads (
    task_id     uuid PRIMARY KEY,
    tenant      text NOT NULL DEFAULT '',
    kind        text NOT NULL,
    name        text NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    tags        text[] NOT NULL DEFAULT '{}',
    encoding    smallint NOT NULL DEFAULT 1,
    body        bytea NOT NULL
) WITH (autovacuum_vacuum_insert_scale_factor = 0.2);

CREATE INDEX payloads_kind ON payloads (tenant, kind, task_id);

-- The tags of a payload once more, since a list walks them newest first, which no index over the array can.
CREATE TABLE task_tags (
    tenant  text NOT NULL DEFAULT '',
    tag     text NOT NULL,
    task_id uuid NOT NULL,
    PRIMARY KEY (tenant, tag, task_id)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.2);

CREATE TABLE results (
    task_id    uuid PRIMARY KEY,
    encoding   smallint NOT NULL DEFAULT 1,
    body       bytea NOT NULL
);

-- Encoding 1 is JSON as UTF-8 text.
CREATE VIEW payloads_as_json AS
    SELECT task_id, name, description, tags, convert_from(body, 'UTF8')::json AS payload
    FROM payloads WHERE encoding = 1;
CREATE VIEW results_as_json AS
    SELECT task_id, convert_from(body, 'UTF8')::json AS result FROM results WHERE encoding = 1;

-- Hand-overs on their way to the broker; a row leaves when the broker has confirmed it.
CREATE TABLE outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id      uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    dispatch     integer NOT NULL,
    priority     smallint NOT NULL,
    status       smallint NOT NULL DEFAULT 0 CHECK (status IN (0, 1)),
    attempts     integer NOT NULL DEFAULT 0,
    route        text NOT NULL,
    error        text,
    available_at timestamptz NOT NULL DEFAULT now(),
    leased_until timestamptz
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

CREATE INDEX outbox_due ON outbox (priority, available_at, id) WHERE status = 0;
-- A paused queue holds back its tasks and not the notices of its dead ones.
CREATE INDEX outbox_notices ON outbox (priority, available_at, id) WHERE status = 0 AND route = 'tasks.dlq';
CREATE INDEX outbox_task ON outbox (task_id);
CREATE INDEX outbox_failed ON outbox (id) WHERE status = 1;

CREATE TABLE idempotency_keys (
    tenant      text NOT NULL,
    key         text NOT NULL,
    fingerprint text NOT NULL,
    task_ids    uuid[] NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- Evidence; task_id is null for a message that nobody could read.
CREATE TABLE dead_letters (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text NOT NULL DEFAULT '',
    task_id    uuid,
    dispatch   integer,
    kind       text,
    attempt    integer,
    losses     integer,
    replay     integer,
    reason     text NOT NULL,
    errors     jsonb,
    body       bytea,
    headers    text,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (task_id, dispatch)
);
CREATE INDEX dead_letters_listed ON dead_letters (tenant, id);
CREATE INDEX dead_letters_kind ON dead_letters (tenant, kind, id);

CREATE TABLE workers (
    id              uuid PRIMARY KEY,
    queues          text[] NOT NULL,
    slots           integer NOT NULL,
    running         integer NOT NULL,
    free            integer NOT NULL,
    unclaimed       integer NOT NULL,
    claimed_through timestamptz[] NOT NULL,
    started_at      timestamptz NOT NULL DEFAULT now(),
    last_seen       timestamptz NOT NULL DEFAULT now(),
    backend_pid     integer,
    dead_at         timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

CREATE TABLE queues (
    priority smallint PRIMARY KEY,
    name     text NOT NULL UNIQUE,
    paused   boolean NOT NULL DEFAULT false
);
INSERT INTO queues (priority, name) VALUES (1, 'tasks.high'), (2, 'tasks.medium'), (3, 'tasks.low');

CREATE TABLE audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    tenant   text NOT NULL DEFAULT '',
    action   text NOT NULL,
    task_id  uuid NOT NULL,
    dispatch integer NOT NULL,
    reason   text NOT NULL
);
CREATE INDEX audit_task ON audit (task_id, dispatch);
