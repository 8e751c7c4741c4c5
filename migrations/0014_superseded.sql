-- Given up as the latest by its publisher, not by a newer version: nothing makes it latest again by itself.
ALTER TABLE fedstac.record ADD COLUMN superseded boolean NOT NULL DEFAULT false;

-- The request whose refused items this one tries again.
ALTER TABLE fedstac.request ADD COLUMN retry_of uuid REFERENCES fedstac.request (id);
