-- Files of a removal may have left their places, though nothing of that is stored: a process that dies leaves this.
ALTER TABLE fedstac.replica_removal ADD COLUMN IF NOT EXISTS begun boolean NOT NULL DEFAULT false;
