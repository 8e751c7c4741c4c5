-- If-None-Match: *: the request publishes what is not there yet, and nothing else.
ALTER TABLE fedstac.request ADD COLUMN only_new boolean NOT NULL DEFAULT false;
