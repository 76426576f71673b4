"""Facts: what the statistics need to know about an event."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

DEFINITIONS = 2
"""The version of the definitions. If it changes, servers rebuild all aggregates."""

MAX_FLAGS = 200
"""Flags of one event that are counted."""

MAX_TEXT = 200
"""Characters of a name, flag or version. The rest is cut off."""

# Control characters, and those that change the direction of text, could harm terminals and pages.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

SELECT = """
SELECT a.app, e.user_id, (extract(epoch FROM t.happened) * 1000000)::bigint,
    (t.happened AT TIME ZONE a.timezone)::date - date '1970-01-01',
    t.happened <> e.timestamp, extract(epoch FROM e.received_at - t.happened)::float8,
    CASE jsonb_typeof(e.event_data->'duration_ms') WHEN 'number' THEN (e.event_data->'duration_ms')::float8 END,
    coalesce(e.ci, false), e.service_version, e.os, coalesce(e.arch, ''), coalesce(e.shell, ''), e.service_language,
    e.event_type,
    CASE jsonb_typeof(e.event_data->'command') WHEN 'string' THEN e.event_data->>'command' END,
    CASE jsonb_typeof(e.event_data->'subcommand') WHEN 'string' THEN e.event_data->>'subcommand' END,
    CASE jsonb_typeof(e.event_data->'feature') WHEN 'string' THEN e.event_data->>'feature' END,
    CASE jsonb_typeof(e.event_data->'method') WHEN 'string' THEN e.event_data->>'method' END,
    CASE jsonb_typeof(e.event_data->'success') WHEN 'boolean' THEN (e.event_data->'success')::boolean END,
    CASE jsonb_typeof(e.event_data->'exit_code') WHEN 'number' THEN e.event_data->>'exit_code' END,
    CASE jsonb_typeof(e.event_data->'error_type') WHEN 'string' THEN e.event_data->>'error_type' END,
    CASE jsonb_typeof(e.event_data->'flags') WHEN 'array' THEN e.event_data->>'flags' END
