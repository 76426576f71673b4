-- The used part of monthly quotas. The counter is in the row of the application, which a server locks while it stores
-- events for the application. Therefore the counter always equals the number of stored events.

ALTER TABLE apps ADD COLUMN IF NOT EXISTS quota_month DATE;
ALTER TABLE apps ADD COLUMN IF NOT EXISTS quota_used BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN apps.quota_month IS
    'First day of the month (UTC) in which quota_used was counted. In any later month, 0 events are used.';
COMMENT ON COLUMN apps.quota_used IS
    'Events that were stored in that month. Counted only for applications with a quota.';

CREATE OR REPLACE FUNCTION tkserver_stored_this_month(of_org UUID, of_app UUID) RETURNS BIGINT
LANGUAGE sql AS $$
    SELECT count(*) FROM events
    WHERE app_id = of_app AND org_id = of_org AND received_at >= date_trunc('month', now(), 'UTC')
$$;

-- A quota applies to the whole month, even if it is set during the month. Events that were counted and have been
-- deleted since still count.

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

-- Servers cache, with the credentials of an application, whether it has a quota. A change of the counter sends no
-- notification.

DROP TRIGGER IF EXISTS apps_quota_changed ON apps;
CREATE TRIGGER apps_quota_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF org_id, app_id, monthly_quota
    ON apps
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();
