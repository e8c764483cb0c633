-- Parked events. The rows of one entity are its queue, in the order of their event ids.

-- parked_owned --
-- To the end of the transaction nobody else can take the partition.
SELECT position FROM {subscriptions} WHERE name = %s AND partition = %s AND owner = %s FOR UPDATE

-- parked_count --
SELECT count(*) FROM {parked} WHERE subscription = %s AND entity_type = %s AND entity_id = %s

-- park --
INSERT INTO {parked}
(subscription, entity_type, entity_id, event_id, partition, event_type, event_data, metadata, error, traceback, attempts, parked_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING

-- parked_heads --
SELECT p.entity_type, p.entity_id, min(p.event_id) FROM {parked} p
WHERE p.subscription = %s AND p.partition = %s
GROUP BY p.entity_type, p.entity_id

-- parked_marked --
SELECT DISTINCT partition, entity_type, entity_id FROM {parked} WHERE subscription = %s AND mark IS NOT NULL

-- parked_head --
SELECT event_id, event_type, event_data, metadata, attempts, mark FROM {parked}
WHERE subscription = %s AND entity_type = %s AND entity_id = %s
ORDER BY event_id LIMIT 1

-- parked_queue --
SELECT event_id, event_data FROM {parked}
WHERE subscription = %s AND entity_type = %s AND entity_id = %s
ORDER BY event_id

-- parked_failed --
UPDATE {parked} SET error = %s, traceback = %s, attempts = %s, mark = NULL
WHERE subscription = %s AND entity_type = %s AND entity_id = %s AND event_id = %s

-- unpark --
DELETE FROM {parked}
WHERE subscription = %s AND entity_type = %s AND entity_id = %s AND event_id = %s

-- parked_next --
UPDATE {parked} SET mark = 'retry'
WHERE subscription = %s AND entity_type = %s AND entity_id = %s AND event_id = %s AND mark IS NULL

-- parked_list --
SELECT subscription, entity_type, entity_id, event_id, partition, event_type, event_data, metadata, error, traceback, attempts, parked_at, mark FROM {parked}
WHERE (subscription = %s OR CAST(%s AS text) IS NULL) AND (subscription, entity_type, entity_id, event_id) > (%s, %s, %s, %s)
ORDER BY subscription, entity_type, entity_id, event_id LIMIT %s

-- parked_mark_failed --
-- Heads only: what waits behind one is tried when it is done with.
UPDATE {parked} SET mark = 'retry'
WHERE subscription = %s AND error IS NOT NULL AND mark IS NULL

-- parked_mark --
UPDATE {parked} SET mark = %s WHERE subscription = %s AND event_id = %s

-- parked_exists --
SELECT 1 FROM {parked} WHERE subscription = %s AND event_id = %s
