"""Applications and tokens, as operations return them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from tkserver.storage.quota import Allowance

TIERS = ("free", "pro", "business", "enterprise")
"""The tiers of tokens. The tier of a token selects its rate limit."""


STAGING_QUOTA = 1000
"""Events that a new staging application can store in a month."""

STAGING_DAYS = 30
"""Days for which its events are stored."""


@dataclass(frozen=True)
class App:
    """An application.

    :ivar name: ``None`` if it has only tokens.
    :ivar slug: stands for its id in the path of a request; ``None`` if it has no slug.
    :ivar org: the name of its organization, if that has one.
    :ivar monthly_quota: the maximum number of events per calendar month (UTC); ``None`` if there is no limit.
    :ivar retention_days: ``None`` if the setting of the servers applies.
    :ivar active_tokens: the number of its active tokens.
    :ivar last_used_at: when one of its tokens was last used, to the minute.
    :ivar staging: true if its events are only for tests.
    :ivar allowance: how much of its quota is used this month; ``None`` if it has no quota.
    """

    name: str | None
    slug: str | None
    org: str | None
    org_id: UUID
    app_id: UUID
    created_at: datetime | None
    monthly_quota: int | None
    retention_days: int | None
    active_tokens: int
    last_used_at: datetime | None
    allowance: Allowance | None
    staging: bool

    @property
    def label(self) -> str:
        """The name, after that of the organization if there is one; or the id if it has no name."""
        if self.name is None:
            return str(self.app_id)
        return self.name if self.org is None else f"{self.org}/{self.name}"

    @property
    def title(self) -> str:
        """The label, marked if the application is for tests. For people only."""
        return f"{self.label} (staging)" if self.staging else self.label

    @property
    def key(self) -> tuple[str, str]:
        """``app_id`` and ``org_id`` as text, the parameters of SQL statements."""
        return str(self.app_id), str(self.org_id)


@dataclass(frozen=True)
class Token:
    """A token and its secret: a row of ``api_tokens``.

    :ivar expires_at: when it becomes inactive; ``None`` if it does not expire.
    """

    id: UUID
    org_id: UUID
    app_id: UUID
    token: str = field(repr=False)
    secret: str = field(repr=False)
    tier: str
    is_active: bool
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


SHORT_ID_LENGTH = 8
"""Characters at the beginning of an id that commands print instead of it, and accept."""

_SHORT_ID = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,28}")


def id_pattern(text: str) -> str | None:
    """Return the SQL pattern of the ids that begin with a short id; ``None`` if the text cannot be one."""
    return f"{text.lower()}%" if _SHORT_ID.fullmatch(text.lower()) else None


def parse_uuid(text: str) -> UUID | None:
    """Return the UUID that a text represents; ``None`` if it represents none."""
    try:
        return UUID(text)
    except ValueError:
        return None
