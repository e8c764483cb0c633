-- Projections: how far each has come, and who may go on from there.

-- projection --
SELECT position, owner FROM {projections} WHERE name = %s AND place = %s

-- projection_locked --
-- To the end of the transaction nobody claims, switches over or writes.
SELECT position, owner FROM {projections} WHERE name = %s AND place = %s FOR UPDATE

-- projection_shared --
-- Appends with an inline projection go on side by side; a switch of its tables waits for them.
SELECT position, owner FROM {projections} WHERE name = %s AND place = %s LOCK IN SHARE MODE

-- projection_begin --
INSERT IGNORE INTO {projections} (name, place, position) VALUES (%s, %s, %s)

-- projection_places --
SELECT place, position, owner FROM {projections} WHERE name = %s AND place <> '' ORDER BY place

-- projection_take --
UPDATE {projections} SET owner = %s WHERE name = %s AND place = %s

-- projection_owned --
-- To the end of the transaction nobody else can take these places.
SELECT place, position FROM {projections} WHERE name = %s AND place IN %s AND owner = %s ORDER BY place FOR UPDATE

-- projection_save --
UPDATE {projections} SET position = %s WHERE name = %s AND place = %s AND owner = %s AND position <= %s

-- projection_generation --
UPDATE {projections} SET position = %s, owner = NULL WHERE name = %s AND place = ''

-- projection_release --
UPDATE {projections} SET owner = NULL WHERE name = %s AND place <> ''

-- projection_forget --
DELETE FROM {projections} WHERE name = %s AND place <> ''

-- projection_rename --
UPDATE {projections} SET name = %s, owner = NULL WHERE name = %s AND place <> ''

-- projections_list --
SELECT name, place, position, owner FROM {projections} ORDER BY name, place

-- projection_seen_save --
INSERT INTO {projection_seen} (name, entity_type, entity_id, event_id) VALUES (%s, %s, %s, %s)
ON DUPLICATE KEY UPDATE event_id = VALUES(event_id)

-- projection_seen --
SELECT event_id FROM {projection_seen} WHERE name = %s AND entity_type = %s AND entity_id = %s

-- projection_seen_forget --
DELETE FROM {projection_seen} WHERE name = %s

-- projection_seen_rename --
UPDATE {projection_seen} SET name = %s WHERE name = %s

-- projection_parked_forget --
DELETE FROM {parked} WHERE subscription = %s

-- projection_parked_rename --
UPDATE {parked} SET subscription = %s WHERE subscription = %s

-- projection_last_event --
-- The newest event of an entity, up to a version, that a projection wants.
SELECT max(event_id) FROM {events} WHERE entity_type = %s AND entity_id = %s
AND CAST(CONVERT(entity_id USING utf8mb4) AS BINARY) = CAST(CONVERT(%s USING utf8mb4) AS BINARY) AND event_id <= %s AND event_type IN %s

-- inline_begin --
SAVEPOINT retold_inline

-- inline_commit --
RELEASE SAVEPOINT retold_inline

-- inline_rollback --
ROLLBACK TO SAVEPOINT retold_inline

-- projection_forget_subscription --
DELETE FROM {subscriptions} WHERE name = %s
