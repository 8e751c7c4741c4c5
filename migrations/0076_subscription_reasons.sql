-- Where the webhook of a subscription may lead is asked of the settings when it is connected to: nothing of it is stored.
ALTER TABLE fedstac.subscription DROP COLUMN private;

-- A purge removes what was said of events of the dataset that were not taken.
CREATE INDEX subscription_event_dataset ON fedstac.subscription_event (collection, dataset);
