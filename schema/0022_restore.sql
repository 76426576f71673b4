-- A backup can be restored into a new installation with its data only: pg_dump --data-only | psql. See docs/operating.md.
--
-- Such a backup sets an empty search_path, so functions that use tables keep the one of the installation. CREATE OR
-- REPLACE FUNCTION discards this setting: a later migration must set it again.

ALTER FUNCTION tkserver_stored_this_month(UUID, UUID) SET search_path FROM CURRENT;
ALTER FUNCTION tkserver_begin_quota() SET search_path FROM CURRENT;
ALTER FUNCTION tkserver_count_quarantine() SET search_path FROM CURRENT;
ALTER FUNCTION tkserver_trim_quarantine(UUID, UUID, BIGINT, BIGINT) SET search_path FROM CURRENT;
ALTER FUNCTION tkserver_insight_changed() SET search_path FROM CURRENT;

-- A new installation has some rows already. Those of the backup replace them, if they have not been used yet. Without
-- the key of the backup, for example, its erasures would have no effect.

CREATE OR REPLACE FUNCTION tkserver_replace_unused_row() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_TABLE_NAME = 'erasure_key' AND NOT EXISTS (SELECT FROM erasures) THEN
        DELETE FROM erasure_key;
    ELSIF TG_TABLE_NAME = 'dashboard_key' AND NOT EXISTS (SELECT FROM dashboard_sessions) THEN
        DELETE FROM dashboard_key;
    ELSIF TG_TABLE_NAME = 'insight_progress' THEN
        DELETE FROM insight_progress WHERE watermark = 0;
    ELSIF TG_TABLE_NAME = 'nonce_window' THEN
        DELETE FROM nonce_window WHERE deleted_until = '-infinity';
    END IF;
    RETURN NEW;
END
$$;

-- These rows exist already when they are restored: the applied migrations, and the sizes of the quarantine, which are
-- counted while it is restored (by a trigger, which is therefore not the first one).

CREATE OR REPLACE FUNCTION tkserver_keep_existing_row() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    is_known BOOLEAN;
BEGIN
    IF TG_TABLE_NAME = '_yoyo_migration' THEN
        is_known := EXISTS (SELECT FROM _yoyo_migration WHERE migration_hash = NEW.migration_hash);
    ELSIF TG_TABLE_NAME = '_yoyo_log' THEN
        is_known := EXISTS (SELECT FROM _yoyo_log WHERE id = NEW.id);
    ELSIF TG_TABLE_NAME = '_yoyo_version' THEN
        is_known := EXISTS (SELECT FROM _yoyo_version WHERE version = NEW.version);
    ELSIF pg_trigger_depth() = 1 AND NEW.events > 0 THEN  -- servers insert rows without events
        UPDATE quarantine_usage SET dropped = NEW.dropped WHERE app_id = NEW.app_id AND org_id = NEW.org_id;
        is_known := FOUND;
    END IF;
    RETURN CASE WHEN is_known THEN NULL ELSE NEW END;
END
$$;

DO $$
DECLARE
    of_table TEXT;
    function TEXT;
BEGIN
    FOR of_table, function IN VALUES
        ('erasure_key', 'tkserver_replace_unused_row'),
        ('dashboard_key', 'tkserver_replace_unused_row'),
        ('insight_progress', 'tkserver_replace_unused_row'),
        ('nonce_window', 'tkserver_replace_unused_row'),
        ('_yoyo_migration', 'tkserver_keep_existing_row'),
        ('_yoyo_log', 'tkserver_keep_existing_row'),
        ('_yoyo_version', 'tkserver_keep_existing_row'),
        ('quarantine_usage', 'tkserver_keep_existing_row')
    LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %I', of_table || '_restored', of_table);
        EXECUTE format(
            'CREATE TRIGGER %I BEFORE INSERT ON %I FOR EACH ROW EXECUTE FUNCTION %I()',
            of_table || '_restored', of_table, function
        );
    END LOOP;
END
$$;
