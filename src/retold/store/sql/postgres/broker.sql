-- The database as its own broker: the numbered log and the members that share it. @home@ is the
-- schema the tables are in: the trigger's function is called by writers with other search paths.

-- broker_home --
SELECT quote_ident({schema})

-- broker_exists --
SELECT to_regclass({numbering_name}) IS NOT NULL

-- broker_guard --
BEGIN; SELECT pg_advisory_xact_lock(7238471096513)

-- make_unnumbered --
-- Types and collations of the ids are those of the events table, whoever made that.
CREATE TABLE {unnumbered_events} AS SELECT event_id FROM {events} WITH NO DATA

-- make_unnumbered_key --
ALTER TABLE {unnumbered_events} ADD PRIMARY KEY (event_id),
SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)

-- make_log --
CREATE TABLE {event_log} AS
SELECT CAST(0 AS bigint) AS position, CAST(0 AS smallint) AS partition, event_id FROM {events} WITH NO DATA

-- make_log_key --
ALTER TABLE {event_log} ADD PRIMARY KEY (position), ALTER partition SET NOT NULL, ALTER event_id SET NOT NULL

-- make_log_index --
CREATE INDEX {event_log_idx} ON {event_log} (partition, position)

-- make_subscriptions --
CREATE TABLE {subscriptions} (
name text COLLATE "C" NOT NULL, partition smallint NOT NULL, position bigint NOT NULL, owner text,
PRIMARY KEY (name, partition)) WITH (fillfactor = 50)

-- make_subscribers --
CREATE TABLE {subscribers} (
name text COLLATE "C" NOT NULL, member text COLLATE "C" NOT NULL, lease_until bigint NOT NULL,
PRIMARY KEY (name, member)) WITH (fillfactor = 50)

-- make_numbering --
CREATE TABLE {numbering} (
id smallint PRIMARY KEY CHECK (id = 1), last_position bigint NOT NULL, partitions smallint NOT NULL
) WITH (fillfactor = 10)

-- make_note_event --
CREATE FUNCTION @home@.{note_event}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
INSERT INTO @home@.{own_unnumbered} (event_id) VALUES (NEW.event_id) ON CONFLICT DO NOTHING; RETURN NULL; END $$

-- make_trigger --
CREATE TRIGGER {note_event} AFTER INSERT ON {events} FOR EACH ROW EXECUTE FUNCTION @home@.{note_event}()

-- broker_fill --
WITH page AS (SELECT event_id FROM {events} WHERE event_id > %s ORDER BY event_id LIMIT %s),
filled AS (INSERT INTO {unnumbered_events} (event_id) SELECT event_id FROM page ON CONFLICT DO NOTHING)
SELECT max(event_id) FROM page

-- broker_ready --
INSERT INTO {numbering} (id, last_position, partitions) VALUES (1, 0, %s) ON CONFLICT DO NOTHING

-- broker_counter --
SELECT id FROM {numbering}

-- broker_trigger_exists --
SELECT EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = CAST({events_name} AS regclass)
AND tgname = {note_event_name} AND tgenabled IN ('O', 'A'))

-- broker_drop_trigger --
DROP TRIGGER IF EXISTS {note_event} ON {events}

-- broker_drop_function --
DROP FUNCTION IF EXISTS @home@.{note_event}()

-- newest_event --
SELECT event_id FROM {events} ORDER BY event_id DESC LIMIT 1

-- is_noted --
-- Near the end of the log, where the newest event nearly always is: there is no index on its ids.
SELECT EXISTS (SELECT 1 FROM {unnumbered_events} WHERE event_id = %s) OR EXISTS (
SELECT 1 FROM {event_log} WHERE event_id = %s AND position > (SELECT max(last_position) - 10000 FROM {numbering}))

-- is_numbered --
SELECT EXISTS (SELECT 1 FROM {event_log} WHERE event_id = %s)

