-- Where a broker has a consumer's place: by partition, the message to read on at. Stored with the cursor, in one transaction.
ALTER TABLE fedstac.consumer_cursor ADD COLUMN offsets jsonb NOT NULL DEFAULT '{}';
