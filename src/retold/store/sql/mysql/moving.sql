-- Moving a store to another database. What was imported for a subscription has the owner 'imported'
-- until a member claims it.

-- import_count --
SELECT count(*) FROM {events}

-- import_event --
-- A statement of its own for each, because Eventuate's log reader publishes only the first row of one.
INSERT INTO {events}
(event_id, event_type, event_data, entity_type, entity_id, triggering_event, metadata, published)
VALUES (%s, %s, %s, %s, %s, %s, %s, 0)

-- import_entity --
INSERT INTO {entities} (entity_type, entity_id, entity_version) VALUES (%s, %s, %s)
ON DUPLICATE KEY UPDATE entity_version = GREATEST(entity_version, VALUES(entity_version))

-- import_handled_page --
SELECT entity_type, entity_id, trigger_key, command, update_id, handled_at FROM {handled}
WHERE entity_type > %s OR (entity_type = %s AND entity_id > %s)
OR (entity_type = %s AND entity_id = %s AND trigger_key > %s)
ORDER BY entity_type, entity_id, trigger_key
LIMIT %s

-- import_handled --
INSERT INTO {handled} (entity_type, entity_id, trigger_key, command, update_id, handled_at)
VALUES (%s, %s, %s, %s, %s, %s)
ON DUPLICATE KEY UPDATE update_id = update_id

-- import_parked --
INSERT INTO {parked}
(subscription, entity_type, entity_id, event_id, `partition`, event_type, event_data, metadata, error, traceback, attempts, parked_at, mark)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON DUPLICATE KEY UPDATE mark = mark

-- import_at_work --
-- How many partitions of a subscription were claimed by a member.
SELECT count(*) FROM {subscriptions} WHERE name = %s AND (owner IS NULL OR owner <> 'imported')

-- import_position --
INSERT INTO {subscriptions} (name, `partition`, position, owner) VALUES (%s, %s, %s, 'imported')
ON DUPLICATE KEY UPDATE name = name

-- import_position_on --
UPDATE {subscriptions} SET position = %s WHERE name = %s AND `partition` = %s AND owner = 'imported'

-- import_positions --
-- Of each subscription, the first event it has not handled.
SELECT s.name, min(l.event_id) FROM {subscriptions} s
LEFT JOIN {event_log} l ON l.`partition` = s.`partition` AND l.position > s.position
GROUP BY s.name ORDER BY s.name

-- import_unnumbered --
SELECT min(event_id) FROM {unnumbered_events}

-- server_version --
SELECT VERSION()
