-- What subscriptions handle, pauses, and what was missed.

-- generation --
SELECT generation, wanted, paused_at, begun FROM {generations} WHERE subscription = ?

-- generation_changes --
SELECT generation, paused_at FROM {generations} WHERE subscription = ?

-- generation_locked --
-- To the end of the transaction no position is saved: that takes a share of this lock.
SELECT generation, wanted, offered FROM {generations} WHERE subscription = ?

-- generation_begin --
INSERT INTO {generations} (subscription, generation, wanted) VALUES (?, 1, ?) ON CONFLICT DO NOTHING

-- generation_set --
UPDATE {generations} SET generation = ?, wanted = ?, offered = NULL WHERE subscription = ?

-- generation_offer --
UPDATE {generations} SET offered = ? WHERE subscription = ?

-- generation_begun --
UPDATE {generations} SET begun = 1 WHERE subscription = ?

-- generation_pause --
UPDATE {generations} SET paused_at = ? WHERE subscription = ?

-- generation_list --
SELECT subscription, generation, wanted, offered, paused_at FROM {generations} ORDER BY subscription

-- missed --
SELECT entity_type, event_type, generation, behind, up_to, events, whole, backfilled_at FROM {missed}
WHERE subscription = ? ORDER BY entity_type, event_type

-- missed_forget --
DELETE FROM {missed} WHERE subscription = ? AND entity_type = ? AND event_type = ?

-- missed_note --
INSERT INTO {missed} (subscription, entity_type, event_type, generation, behind, up_to)
VALUES (?, ?, ?, ?, ?, ?)

-- missed_counted --
UPDATE {missed} SET events = ?, whole = ?
WHERE subscription = ? AND entity_type = ? AND event_type = ?

-- missed_backfilled --
UPDATE {missed} SET backfilled_at = ?
WHERE subscription = ? AND event_type = ? AND up_to IS NOT NULL

-- positions --
SELECT partition, position, owner FROM {subscriptions} WHERE name = ? ORDER BY partition

-- parked_counts --
SELECT subscription, count(*) FROM {parked} GROUP BY subscription

-- subscription_save_in --
UPDATE {subscriptions} SET position = ?, lease_until = ?
WHERE name = ? AND partition = ? AND owner = ?
AND EXISTS (SELECT 1 FROM {generations} WHERE subscription = ? AND generation = ?)

-- log_count --
-- The unary plus keeps the planner on `position`.
SELECT count(*) FROM (SELECT 1 FROM {events}
WHERE 0 = ? AND position > ? AND position <= ?
AND +entity_type IN (SELECT value FROM json_each(?)) AND +event_type IN (SELECT value FROM json_each(?)) LIMIT ?)
