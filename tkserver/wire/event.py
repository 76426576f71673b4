"""The fields of an event, their types and their limits."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Raw, Struct

MAX_EVENT_BYTES = 102_400
"""Maximum size of an event, in bytes of JSON as received."""

USER_ID_PREFIXES = ("client_", "anon_")

is_user_id = re.compile(r"(?:client_|anon_)[\x21-\x7e]*").fullmatch
"""Return a true value if a text is an anonymous user id. Its length is not checked."""

NIL_UUID = UUID(int=0)
"""Reported as the id of an event without a valid id, because SDKs parse the field as a UUID."""

_MAX_INTEGER = 2_147_483_647

Text20 = Annotated[str, Meta(min_length=1, max_length=20)]
Text50 = Annotated[str, Meta(min_length=1, max_length=50)]
Text100 = Annotated[str, Meta(min_length=1, max_length=100)]
Text255 = Annotated[str, Meta(min_length=1, max_length=255)]
Time = Annotated[datetime, Meta(tz=True)]
Count = Annotated[int, Meta(ge=0, le=_MAX_INTEGER)]


class Service(Struct, frozen=True, gc=False, omit_defaults=True):
    """The program that sent the event."""

    name: Text255
    version: Text100
    language: Text50
    language_version: Text50 | None = None


class Environment(Struct, frozen=True, gc=False, omit_defaults=True):
    """The system on which the program ran."""

    os: Text50
    os_version: Text100 | None = None
    arch: Text50 | None = None
    ci: bool | None = None
    shell: Text50 | None = None


class Occurrence(Struct, frozen=True, gc=False, omit_defaults=True):
    """The action that the event reports.

    :ivar data: any JSON value. The bytes are stored as received, without decoding them.
    """

    type: Text100
    data: Raw
    category: Text50 | None = None


class Metadata(Struct, frozen=True, gc=False):
    """Information about the transmission of the event."""

    sdk_version: Text50
    transmission_timestamp: Time
    batch_size: Count
    retry_count: Count


class Event(Struct, frozen=True, gc=False, omit_defaults=True):
    """An event. Unknown keys are ignored."""

    schema_version: Text20
    event_id: UUID
    timestamp: Time
    service: Service
    user_id: Text255
    environment: Environment
    event: Occurrence
    metadata: Metadata
    session_id: Text255 | None = None
