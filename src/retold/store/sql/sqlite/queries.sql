-- What the store asks of SQLite. Parameters are positional; {events} and the like are filled in
-- with the table names, schema and prefix included.

-- begin --
BEGIN IMMEDIATE

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
UPDATE {entities} SET entity_version = ?
WHERE entity_type = ? AND entity_id = ? AND entity_version = ?

-- insert_entity --
INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (?, ?, ?)

-- insert_event --
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
VALUES (?, ?, ?, ?, ?, ?, ?, 0)

-- insert_handled --
INSERT INTO {handled}
(entity_type, entity_id, trigger_key, command, update_id, handled_at)
VALUES (?, ?, ?, ?, ?, ?)

-- load --
SELECT event_id, event_type, event_data FROM {events}
WHERE entity_type = ? AND entity_id = ?
ORDER BY event_id

-- load_until --
SELECT event_id, event_type, event_data FROM {events}
WHERE entity_type = ? AND entity_id = ? AND event_id <= ?
ORDER BY event_id

-- load_with_snapshot --
-- The latest snapshot of this type first (kind 0), then the events behind it (kind 1). Strictly
-- behind: the snapshot's version is an event it has absorbed.
SELECT s.entity_version AS event_id, s.snapshot_type AS event_type, s.snapshot_json AS event_data, 0 AS kind
FROM {snapshots} s
WHERE s.entity_type = ? AND s.entity_id = ? AND s.entity_version = (
SELECT max(m.entity_version) FROM {snapshots} m
WHERE m.entity_type = ? AND m.entity_id = ? AND m.snapshot_type = ? AND m.entity_version <= ?)
UNION ALL
SELECT e.event_id, e.event_type, e.event_data, 1 AS kind
FROM {events} e
WHERE e.entity_type = ? AND e.entity_id = ? AND e.event_id <= ? AND e.event_id > COALESCE((
SELECT max(m.entity_version) FROM {snapshots} m
WHERE m.entity_type = ? AND m.entity_id = ? AND m.snapshot_type = ? AND m.entity_version <= ?), '')
ORDER BY kind, event_id

-- load_many --
SELECT event_id, event_type, event_data, entity_id FROM {events}
WHERE entity_type = ? AND entity_id IN (SELECT value FROM json_each(?))
ORDER BY entity_id, event_id

-- history --
SELECT event_id, event_type, event_data, triggering_event, metadata FROM {events}
WHERE entity_type = ? AND entity_id = ? AND event_id > ?
ORDER BY event_id
LIMIT ?

-- stream_end --
-- Where a walk over so many events of any type ends.
SELECT max(event_id), count(*) FROM (
SELECT event_id FROM {events} WHERE event_id > ? ORDER BY event_id LIMIT ?) walked

-- stream --
-- The plus keeps SQLite from sorting all events of the type for every page: it walks the ids instead.
SELECT event_id, event_type, event_data, entity_id, triggering_event, metadata FROM {events}
WHERE event_id > ? AND event_id <= ? AND +entity_type = ?
ORDER BY event_id
LIMIT ?

-- entities --
SELECT entity_id FROM {entities}
WHERE entity_type = ? AND entity_id > ?
ORDER BY entity_id
LIMIT ?

-- entity_version --
SELECT entity_version, entity_id FROM {entities} WHERE entity_type = ? AND entity_id = ?

-- newest_entity_version --
SELECT entity_version, entity_id FROM {entities} WHERE entity_type = ? AND entity_id = ?

-- event_exists --
SELECT 1 FROM {events} WHERE entity_type = ? AND entity_id = ? AND event_id = ?

-- handled --
SELECT command, update_id FROM {handled}
WHERE entity_type = ? AND entity_id = ? AND trigger_key = ?

-- forget_handled --
DELETE FROM {handled} WHERE (entity_type, entity_id, trigger_key) IN (
SELECT entity_type, entity_id, trigger_key FROM {handled} WHERE handled_at < ? LIMIT ?)

