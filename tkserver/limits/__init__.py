"""Limits on requests and on failed authentications."""
