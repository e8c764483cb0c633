-- What the store asks of PostgreSQL. Parameters are positional; {events} and the like are filled in
-- with the table names, schema and prefix included.

-- append --
-- A marker or an event is written only where the compare-and-set before it succeeded.
WITH u AS (
UPDATE {entities} SET entity_version = %s
WHERE entity_type = %s AND entity_id = %s AND entity_version = %s RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT %s, %s, %s, %s, %s, %s, %s, 0 FROM u

-- append_many --
WITH u AS (
UPDATE {entities} SET entity_version = %s
WHERE entity_type = %s AND entity_id = %s AND entity_version = %s RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT t.id, t.name, t.data, %s, %s, %s, %s, 0 FROM u, unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]))
WITH ORDINALITY AS t(id, name, data, n) ORDER BY t.n

-- append_once --
-- The row is locked at the expected version before the marker is tried, so that neither a conflict
-- nor a duplicate leaves anything behind.
WITH l AS (
SELECT 1 FROM {entities}
WHERE entity_type = %s AND entity_id = %s AND entity_version = %s FOR UPDATE),
h AS (INSERT INTO {handled}
(entity_type, entity_id, trigger_key, command, update_id, handled_at)
SELECT %s, %s, %s, %s, %s, CAST(%s AS bigint) FROM l ON CONFLICT DO NOTHING RETURNING 1),
u AS (
UPDATE {entities} SET entity_version = %s FROM h
WHERE entity_type = %s AND entity_id = %s RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT %s, %s, %s, %s, %s, %s, %s, 0 FROM u

-- append_once_many --
WITH l AS (
SELECT 1 FROM {entities}
WHERE entity_type = %s AND entity_id = %s AND entity_version = %s FOR UPDATE),
h AS (INSERT INTO {handled}
(entity_type, entity_id, trigger_key, command, update_id, handled_at)
SELECT %s, %s, %s, %s, %s, CAST(%s AS bigint) FROM l ON CONFLICT DO NOTHING RETURNING 1),
u AS (
UPDATE {entities} SET entity_version = %s FROM h
WHERE entity_type = %s AND entity_id = %s RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT t.id, t.name, t.data, %s, %s, %s, %s, 0 FROM u, unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]))
WITH ORDINALITY AS t(id, name, data, n) ORDER BY t.n

-- create --
WITH e AS (INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)
ON CONFLICT DO NOTHING RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT %s, %s, %s, %s, %s, %s, %s, 0 FROM e

-- create_many --
WITH e AS (INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)
ON CONFLICT DO NOTHING RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT t.id, t.name, t.data, %s, %s, %s, %s, 0 FROM e, unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]))
WITH ORDINALITY AS t(id, name, data, n) ORDER BY t.n

-- create_once --
WITH e AS (INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)
ON CONFLICT DO NOTHING RETURNING 1),
h AS (INSERT INTO {handled}
(entity_type, entity_id, trigger_key, command, update_id, handled_at)
SELECT %s, %s, %s, %s, %s, CAST(%s AS bigint) FROM e ON CONFLICT DO NOTHING RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT %s, %s, %s, %s, %s, %s, %s, 0 FROM e

-- create_once_many --
WITH e AS (INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)
ON CONFLICT DO NOTHING RETURNING 1),
h AS (INSERT INTO {handled}
(entity_type, entity_id, trigger_key, command, update_id, handled_at)
SELECT %s, %s, %s, %s, %s, CAST(%s AS bigint) FROM e ON CONFLICT DO NOTHING RETURNING 1)
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT t.id, t.name, t.data, %s, %s, %s, %s, 0 FROM e, unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]))
WITH ORDINALITY AS t(id, name, data, n) ORDER BY t.n

-- insert_handled --
INSERT INTO {handled}
(entity_type, entity_id, trigger_key, command, update_id, handled_at)
SELECT %s, %s, %s, %s, %s, CAST(%s AS bigint) ON CONFLICT DO NOTHING

-- load --
SELECT event_id, event_type, event_data FROM {events}
WHERE entity_type = %s AND entity_id = %s
ORDER BY event_id

-- load_until --
SELECT event_id, event_type, event_data FROM {events}
WHERE entity_type = %s AND entity_id = %s AND event_id <= %s
ORDER BY event_id

-- load_with_snapshot --
-- The latest snapshot of this type first (kind 0), then the events behind it (kind 1). Strictly
-- behind: the snapshot's version is an event it has absorbed.
SELECT s.entity_version AS event_id, s.snapshot_type AS event_type, s.snapshot_json AS event_data, 0 AS kind
FROM {snapshots} s
WHERE s.entity_type = %s AND s.entity_id = %s AND s.entity_version = (
SELECT max(m.entity_version) FROM {snapshots} m
WHERE m.entity_type = %s AND m.entity_id = %s AND m.snapshot_type = %s AND m.entity_version <= %s)
UNION ALL
SELECT e.event_id, e.event_type, e.event_data, 1 AS kind
FROM {events} e
WHERE e.entity_type = %s AND e.entity_id = %s AND e.event_id <= %s AND e.event_id > COALESCE((
SELECT max(m.entity_version) FROM {snapshots} m
WHERE m.entity_type = %s AND m.entity_id = %s AND m.snapshot_type = %s AND m.entity_version <= %s), '')
ORDER BY kind, event_id

