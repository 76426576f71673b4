"""Access to the database: connections, the statements that serve requests, migrations, the embedded PostgreSQL."""