FROM events AS e
JOIN insight_apps AS a USING (app_id, org_id)
CROSS JOIN LATERAL (
    SELECT CASE WHEN e.timestamp > e.received_at + interval '10 minutes'
                  OR e.timestamp < e.received_at - interval '90 days'
                THEN e.received_at ELSE e.timestamp END AS happened
) AS t
"""
"""Selects the rows for :func:`facts_of`. A ``WHERE`` clause follows."""

ItemKey = tuple[str, ...]


class Topic(IntEnum):
    """The kinds of things that are counted. The numbers are stored."""

    ALL = 0
    """All events: one item, 0."""
    NAME = 1
    """Key: kind and name."""
    FLAG = 2
    """Key: command and flag."""
    ERROR = 3
    """Key: name, exit code and error type."""
    SHELL = 4
    LANGUAGE = 5
    LATENESS = 6
    """One item, 0. The durations are seconds. Only in the totals of all segments."""
    ADJUSTED = 7
    """One item, 0: events whose clocks were implausible. Only in the totals of all segments."""


class Segment(NamedTuple):
    """A combination of the values by which statistics are filtered."""

    ci: bool
    version: str
    os: str
    arch: str


class Profile(NamedTuple):
    """The properties that many events share.

    :ivar items: what the event counts for, besides the topics that have a single item.
    :ivar outcome: true if it succeeded, false if it failed, otherwise ``None``.
    """

    segment: Segment
    items: tuple[tuple[Topic, ItemKey], ...]
    outcome: bool | None


@dataclass(frozen=True)
class Facts:
    """Events of one application in columns, as the statistics see them.

    :ivar users: the ids of their users.
    :ivar happened: microseconds since 1970.
    :ivar days: days since 1970-01-01, in the time zone of the application.
    :ivar are_adjusted: true where the clock of the client was implausible.
    :ivar lateness: in seconds.
    :ivar durations: in milliseconds; negative if an event has none.
    :ivar profiles: all profiles of the events. Some may be equal.
    :ivar profile_of: the position of the profile of each event in ``profiles``.
    """

    users: Sequence[str]
    happened: npt.NDArray[np.int64]
    days: npt.NDArray[np.int64]
    are_adjusted: npt.NDArray[np.bool_]
    lateness: npt.NDArray[np.float64]
    durations: npt.NDArray[np.float64]
    profiles: Sequence[Profile]
    profile_of: npt.NDArray[np.int64]


Row = tuple[Any, ...]
"""A row that :data:`SELECT` returns."""

app_of = itemgetter(0)
"""Returns the number of the application in ``insight_apps`` from a row."""

user_of = itemgetter(1)
"""Returns the id of the user from a row."""

day_of = itemgetter(3)
"""Returns the day from a row, as in :class:`Facts`."""

_VALUES = slice(7, None)


def facts_of(rows: Sequence[Row]) -> Facts:
    """Return the facts that rows of one application contain.

    :param rows: at least one.
    """
    _, users, happened, days, adjusted, lateness, durations = zip(*(row[:7] for row in rows), strict=True)
    numbers: dict[Row, int] = {}
    profile_of = [numbers.setdefault(row[_VALUES], len(numbers)) for row in rows]
    return Facts(
        users,
        np.array(happened, np.int64),
        np.array(days, np.int64),
        np.array(adjusted, np.bool_),
        np.array(lateness, np.float64),
        np.nan_to_num(np.array(durations, np.float64), nan=-1),  # None becomes NaN
        [profile_with(*values) for values in numbers],
        np.array(profile_of, np.int64),
    )


@lru_cache(maxsize=20_000)
def profile_with(
    ci: bool,
    version: str,
    os: str,
    arch: str,
    shell: str,
    language: str,
    event_type: str,
    command: str | None,
    subcommand: str | None,
    feature: str | None,
    method: str | None,
    success: bool | None,
    exit_code: str | None,
    error_type: str | None,
    flags: str | None,
) -> Profile:
    """Return the profile of an event with these values.

    :param exit_code: a JSON number.
    :param flags: a JSON array.
    """
    name = name_of(command, subcommand, feature, method, event_type)
    outcome = success if success is not None else None if exit_code is None else float(exit_code) == 0
    items: list[tuple[Topic, ItemKey]] = [
        (Topic.NAME, name),
        (Topic.SHELL, (clean(shell),)),
        (Topic.LANGUAGE, (clean(language),)),
    ]
    if outcome is False or (error_type is not None and outcome is None):
        items.append((Topic.ERROR, (name[1], clean(exit_code or ""), clean(error_type or ""))))
    if flags is not None and name[0] == COMMAND:
        items += ((Topic.FLAG, (name[1], flag)) for flag in sorted(flag_names(json.loads(flags)))[:MAX_FLAGS])
    return Profile(Segment(ci, clean(version), clean(os), clean(arch)), tuple(items), outcome)


COMMAND, FEATURE, CUSTOM = "command", "feature", "custom"


def name_of(
    command: str | None, subcommand: str | None, feature: str | None, method: str | None, event_type: str
) -> tuple[str, str]:
    """Return the kind and the name of an event. Empty texts count as absent."""
    if command:
        return COMMAND, clean(f"{command} {subcommand}" if subcommand else command)
    if feature:
        return FEATURE, clean(f"{feature} {method}" if method else feature)
    return CUSTOM, clean(event_type)


def flag_names(flags: list[Any]) -> set[str]:
    """Return the flags without their values; what does not begin with ``-`` is not a flag."""
    return {clean(flag.partition("=")[0]) for flag in flags if isinstance(flag, str) and flag.startswith("-")}


@lru_cache(maxsize=10_000)
def clean(text: str) -> str:
    """Return a text that is safe to print, of limited length."""
    if text.isascii() and text.isprintable() and len(text) <= MAX_TEXT:
        return text
    return _UNSAFE.sub("\ufffd", text)[:MAX_TEXT]
