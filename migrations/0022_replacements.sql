-- Which retracted datasets name a dataset as their replacement: its page links back to them.
CREATE INDEX record_replaced_by ON fedstac.record (collection, ((retraction::jsonb)->>'replaced_by'))
    WHERE retraction IS NOT NULL;
