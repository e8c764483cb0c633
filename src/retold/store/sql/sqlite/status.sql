-- What `retold status` asks beside: cheap, however large the tables are.

-- status_size --
-- About how many events there are.
SELECT max(position) FROM {events}

-- status_newest --
SELECT max(event_id) FROM {events}

-- status_parked --
SELECT subscription, sum(CASE WHEN error IS NULL THEN 0 ELSE 1 END), sum(CASE WHEN error IS NULL THEN 1 ELSE 0 END)
FROM {parked} GROUP BY subscription ORDER BY subscription

-- status_shares --
SELECT name, partition, position, owner FROM {subscriptions} WHERE name NOT LIKE 'relay:%' ORDER BY name, partition

-- status_lag --
SELECT count(*) FROM (SELECT 1 AS one FROM {events} WHERE position > ? LIMIT ?) waiting
