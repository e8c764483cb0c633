-- What the store asks of MySQL and MariaDB. Parameters are positional; {events} and the like are filled in
-- with the table names, schema and prefix included.
--
-- An entity's id is compared twice: by the column's collation, which uses the index, and by bytes. In
-- tables that Eventuate made the first takes 'ann' and 'ANN' for the same; ours need the first only.

-- begin --
START TRANSACTION

-- commit --
COMMIT

-- rollback --
ROLLBACK

-- joined_begin --
SAVEPOINT retold

-- joined_commit --
RELEASE SAVEPOINT retold

-- joined_rollback --
ROLLBACK TO SAVEPOINT retold

-- update_entity --
UPDATE {entities} SET entity_version = %s
WHERE entity_type = %s AND entity_id = %s
AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND entity_version = %s

-- insert_entity --
INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)

-- insert_event --
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
VALUES (%s, %s, %s, %s, %s, %s, %s, 0)

-- insert_handled --
INSERT INTO {handled}
(entity_type, entity_id, trigger_key, command, update_id, handled_at)
VALUES (%s, %s, %s, %s, %s, %s)

-- load --
SELECT event_id, event_type, event_data FROM {events}
WHERE entity_type = %s AND entity_id = %s
AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
ORDER BY event_id

-- load_until --
SELECT event_id, event_type, event_data FROM {events}
WHERE entity_type = %s AND entity_id = %s
AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND event_id <= %s
ORDER BY event_id

-- load_with_snapshot --
-- The latest snapshot of this type first (kind 0), then the events behind it (kind 1). Strictly
-- behind: the snapshot's version is an event it has absorbed. The collations are said because those
-- of Eventuate's columns differ.
SELECT CONVERT(s.entity_version USING utf8mb4) COLLATE utf8mb4_bin AS event_id,
CONVERT(s.snapshot_type USING utf8mb4) COLLATE utf8mb4_bin AS event_type,
CONVERT(s.snapshot_json USING utf8mb4) COLLATE utf8mb4_bin AS event_data, 0 AS kind
FROM {snapshots} s
WHERE s.entity_type = %s AND s.entity_id = %s
AND CAST(CONVERT(s.entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND s.entity_version = (
SELECT max(m.entity_version) FROM {snapshots} m
WHERE m.entity_type = %s AND m.entity_id = %s
AND CAST(CONVERT(m.entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND m.snapshot_type = %s AND m.entity_version <= %s)
UNION ALL
SELECT e.event_id, e.event_type, e.event_data, 1 AS kind
FROM {events} e
WHERE e.entity_type = %s AND e.entity_id = %s
AND CAST(CONVERT(e.entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND e.event_id <= %s AND e.event_id > COALESCE((
SELECT max(m.entity_version) FROM {snapshots} m
WHERE m.entity_type = %s AND m.entity_id = %s
AND CAST(CONVERT(m.entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND m.snapshot_type = %s AND m.entity_version <= %s), '')
ORDER BY kind, event_id

-- load_many --
SELECT event_id, event_type, event_data, entity_id FROM {events}
WHERE entity_type = %s AND entity_id IN %s
ORDER BY entity_id, event_id

-- history --
SELECT event_id, event_type, event_data, triggering_event, metadata FROM {events}
WHERE entity_type = %s AND entity_id = %s
AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND event_id > %s
ORDER BY event_id
LIMIT %s

-- stream_end --
-- Where a walk over so many events of any type ends.
SELECT max(event_id), count(*) FROM (
SELECT event_id FROM {events} WHERE event_id > %s ORDER BY event_id LIMIT %s) walked

-- stream --
-- Said by name, lest all events of the type are sorted for every page.
SELECT event_id, event_type, event_data, entity_id, triggering_event, metadata
FROM {events} FORCE INDEX (PRIMARY)
WHERE event_id > %s AND event_id <= %s AND entity_type = %s
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
-- Also in a transaction at REPEATABLE READ: a locking read is not bound to what it saw first.
SELECT entity_version, entity_id FROM {entities} WHERE entity_type = %s AND entity_id = %s
LOCK IN SHARE MODE

-- event_exists --
SELECT 1 FROM {events} WHERE entity_type = %s AND entity_id = %s AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY) AND event_id = %s

-- handled --
SELECT command, update_id FROM {handled}
WHERE entity_type = %s AND entity_id = %s AND trigger_key = %s

-- forget_handled --
DELETE FROM {handled} WHERE handled_at < %s LIMIT %s

-- insert_snapshot --
INSERT INTO {snapshots}
(entity_type, entity_id, entity_version, snapshot_type, snapshot_json, triggering_events)
VALUES (%s, %s, %s, %s, %s, %s)
ON DUPLICATE KEY UPDATE snapshot_type = snapshot_type

-- prune_snapshots --
DELETE FROM {snapshots}
WHERE entity_type = %s AND entity_id = %s
AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND snapshot_type = %s AND entity_version < (
SELECT min(kept.entity_version) FROM (
SELECT entity_version FROM {snapshots}
WHERE entity_type = %s AND entity_id = %s
AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY)
AND snapshot_type = %s
ORDER BY entity_version DESC LIMIT 2) kept)

-- view_begin --
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY

-- view_sizes --
SELECT event_id, length(event_data) + COALESCE(length(metadata), 0) FROM {events}
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
SELECT event_id FROM {events} WHERE event_id IN %s

-- next_entity_type --
SELECT min(entity_type) FROM {events} WHERE entity_type > %s

-- made_at --
SELECT applied_at FROM {retold_migrations} WHERE number = 1

-- unpublished_sizes --
SELECT event_id, length(event_data) + COALESCE(length(metadata), 0) FROM {events}
WHERE published = 0
ORDER BY event_id
LIMIT %s

-- unpublished --
SELECT event_id, event_type, event_data, entity_type, entity_id, metadata FROM {events}
WHERE published = 0
ORDER BY event_id
LIMIT %s

-- mark_published --
UPDATE {events} SET published = 1 WHERE event_id IN %s

-- polling_index --
CREATE INDEX {events_published_idx} ON {events} (published, event_id)

-- polling_index_exists --
SELECT 1 FROM information_schema.statistics WHERE table_schema = {schema} AND index_name = {index_name} LIMIT 1

-- migrations_begin --
SELECT GET_LOCK('retold_migrations', 60)

-- migrations_end --
SELECT RELEASE_LOCK('retold_migrations')

-- migrations_abort --
SELECT RELEASE_LOCK('retold_migrations')

-- collation --
SELECT COALESCE((SELECT collation_name FROM information_schema.collations
WHERE collation_name IN ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin') LIMIT 1), 'utf8mb4_bin')

-- columns --
SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = {schema}

-- migrations_table --
CREATE TABLE IF NOT EXISTS {retold_migrations} (
number INTEGER PRIMARY KEY, name VARCHAR(100) NOT NULL, applied_at BIGINT NOT NULL) ENGINE = InnoDB

-- migrations_applied --
SELECT number FROM {retold_migrations}

-- migrations_record --
INSERT INTO {retold_migrations} (number, name, applied_at) VALUES (%s, %s, %s)
