-- Links with which anybody can see fixed pages of an application until they expire (docs/dashboard.md).

CREATE TABLE IF NOT EXISTS share_links (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token_hash BYTEA NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    org_id     UUID NOT NULL,
    app_id     UUID NOT NULL,
    name       VARCHAR(100) NOT NULL CHECK (name <> ''),
    pages      TEXT[] NOT NULL CHECK (cardinality(pages) > 0),
    filters    TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at TIMESTAMPTZ NOT NULL
);

COMMENT ON TABLE share_links IS 'Links to pages of the dashboard for people who are not signed in.';
COMMENT ON COLUMN share_links.id IS 'Selects the link for whoever lists or revokes it.';
COMMENT ON COLUMN share_links.token_hash IS
    'SHA-256 of the token in the link. It has 128 random bits, so a hash without a salt and without iterations is enough.';
COMMENT ON COLUMN share_links.name IS 'Says whom or what the link is for. Whoever opens the link sees it.';
COMMENT ON COLUMN share_links.pages IS 'The last segments of the paths of the pages, such as overview.';
COMMENT ON COLUMN share_links.filters IS 'The period and the filters, as the query string of a page.';
COMMENT ON INDEX share_links_pkey IS 'Finds the link that is revoked.';
COMMENT ON INDEX share_links_token_hash_key IS 'Finds the link that is opened.';
