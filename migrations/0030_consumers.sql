-- Where a broker has a consumer's place: by partition, the message to read on at. Stored with the cursor, in one transaction.
ALTER TABLE fedstac.consumer_cursor ADD COLUMN offsets jsonb NOT NULL DEFAULT '{}';

-- The last claim of any version of a lineage to be the latest, whatever became of it: claims before it are void (C1). Of a
-- lineage with a latest it is at least that one's.
ALTER TABLE fedstac.lineage ADD COLUMN claim_epoch bigint NOT NULL DEFAULT 0,
                            ADD COLUMN claim_seq bigint NOT NULL DEFAULT 0;

-- Operators name a parked event by its id, have it tried again or discard it. `outcome`: parked, or rejected: no event that
-- this node would ever take.
CREATE SEQUENCE fedstac.parked_event_id;
ALTER TABLE fedstac.parked_event
    ADD COLUMN id bigint NOT NULL DEFAULT nextval('fedstac.parked_event_id') UNIQUE,
    ADD COLUMN outcome text NOT NULL DEFAULT 'parked' CHECK (outcome IN ('parked', 'rejected')),
    ADD COLUMN attempts integer NOT NULL DEFAULT 1,
    ADD COLUMN requeued_at timestamptz;
CREATE INDEX parked_event_requeued ON fedstac.parked_event (consumer, origin) WHERE requeued_at IS NOT NULL;
GRANT USAGE ON SEQUENCE fedstac.parked_event_id TO fedstac_writer;
