"""Entries as lines: text for people, JSON for programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import msgspec

from tkserver.log.entries import Entry
from tkserver.log.tracebacks import name_of

Render = Callable[[Entry], bytes]
"""Gives the line of an entry, without its end."""

IDS = ("org_id", "app_id", "request_id")
"""Fields that stand at the end of a text."""

_json = msgspec.json.Encoder().encode


def text(entry: Entry) -> bytes:
    """As ``twistd`` writes it: local time, who says it, what; further lines begin with a tab."""
    return f"{_local_second(int(entry.time))} {_said(entry)}".encode("utf-8", "backslashreplace")


def text_without_time(entry: Entry) -> bytes:
    """For where the time is noted anyway."""
    return _said(entry).encode("utf-8", "backslashreplace")


def json(entry: Entry) -> bytes:
    """One flat object."""
    line = {
        "time": f"{_utc_second(int(entry.time))}.{int(entry.time % 1 * 1e6):06}Z",
        "level": entry.level,
        "event": entry.event,
        "message": entry.message,
        "logger": entry.logger,
        **entry.fields,
    }
    if entry.failure is not None:
        line["exception"] = name_of(entry.failure.value)
        line["traceback"] = entry.traceback or ""
    try:
        return _json(line)
    except UnicodeEncodeError:  # lone surrogates
        return _json({key: str(value).encode("utf-8", "backslashreplace").decode() for key, value in line.items()})


def _said(entry: Entry) -> str:
    fields = entry.fields
    ids = "".join([f" {name}={fields[name]}" for name in IDS if name in fields])
    said = f"[{entry.system}] {entry.message}{ids}"
    if entry.failure is not None:
        said = f"{said}\n{entry.traceback}"
    return said.replace("\n", "\n\t") if "\n" in said else said


@lru_cache(2)
def _local_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(second))


@lru_cache(2)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