-- load_many --
SELECT event_id, event_type, event_data, entity_id FROM {events}
WHERE entity_type = %s AND entity_id = ANY(%s)
ORDER BY entity_id, event_id

-- history --
SELECT event_id, event_type, event_data, triggering_event, metadata FROM {events}
WHERE entity_type = %s AND entity_id = %s AND event_id > %s
ORDER BY event_id
LIMIT %s

-- stream_end --
-- Where a walk over so many events of any type ends.
SELECT max(event_id), count(*) FROM (
SELECT event_id FROM {events} WHERE event_id > %s ORDER BY event_id LIMIT %s) walked

-- stream --
-- The concatenation keeps PostgreSQL from sorting all events of the type for every page, which it
-- would do while it has no statistics: it walks the ids instead.
SELECT event_id, event_type, event_data, entity_id, triggering_event, metadata FROM {events}
WHERE event_id > %s AND event_id <= %s AND entity_type || '' = %s
ORDER BY event_id
LIMIT %s

-- entities --
SELECT entity_id FROM {entities}
WHERE entity_type = %s AND entity_id > %s
ORDER BY entity_id
LIMIT %s

-- entity_version --
SELECT entity_version, entity_id FROM {entities} WHERE entity_type = %s AND entity_id = %s

-- newest_entity_version --
SELECT entity_version, entity_id FROM {entities} WHERE entity_type = %s AND entity_id = %s

-- event_exists --
SELECT 1 FROM {events} WHERE entity_type = %s AND entity_id = %s AND event_id = %s

-- handled --
SELECT command, update_id FROM {handled}
WHERE entity_type = %s AND entity_id = %s AND trigger_key = %s

-- forget_handled --
DELETE FROM {handled} WHERE ctid = ANY(ARRAY(
SELECT ctid FROM {handled} WHERE handled_at < %s LIMIT %s))

-- insert_snapshot --
INSERT INTO {snapshots}
(entity_type, entity_id, entity_version, snapshot_type, snapshot_json, triggering_events)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING

-- prune_snapshots --
DELETE FROM {snapshots}
WHERE entity_type = %s AND entity_id = %s AND snapshot_type = %s AND entity_version < (
SELECT min(kept.entity_version) FROM (
SELECT entity_version FROM {snapshots}
WHERE entity_type = %s AND entity_id = %s AND snapshot_type = %s
ORDER BY entity_version DESC LIMIT 2) kept)

-- view_begin --
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY

-- view_sizes --
SELECT event_id, octet_length(event_data) + COALESCE(octet_length(metadata), 0) FROM {events}
WHERE event_id > %s
ORDER BY event_id
LIMIT %s

-- view_page --
SELECT event_id, event_type, event_data, entity_type, entity_id, metadata FROM {events}
WHERE event_id > %s
ORDER BY event_id
LIMIT %s

-- view_first --
SELECT min(event_id) FROM {events}

-- view_last --
SELECT max(event_id) FROM {events}

-- existing --
SELECT event_id FROM {events} WHERE event_id = ANY(%s)

-- next_entity_type --
SELECT min(entity_type) FROM {events} WHERE entity_type > %s

-- made_at --
SELECT applied_at FROM {retold_migrations} WHERE number = 1

-- unpublished_sizes --
SELECT event_id, octet_length(event_data) + COALESCE(octet_length(metadata), 0) FROM {events}
WHERE published = 0
ORDER BY event_id
LIMIT %s

-- unpublished --
SELECT event_id, event_type, event_data, entity_type, entity_id, metadata FROM {events}
WHERE published = 0
ORDER BY event_id
LIMIT %s

-- mark_published --
UPDATE {events} SET published = 1 WHERE event_id = ANY(%s)

-- polling_index --
CREATE INDEX CONCURRENTLY IF NOT EXISTS {events_published_idx} ON {events} (event_id) WHERE published = 0

-- polling_index_exists --
SELECT 1 FROM pg_indexes WHERE schemaname = {schema} AND indexname = {index_name}

-- migrations_begin --
BEGIN; SELECT pg_advisory_xact_lock(7238471096512)

-- migrations_end --
COMMIT

-- migrations_abort --
ROLLBACK

-- collation --
SELECT 'C'

-- columns --
SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = {schema}

-- migrations_table --
CREATE TABLE IF NOT EXISTS {retold_migrations} (
number integer PRIMARY KEY, name text NOT NULL, applied_at bigint NOT NULL)

-- migrations_applied --
SELECT number FROM {retold_migrations}

-- migrations_record --
INSERT INTO {retold_migrations} (number, name, applied_at) VALUES (%s, %s, %s)
