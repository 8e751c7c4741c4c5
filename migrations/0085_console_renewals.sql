-- A session of the console outlives its access token: the provider's refresh token renews it, one request at a time.
ALTER TABLE fedstac.console_session
    ADD COLUMN renewal text,                    -- issuer and refresh token, sealed as the token is; NULL: there is none
    ADD COLUMN renewing_until timestamptz;      -- a request asks the provider just now; a refresh token works once
