-- What a node said of an event is found by the dataset, also when the event has left the log: a purge takes it away.
-- Ids of events grow with time, so the index does, too: at its end.

CREATE INDEX outbox_event ON fedstac.outbox (event_id);

ALTER TABLE fedstac.node_exception ADD COLUMN collection text, ADD COLUMN dataset text;
UPDATE fedstac.node_exception SET collection = split_part(substr(event_id, 10), '/', 1),
       dataset = substr(event_id, 10 + length(split_part(substr(event_id, 10), '/', 1)) + 1)
WHERE event_id LIKE 'snapshot:%/%';
UPDATE fedstac.node_exception e SET collection = o.collection, dataset = o.dataset
FROM fedstac.outbox o
WHERE e.dataset IS NULL AND o.event_id = CASE
    WHEN e.event_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN e.event_id::uuid END;
UPDATE fedstac.node_exception e SET detail = 'removed when the dataset was purged'
FROM fedstac.record r
WHERE r.collection = e.collection AND r.id = e.dataset AND r.state = 'purged' AND e.detail <> '';
CREATE INDEX node_exception_dataset ON fedstac.node_exception (dataset) WHERE detail <> '';
