-- The tallies count what is found (numberMatched); what is marked for deletion is hidden from outsiders, also as a number.
INSERT INTO fedstac.tally (collection, records)
SELECT collection, -count(*) FROM fedstac.record WHERE state = 'marked' AND document IS NOT NULL GROUP BY collection;
