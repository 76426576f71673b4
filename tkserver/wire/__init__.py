"""The wire contract: signatures, batches, events and error codes.

This package contains pure functions only. It uses no reactor, no database and no clock.
"""
