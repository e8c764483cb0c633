-- Looking at events of all entities: first their keys and sizes, then the rows that are wanted and
-- fit into memory.

-- list_keys --
SELECT event_id, entity_type, event_type, octet_length(event_data) + COALESCE(octet_length(metadata), 0) FROM {events}
WHERE event_id > %s AND event_id < %s
ORDER BY event_id
LIMIT %s

-- list_keys_back --
SELECT event_id, entity_type, event_type FROM {events}
WHERE event_id > %s AND event_id < %s
ORDER BY event_id DESC
LIMIT %s

-- list_entity_keys --
SELECT event_id, entity_type, event_type, octet_length(event_data) + COALESCE(octet_length(metadata), 0) FROM {events}
WHERE entity_type = %s AND entity_id = %s
AND event_id > %s AND event_id < %s
ORDER BY event_id
LIMIT %s

-- list_entity_keys_back --
SELECT event_id, entity_type, event_type FROM {events}
WHERE entity_type = %s AND entity_id = %s
AND event_id > %s AND event_id < %s
ORDER BY event_id DESC
LIMIT %s

-- list_rows --
SELECT event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata FROM {events}
WHERE event_id = ANY(%s)
ORDER BY event_id

-- list_ids --
SELECT event_id FROM {events} WHERE event_id > %s ORDER BY event_id LIMIT %s

-- follow_read --
SELECT l.position, e.event_id, e.event_type, e.event_data, e.entity_type, e.entity_id, e.triggering_event, e.metadata
FROM {event_log} l
CROSS JOIN LATERAL (SELECT n.* FROM {events} n WHERE n.event_id = l.event_id OFFSET 0) e
WHERE l.position > %s AND l.position <= %s
ORDER BY l.position
