-- The trace that a request belongs to (W3C Trace Context): its events have it, too.
ALTER TABLE fedstac.request ADD COLUMN traceparent text;
