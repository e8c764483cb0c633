-- What subscriptions handle, pauses, and what was missed.

-- generation --
SELECT generation, wanted, paused_at, begun FROM {generations} WHERE subscription = %s

-- generation_changes --
SELECT generation, paused_at FROM {generations} WHERE subscription = %s

-- generation_locked --
-- To the end of the transaction no position is saved: that takes a share of this lock.
SELECT generation, wanted, offered FROM {generations} WHERE subscription = %s FOR UPDATE

-- generation_begin --
INSERT IGNORE INTO {generations} (subscription, generation, wanted) VALUES (%s, 1, %s)

-- generation_set --
UPDATE {generations} SET generation = %s, wanted = %s, offered = NULL WHERE subscription = %s

-- generation_offer --
UPDATE {generations} SET offered = %s WHERE subscription = %s

-- generation_begun --
UPDATE {generations} SET begun = 1 WHERE subscription = %s

-- generation_pause --
UPDATE {generations} SET paused_at = %s WHERE subscription = %s

-- generation_list --
SELECT subscription, generation, wanted, offered, paused_at FROM {generations} ORDER BY subscription

-- missed --
SELECT entity_type, event_type, generation, behind, up_to, events, whole, backfilled_at FROM {missed}
WHERE subscription = %s ORDER BY entity_type, event_type

-- missed_forget --
DELETE FROM {missed} WHERE subscription = %s AND entity_type = %s AND event_type = %s

-- missed_note --
INSERT INTO {missed} (subscription, entity_type, event_type, generation, behind, up_to)
VALUES (%s, %s, %s, %s, %s, %s)

-- missed_counted --
UPDATE {missed} SET events = %s, whole = %s
WHERE subscription = %s AND entity_type = %s AND event_type = %s

-- missed_backfilled --
UPDATE {missed} SET backfilled_at = %s
WHERE subscription = %s AND event_type = %s AND up_to IS NOT NULL

-- positions --
SELECT `partition`, position, owner FROM {subscriptions} WHERE name = %s ORDER BY `partition`

-- parked_counts --
SELECT subscription, count(*) FROM {parked} GROUP BY subscription

-- generation_shared --
-- To the end of the transaction it stays what it is.
SELECT generation FROM {generations} WHERE subscription = %s LOCK IN SHARE MODE

-- share_save_in --
UPDATE {subscriptions} SET position = %s
WHERE name = %s AND `partition` = %s AND owner = %s AND position <= %s
AND EXISTS (SELECT 1 FROM {generations} WHERE subscription = %s AND generation = %s)

-- log_count --
SELECT count(*) FROM (SELECT 1 FROM {event_log} l STRAIGHT_JOIN {events} e ON e.event_id = l.event_id
WHERE l.`partition` = %s AND l.position > %s AND l.position <= %s
AND e.entity_type IN %s AND e.event_type IN %s LIMIT %s) t

-- unnumbered_count --
SELECT count(*) FROM (SELECT 1 FROM {unnumbered_events} u STRAIGHT_JOIN {events} e ON e.event_id = u.event_id
WHERE e.entity_type IN %s AND e.event_type IN %s LIMIT %s) t
