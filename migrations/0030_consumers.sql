-- Where a broker has a consumer's place: by partition, the message to read on at. Stored with the cursor, in one transaction.
ALTER TABLE fedstac.consumer_cursor ADD COLUMN offsets jsonb NOT NULL DEFAULT '{}';

-- The last claim of any version of a lineage to be the latest, whatever became of it: claims before it are void (C1). Of a
-- lineage with a latest it is at least that one's.
ALTER TABLE fedstac.lineage ADD COLUMN claim_epoch bigint NOT NULL DEFAULT 0,
                            ADD COLUMN claim_seq bigint NOT NULL DEFAULT 0;
