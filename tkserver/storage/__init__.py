"""The database: connections, statements, and the translation of the driver's exceptions."""
