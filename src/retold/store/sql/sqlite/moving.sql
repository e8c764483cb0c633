-- Moving a store to another database. What was imported for a subscription has the owner 'imported'
-- until a member claims it.

-- import_count --
SELECT count(*) FROM {events}

-- import_event --
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
VALUES (?, ?, ?, ?, ?, ?, ?, 0)

-- import_entity --
INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (?, ?, ?)
ON CONFLICT (entity_type, entity_id) DO UPDATE SET entity_version = excluded.entity_version
WHERE {entities}.entity_version < excluded.entity_version

-- import_handled_page --
SELECT entity_type, entity_id, trigger_key, command, update_id, handled_at FROM {handled}
WHERE (entity_type, entity_id, trigger_key) > (?, ?, ?)
ORDER BY entity_type, entity_id, trigger_key
LIMIT ?

-- import_handled --
INSERT INTO {handled} (entity_type, entity_id, trigger_key, command, update_id, handled_at)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- import_parked --
INSERT INTO {parked}
(subscription, entity_type, entity_id, event_id, partition, event_type, event_data, metadata, error, traceback, attempts, parked_at, mark)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- import_at_work --
-- How many partitions of a subscription were claimed by a member.
SELECT count(*) FROM {subscriptions} WHERE name = ? AND (owner IS NULL OR owner <> 'imported')

-- import_position --
INSERT INTO {subscriptions} (name, partition, position, owner) VALUES (?, ?, ?, 'imported')
ON CONFLICT DO NOTHING

-- import_position_on --
UPDATE {subscriptions} SET position = ? WHERE name = ? AND partition = ? AND owner = 'imported'

-- import_positions --
-- Of each subscription, the first event it has not handled. A relay's lease is a row there, too.
SELECT s.name, (SELECT min(e.event_id) FROM {events} e WHERE e.position > s.position) FROM {subscriptions} s
WHERE s.name NOT LIKE 'relay:%'
ORDER BY s.name
