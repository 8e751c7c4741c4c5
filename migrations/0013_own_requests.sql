-- Somebody's own requests, the newest first (GET /requests).
CREATE INDEX request_submitter ON fedstac.request (submitter, created DESC, id DESC);
