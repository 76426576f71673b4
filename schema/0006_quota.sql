-- What is used of a monthly quota. The counter stands in the application's own row, which is locked by whoever stores
-- events for it: no event goes uncounted, and none is counted that was not stored.

ALTER TABLE apps ADD COLUMN IF NOT EXISTS quota_month DATE;
ALTER TABLE apps ADD COLUMN IF NOT EXISTS quota_used BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN apps.quota_month IS 'First day of the month, UTC, that quota_used counts; in a later one it is 0.';
COMMENT ON COLUMN apps.quota_used IS 'Events stored in that month. Kept up only where there is a quota.';

CREATE OR REPLACE FUNCTION tkserver_stored_this_month(of_org UUID, of_app UUID) RETURNS BIGINT
LANGUAGE sql AS $$
    SELECT count(*) FROM events
    WHERE app_id = of_app AND org_id = of_org AND received_at >= date_trunc('month', now(), 'UTC')
$$;

-- A quota holds for the whole month, also where it is set in the middle of it. What was counted before and has been
-- deleted since stays counted.

CREATE OR REPLACE FUNCTION tkserver_begin_quota() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    this_month DATE := date_trunc('month', now() AT TIME ZONE 'UTC');
BEGIN
    IF NEW.monthly_quota IS NOT NULL AND (TG_OP = 'INSERT' OR OLD.monthly_quota IS NULL) THEN
        NEW.quota_used := greatest(
            tkserver_stored_this_month(NEW.org_id, NEW.app_id),
            CASE WHEN NEW.quota_month = this_month THEN NEW.quota_used ELSE 0 END
        );
        NEW.quota_month := this_month;
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER IF EXISTS apps_quota_begins ON apps;
CREATE TRIGGER apps_quota_begins
    BEFORE INSERT OR UPDATE OF monthly_quota
    ON apps
    FOR EACH ROW EXECUTE FUNCTION tkserver_begin_quota();

UPDATE apps
SET quota_used = tkserver_stored_this_month(org_id, app_id), quota_month = date_trunc('month', now() AT TIME ZONE 'UTC')
WHERE monthly_quota IS NOT NULL AND quota_month IS NULL;

-- Servers remember, with its credentials, whether an application has a quota. The counter is no reason to forget.

DROP TRIGGER IF EXISTS apps_quota_changed ON apps;
CREATE TRIGGER apps_quota_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF org_id, app_id, monthly_quota
    ON apps
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();
