"""Rate limits of applications, and limits on failed authentications."""
