-- Who works which Kafka partition.

-- claims --
SELECT topic, topic_partition, number, word FROM {claims} WHERE subscription = ?

-- claim_begin --
INSERT INTO {claims} (subscription, topic, topic_partition, number, word, position)
SELECT ?, ?, ?, COALESCE(max(c.number) + 1, 0), '', -1 FROM {claims} c WHERE c.subscription = ?
ON CONFLICT DO NOTHING

-- claim --
UPDATE {claims} SET word = ?, position = ? WHERE subscription = ? AND number = ? AND word = ?

-- claimed --
-- To the end of the transaction nobody else can claim the partition.
SELECT position FROM {claims} WHERE subscription = ? AND number = ? AND word = ?

-- moving --
SELECT owner, lease_until, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) FROM {subscriptions} WHERE name = ?

-- move_newest --
SELECT max(event_id) FROM {events}

-- move --
UPDATE {subscriptions} SET owner = ? WHERE name = ?

-- move_parked --
UPDATE {parked} SET partition = -1 WHERE subscription = ?

-- move_count --
SELECT count(*) FROM {parked} WHERE subscription = ?

-- move_unplaced --
SELECT DISTINCT entity_type, entity_id FROM {parked} WHERE subscription = ? AND partition = -1

-- move_place --
UPDATE {parked} SET partition = ?
WHERE subscription = ? AND entity_type = ? AND entity_id = ? AND partition = -1

-- moved --
SELECT owner FROM {subscriptions} WHERE name = ?

-- moved_handled --
SELECT e.event_id FROM {events} e JOIN {subscriptions} s ON s.name = ?
WHERE e.event_id IN (SELECT value FROM json_each(?)) AND e.position <= s.position
