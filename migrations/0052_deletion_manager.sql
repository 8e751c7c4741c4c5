-- The deletion manager: who may see a deletion, what it told whom, and the request by which the schedule deletes.

ALTER TABLE fedstac.deletion ADD COLUMN institution text;      -- of the dataset: rights are for an institution
ALTER TABLE fedstac.deletion ADD COLUMN delete_request uuid;   -- by which the manager asked last to delete it
ALTER TABLE fedstac.deletion ADD COLUMN delete_asked_at timestamptz;
CREATE INDEX deletion_scope ON fedstac.deletion (collection, institution);
CREATE INDEX deletion_automatic ON fedstac.deletion (grace_until, id) WHERE state = 'open' AND automatic;
CREATE INDEX deletion_place ON fedstac.deletion (marked_at, id);

ALTER TABLE fedstac.deletion_dependency ADD COLUMN alerted_at timestamptz;  -- operators heard that it is late: once
CREATE INDEX deletion_dependency_late ON fedstac.deletion_dependency (due)
    WHERE state IN ('pending', 'failed') AND alerted_at IS NULL;

-- Other rules for open deletions take dependencies away that have not reported.
GRANT DELETE ON fedstac.deletion_dependency TO fedstac_writer;

-- The history of a deletion is read from the audit log, which has no index by dataset.
CREATE INDEX audit_deletion ON fedstac.audit (collection, dataset, id)
    WHERE action IN ('mark', 'unmark', 'delete', 'purge', 'waive-deletion', 'remind-deletion', 'report-deletion');

ALTER TABLE fedstac.notification DROP CONSTRAINT notification_topic_check;
ALTER TABLE fedstac.notification ADD CONSTRAINT notification_topic_check
    CHECK (topic IN ('request', 'dataset', 'alert', 'confirm', 'test', 'deletion')) NOT VALID;
ALTER TABLE fedstac.notification VALIDATE CONSTRAINT notification_topic_check;
