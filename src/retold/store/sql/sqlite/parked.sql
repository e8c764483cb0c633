-- Parked events. The rows of one entity are its queue, in the order of their event ids.

-- parked_owned --
-- To the end of the transaction nobody else can take the partition.
SELECT position FROM {subscriptions} WHERE name = ? AND partition = ? AND owner = ?

-- parked_count --
SELECT count(*) FROM {parked} WHERE subscription = ? AND entity_type = ? AND entity_id = ?

-- park --
INSERT INTO {parked}
(subscription, entity_type, entity_id, event_id, partition, event_type, event_data, metadata, error, traceback, attempts, parked_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- parked_heads --
SELECT p.entity_type, p.entity_id, min(p.event_id) FROM {parked} p
WHERE p.subscription = ? AND p.partition = ?
GROUP BY p.entity_type, p.entity_id

-- parked_marked --
SELECT DISTINCT partition, entity_type, entity_id FROM {parked} WHERE subscription = ? AND mark IS NOT NULL

-- parked_head --
SELECT event_id, event_type, event_data, metadata, attempts, mark FROM {parked}
WHERE subscription = ? AND entity_type = ? AND entity_id = ?
ORDER BY event_id LIMIT 1

-- parked_queue --
SELECT event_id, event_data FROM {parked}
WHERE subscription = ? AND entity_type = ? AND entity_id = ?
ORDER BY event_id

-- parked_failed --
UPDATE {parked} SET error = ?, traceback = ?, attempts = ?, mark = NULL
WHERE subscription = ? AND entity_type = ? AND entity_id = ? AND event_id = ?

-- unpark --
DELETE FROM {parked}
WHERE subscription = ? AND entity_type = ? AND entity_id = ? AND event_id = ?

-- parked_next --
UPDATE {parked} SET mark = 'retry'
WHERE subscription = ? AND entity_type = ? AND entity_id = ? AND event_id = ? AND mark IS NULL

-- parked_list --
SELECT subscription, entity_type, entity_id, event_id, partition, event_type, event_data, metadata, error, traceback, attempts, parked_at, mark FROM {parked}
WHERE (subscription = ? OR ? IS NULL) AND (subscription, entity_type, entity_id, event_id) > (?, ?, ?, ?)
ORDER BY subscription, entity_type, entity_id, event_id LIMIT ?

-- parked_mark_failed --
-- Heads only: what waits behind one is tried when it is done with.
UPDATE {parked} SET mark = 'retry'
WHERE subscription = ? AND error IS NOT NULL AND mark IS NULL

-- parked_mark --
UPDATE {parked} SET mark = ? WHERE subscription = ? AND event_id = ?

-- parked_exists --
SELECT 1 FROM {parked} WHERE subscription = ? AND event_id = ?
