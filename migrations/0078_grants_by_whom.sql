-- Whoever lists the grants that they gave, and whoever follows changes, reads none of the grants of others.
CREATE INDEX access_grant_giver ON fedstac.access_grant (given_by, id);
CREATE INDEX access_grant_closed ON fedstac.access_grant (subject, closed_at) WHERE closed_at IS NOT NULL;