-- insert_snapshot --
INSERT INTO {snapshots}
(entity_type, entity_id, entity_version, snapshot_type, snapshot_json, triggering_events)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- prune_snapshots --
DELETE FROM {snapshots}
WHERE entity_type = ? AND entity_id = ? AND snapshot_type = ? AND entity_version < (
SELECT min(kept.entity_version) FROM (
SELECT entity_version FROM {snapshots}
WHERE entity_type = ? AND entity_id = ? AND snapshot_type = ?
ORDER BY entity_version DESC LIMIT 2) kept)

-- view_begin --
BEGIN

-- view_sizes --
SELECT event_id, length(event_data) + COALESCE(length(metadata), 0) FROM {events}
WHERE event_id > ?
ORDER BY event_id
LIMIT ?

-- view_page --
SELECT event_id, event_type, event_data, entity_type, entity_id, metadata FROM {events}
WHERE event_id > ?
ORDER BY event_id
LIMIT ?

-- view_first --
SELECT min(event_id) FROM {events}

-- view_last --
SELECT max(event_id) FROM {events}

-- existing --
SELECT event_id FROM {events} WHERE event_id IN (SELECT value FROM json_each(?))

-- next_entity_type --
SELECT min(entity_type) FROM {events} WHERE entity_type > ?

-- made_at --
SELECT applied_at FROM {retold_migrations} WHERE number = 1

-- unpublished_sizes --
SELECT event_id, length(event_data) + COALESCE(length(metadata), 0) FROM {events}
WHERE published = 0
ORDER BY event_id
LIMIT ?

-- unpublished --
SELECT event_id, event_type, event_data, entity_type, entity_id, metadata FROM {events}
WHERE published = 0
ORDER BY event_id
LIMIT ?

-- mark_published --
UPDATE {events} SET published = 1 WHERE event_id IN (SELECT value FROM json_each(?))

-- polling_index --
CREATE INDEX IF NOT EXISTS {events_published_idx} ON {events} (event_id) WHERE published = 0

-- polling_index_exists --
SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = {index_name}

-- migrations_begin --
BEGIN IMMEDIATE

-- migrations_end --
COMMIT

-- migrations_abort --
ROLLBACK

-- collation --
SELECT 'BINARY'

-- columns --
SELECT m.name, p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'

-- migrations_table --
CREATE TABLE IF NOT EXISTS {retold_migrations} (
number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL)

-- migrations_applied --
SELECT number FROM {retold_migrations}

-- migrations_record --
INSERT INTO {retold_migrations} (number, name, applied_at) VALUES (?, ?, ?)

-- log_end --
SELECT COALESCE(max(position), 0) FROM {events}

-- log_read --
-- The unary plus keeps the planner on `position`, the order wanted.
SELECT position, event_id, event_type, event_data, entity_type, entity_id, metadata FROM {events}
WHERE position > ? AND position <= ?
AND +entity_type IN (SELECT value FROM json_each(?))
AND +event_type IN (SELECT value FROM json_each(?))
ORDER BY position
LIMIT ?

-- log_position_at --
SELECT COALESCE(min(position) - 1, (SELECT COALESCE(max(position), 0) FROM {events}))
FROM {events} WHERE event_id >= ?

-- subscription_begin --
INSERT INTO {subscriptions} (name, partition, position, owner, lease_until)
VALUES (?, ?, ?, NULL, 0)
ON CONFLICT DO NOTHING

-- subscription --
SELECT position, owner, lease_until FROM {subscriptions} WHERE name = ? AND partition = ?

-- subscription_claim --
UPDATE {subscriptions} SET owner = ?, lease_until = ?
WHERE name = ? AND partition = ? AND owner IS ? AND lease_until = ? AND position = ?

-- subscription_renew --
UPDATE {subscriptions} SET lease_until = ? WHERE name = ? AND partition = ? AND owner = ?

-- subscription_save --
UPDATE {subscriptions} SET position = ?, lease_until = ?
WHERE name = ? AND partition = ? AND owner = ?

-- subscription_release --
UPDATE {subscriptions} SET owner = NULL, lease_until = 0
WHERE name = ? AND partition = ? AND owner = ?
