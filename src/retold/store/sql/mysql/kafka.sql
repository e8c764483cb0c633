-- Who works which Kafka partition.

-- claims --
SELECT topic, topic_partition, number, word FROM {claims} WHERE subscription = %s

-- claim_begin --
INSERT IGNORE INTO {claims} (subscription, topic, topic_partition, number, word, position)
SELECT %s, %s, %s, COALESCE(max(c.number) + 1, 0), '', -1 FROM {claims} c WHERE c.subscription = %s

-- claim --
UPDATE {claims} SET word = %s, position = %s WHERE subscription = %s AND number = %s AND word = %s

-- claimed --
-- To the end of the transaction nobody else can claim the partition.
SELECT position FROM {claims} WHERE subscription = %s AND number = %s AND word = %s FOR UPDATE

-- moving --
SELECT s.owner, COALESCE((SELECT m.lease_until FROM {subscribers} m WHERE m.name = s.name AND m.member = s.owner), 0), CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)
FROM {subscriptions} s WHERE s.name = %s FOR UPDATE

-- move_newest --
SELECT max(event_id) FROM {events}

-- move --
UPDATE {subscriptions} SET owner = %s WHERE name = %s

-- move_parked --
UPDATE {parked} SET `partition` = -1 WHERE subscription = %s

-- move_count --
SELECT count(*) FROM {parked} WHERE subscription = %s

-- move_unplaced --
SELECT DISTINCT entity_type, entity_id FROM {parked} WHERE subscription = %s AND `partition` = -1

-- move_place --
UPDATE {parked} SET `partition` = %s
WHERE subscription = %s AND entity_type = %s AND entity_id = %s AND `partition` = -1

-- moved --
SELECT owner FROM {subscriptions} WHERE name = %s

-- moved_handled --
SELECT l.event_id FROM {event_log} l JOIN {subscriptions} s ON s.name = %s AND s.`partition` = l.`partition`
WHERE l.event_id IN %s AND l.position <= s.position

-- log_ids_index --
CREATE INDEX {event_log_ids_idx} ON {event_log} (event_id)

-- log_ids_index_exists --
SELECT 1 FROM information_schema.statistics WHERE table_schema = {schema} AND index_name = {log_ids_index_name} LIMIT 1
