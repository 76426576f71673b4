-- Who may open the dashboard (docs/dashboard.md): links with which somebody signs in once, and sessions.

CREATE TABLE IF NOT EXISTS dashboard_links (
    token_hash BYTEA PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    org_id     UUID,
    app_id     UUID,
    can_share  BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at TIMESTAMPTZ NOT NULL,
    CHECK ((org_id IS NULL) = (app_id IS NULL))
);

COMMENT ON TABLE dashboard_links IS 'Links that create a session. The row is deleted when the link is used.';
COMMENT ON COLUMN dashboard_links.token_hash IS
    'SHA-256 of the token. A token has 256 random bits, so a hash without a salt and without iterations is enough.';
COMMENT ON COLUMN dashboard_links.app_id IS
    'Together with org_id: the application. Both are NULL for all applications.';
COMMENT ON COLUMN dashboard_links.can_share IS 'Whether the session may publish numbers and create share links.';
COMMENT ON INDEX dashboard_links_pkey IS 'Finds the link that is used.';

CREATE TABLE IF NOT EXISTS dashboard_sessions (
    token_hash BYTEA PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    org_id     UUID,
    app_id     UUID,
    can_share  BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at TIMESTAMPTZ NOT NULL,
    CHECK ((org_id IS NULL) = (app_id IS NULL))
);

COMMENT ON TABLE dashboard_sessions IS 'Browsers that are signed in. The token is the value of a cookie.';
COMMENT ON COLUMN dashboard_sessions.token_hash IS 'SHA-256 of the token, as in dashboard_links.';
COMMENT ON COLUMN dashboard_sessions.app_id IS
    'Together with org_id: the application. Both are NULL for all applications.';
COMMENT ON COLUMN dashboard_sessions.can_share IS 'As in dashboard_links.';
COMMENT ON INDEX dashboard_sessions_pkey IS 'Finds the session of a request.';

-- The users of an authenticating proxy have no session from which the tokens of their forms could be derived.

CREATE TABLE IF NOT EXISTS dashboard_key (
    only_row BOOLEAN PRIMARY KEY DEFAULT true CHECK (only_row),
    key      BYTEA NOT NULL DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
);

COMMENT ON TABLE dashboard_key IS
    'One random key, which all servers share. The tokens of forms of users of a proxy are derived from it.';
COMMENT ON INDEX dashboard_key_pkey IS 'Ensures that there is only one key.';

INSERT INTO dashboard_key DEFAULT VALUES ON CONFLICT DO NOTHING;
