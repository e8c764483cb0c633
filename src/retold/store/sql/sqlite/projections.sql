-- Projections: how far each has come, and who may go on from there.

-- projection --
SELECT position, owner FROM {projections} WHERE name = ? AND place = ?

-- projection_locked --
SELECT position, owner FROM {projections} WHERE name = ? AND place = ?

-- projection_shared --
SELECT position, owner FROM {projections} WHERE name = ? AND place = ?

-- projection_begin --
INSERT INTO {projections} (name, place, position) VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- projection_places --
SELECT place, position, owner FROM {projections} WHERE name = ? AND place <> '' ORDER BY place

-- projection_take --
UPDATE {projections} SET owner = ? WHERE name = ? AND place = ?

-- projection_owned --
SELECT place, position FROM {projections} WHERE name = ? AND place IN (SELECT value FROM json_each(?)) AND owner = ? ORDER BY place

-- projection_save --
UPDATE {projections} SET position = ? WHERE name = ? AND place = ? AND owner = ? AND position <= ?

-- projection_generation --
UPDATE {projections} SET position = ?, owner = NULL WHERE name = ? AND place = ''

-- projection_release --
UPDATE {projections} SET owner = NULL WHERE name = ? AND place <> ''

-- projection_forget --
DELETE FROM {projections} WHERE name = ? AND place <> ''

-- projection_rename --
UPDATE {projections} SET name = ?, owner = NULL WHERE name = ? AND place <> ''

-- projections_list --
SELECT name, place, position, owner FROM {projections} ORDER BY name, place

-- projection_seen_save --
INSERT INTO {projection_seen} (name, entity_type, entity_id, event_id) VALUES (?, ?, ?, ?)
ON CONFLICT (name, entity_type, entity_id) DO UPDATE SET event_id = excluded.event_id

-- projection_seen --
SELECT event_id FROM {projection_seen} WHERE name = ? AND entity_type = ? AND entity_id = ?

-- projection_seen_forget --
DELETE FROM {projection_seen} WHERE name = ?

-- projection_seen_rename --
UPDATE {projection_seen} SET name = ? WHERE name = ?

-- projection_parked_forget --
DELETE FROM {parked} WHERE subscription = ?

-- projection_parked_rename --
UPDATE {parked} SET subscription = ? WHERE subscription = ?

-- projection_last_event --
-- The newest event of an entity, up to a version, that a projection wants.
SELECT max(event_id) FROM {events} WHERE entity_type = ? AND entity_id = ? AND event_id <= ? AND event_type IN (SELECT value FROM json_each(?))

-- inline_begin --
SAVEPOINT retold_inline

-- inline_commit --
RELEASE SAVEPOINT retold_inline

-- inline_rollback --
ROLLBACK TO SAVEPOINT retold_inline

-- projection_forget_subscription --
DELETE FROM {subscriptions} WHERE name = ?
