-- Whether a document names a persistent identifier, so that a preview of many datasets need not read their documents.
-- Empty for what was stored before: the text is asked then.

ALTER TABLE fedstac.record ADD COLUMN has_identifier boolean;
