"""Operator actions, each exactly once: for the command line, and for every other interface.

All functions block. Most take a connection in autocommit mode, and raise :exc:`~tkserver.storage.errors.StorageError`
if the database does not do what it is asked to. Their own errors are in :mod:`tkserver.operations.exceptions`.
"""
