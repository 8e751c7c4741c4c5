-- Owners of subscriptions are told when theirs are paused or ended, or have dead letters.
ALTER TABLE fedstac.notification DROP CONSTRAINT notification_topic_check;
ALTER TABLE fedstac.notification ADD CONSTRAINT notification_topic_check
    CHECK (topic IN ('request', 'dataset', 'alert', 'confirm', 'test', 'deletion', 'subscription')) NOT VALID;
ALTER TABLE fedstac.notification VALIDATE CONSTRAINT notification_topic_check;