-- broker_fill_missing --
INSERT INTO {unnumbered_events} (event_id)
SELECT e.event_id FROM {events} e LEFT JOIN {event_log} l ON l.event_id = e.event_id
WHERE l.event_id IS NULL AND NOT EXISTS (SELECT 1 FROM {unnumbered_events} u WHERE u.event_id = e.event_id)

-- begin --
BEGIN ISOLATION LEVEL READ COMMITTED

-- commit --
COMMIT

-- rollback --
ROLLBACK

-- log_state --
SELECT last_position, partitions, EXISTS (SELECT 1 FROM {unnumbered_events}) FROM {numbering}

-- unnumbered --
-- OFFSET 0 keeps the planner on one look-up by key for each id: it thinks that most of a page is there,
-- and would rather read the whole table of events.
SELECT u.event_id, e.entity_type, e.entity_id
FROM (SELECT event_id FROM {unnumbered_events} ORDER BY event_id LIMIT %s) u
LEFT JOIN LATERAL (SELECT n.entity_type, n.entity_id FROM {events} n WHERE n.event_id = u.event_id OFFSET 0) e
ON true ORDER BY u.event_id

-- number --
-- All or nothing: nothing where somebody else numbered since the position was read.
WITH won AS (UPDATE {numbering} SET last_position = last_position + %s WHERE last_position = %s RETURNING 1),
logged AS (INSERT INTO {event_log} (position, partition, event_id)
SELECT CAST(%s AS bigint) + t.n, t.partition, t.event_id
FROM won, unnest(CAST(%s AS smallint[]), CAST(%s AS text[])) WITH ORDINALITY AS t(partition, event_id, n)),
done AS (DELETE FROM {unnumbered_events} USING won WHERE event_id = ANY(CAST(%s AS text[])))
SELECT pg_notify({channel}, '') FROM won

-- log_read --
SELECT l.position, l.partition, e.event_id, e.event_type, e.event_data, e.entity_type, e.entity_id, e.metadata
FROM {event_log} l
CROSS JOIN LATERAL (SELECT n.* FROM {events} n WHERE n.event_id = l.event_id OFFSET 0) e
WHERE l.position > %s AND l.position <= %s AND l.partition = ANY(%s)
AND e.entity_type = ANY(%s) AND e.event_type = ANY(%s)
ORDER BY l.position

-- log_position_at --
SELECT min(position) - 1 FROM {event_log} WHERE event_id >= %s

-- clock --
SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)

-- members --
SELECT member, lease_until FROM {subscribers} WHERE name = %s ORDER BY member

-- member_join --
INSERT INTO {subscribers} (name, member, lease_until)
VALUES (%s, %s, CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint) + %s)

-- member_renew --
UPDATE {subscribers}
SET lease_until = CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint) + %s
WHERE name = %s AND member = %s

-- member_evict --
DELETE FROM {subscribers} WHERE name = %s AND member = %s AND lease_until = %s

-- member_leave --
DELETE FROM {subscribers} WHERE name = %s AND member = %s

-- shares --
SELECT partition, position, owner FROM {subscriptions} WHERE name = %s ORDER BY partition

-- share_begin --
INSERT INTO {subscriptions} (name, partition, position) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING

-- share_claim --
UPDATE {subscriptions} SET owner = %s
WHERE name = %s AND partition = %s AND position = %s AND owner IS NOT DISTINCT FROM CAST(%s AS text)

-- share_save --
UPDATE {subscriptions} SET position = %s
WHERE name = %s AND partition = %s AND owner = %s AND position <= %s

-- share_move --
UPDATE {subscriptions} SET position = %s WHERE name = %s AND partition = %s AND owner = %s

-- share_release --
UPDATE {subscriptions} SET owner = NULL WHERE name = %s AND partition = %s AND owner = %s

-- shares_release --
UPDATE {subscriptions} SET owner = NULL WHERE name = %s AND owner = %s

-- shares_held --
SELECT partition, position FROM {subscriptions} WHERE name = %s AND owner = %s
