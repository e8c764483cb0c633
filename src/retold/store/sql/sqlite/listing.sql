-- Looking at events of all entities: first their keys and sizes, then the rows that are wanted and
-- fit into memory.

-- list_keys --
SELECT event_id, entity_type, event_type, length(event_data) + COALESCE(length(metadata), 0) FROM {events}
WHERE event_id > ? AND event_id < ?
ORDER BY event_id
LIMIT ?

-- list_keys_back --
SELECT event_id, entity_type, event_type FROM {events}
WHERE event_id > ? AND event_id < ?
ORDER BY event_id DESC
LIMIT ?

-- list_entity_keys --
SELECT event_id, entity_type, event_type, length(event_data) + COALESCE(length(metadata), 0) FROM {events}
WHERE entity_type = ? AND entity_id = ?
AND event_id > ? AND event_id < ?
ORDER BY event_id
LIMIT ?

-- list_entity_keys_back --
SELECT event_id, entity_type, event_type FROM {events}
WHERE entity_type = ? AND entity_id = ?
AND event_id > ? AND event_id < ?
ORDER BY event_id DESC
LIMIT ?

-- list_rows --
SELECT event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata FROM {events}
WHERE event_id IN (SELECT value FROM json_each(?))
ORDER BY event_id

-- list_ids --
SELECT event_id FROM {events} WHERE event_id > ? ORDER BY event_id LIMIT ?

-- follow_read --
SELECT position, event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata FROM {events}
WHERE position > ? AND position <= ?
ORDER BY position
