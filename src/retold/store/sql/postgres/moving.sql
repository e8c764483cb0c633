-- Moving a store to another database. What was imported for a subscription has the owner 'imported'
-- until a member claims it.

-- import_count --
SELECT count(*) FROM {events}

-- import_event_many --
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
SELECT t.id, t.type, t.data, t.entity_type, t.entity_id, t.trigger, t.metadata, 0
FROM unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]))
WITH ORDINALITY AS t(id, type, data, entity_type, entity_id, trigger, metadata, n) ORDER BY t.n

-- import_entity_many --
INSERT INTO {entities} (entity_type, entity_id, entity_version)
SELECT * FROM unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]))
ON CONFLICT (entity_type, entity_id) DO UPDATE SET entity_version = excluded.entity_version
WHERE {entities}.entity_version < excluded.entity_version

-- import_handled_many --
INSERT INTO {handled} (entity_type, entity_id, trigger_key, command, update_id, handled_at)
SELECT * FROM unnest(CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS bigint[]))
ON CONFLICT DO NOTHING

-- import_handled_page --
SELECT entity_type, entity_id, trigger_key, command, update_id, handled_at FROM {handled}
WHERE (entity_type, entity_id, trigger_key) > (%s, %s, %s)
ORDER BY entity_type, entity_id, trigger_key
LIMIT %s

-- import_parked --
INSERT INTO {parked}
(subscription, entity_type, entity_id, event_id, partition, event_type, event_data, metadata, error, traceback, attempts, parked_at, mark)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING

-- import_at_work --
-- How many partitions of a subscription were claimed by a member.
SELECT count(*) FROM {subscriptions} WHERE name = %s AND (owner IS NULL OR owner <> 'imported')

-- import_position --
INSERT INTO {subscriptions} (name, partition, position, owner) VALUES (%s, %s, %s, 'imported')
ON CONFLICT DO NOTHING

-- import_position_on --
UPDATE {subscriptions} SET position = %s WHERE name = %s AND partition = %s AND owner = 'imported'

-- import_positions --
-- Of each subscription, the first event it has not handled.
SELECT s.name, min(l.event_id) FROM {subscriptions} s
LEFT JOIN {event_log} l ON l.partition = s.partition AND l.position > s.position
GROUP BY s.name ORDER BY s.name

-- import_unnumbered --
SELECT min(event_id) FROM {unnumbered_events}
