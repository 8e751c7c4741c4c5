-- Several origins may have one collection, each with its document; which of them is shown follows from the rows (ADR 12).
ALTER TABLE fedstac.collection DROP CONSTRAINT collection_pkey;
ALTER TABLE fedstac.collection ADD PRIMARY KEY (id, origin);
