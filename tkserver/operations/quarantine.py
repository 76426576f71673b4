"""The quarantine: show, replay and delete invalid events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple
from uuid import UUID

from tkserver.operations.apps import find_app
from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.models import App, parse_uuid
from tkserver.operations.paced import Clock, PacedTransactions, Sleep
from tkserver.storage.blocking import Connection, complete, executor, rows, transaction, value
from tkserver.storage.event_store import insert_accepted
from tkserver.storage.events import Outcome, Submission
from tkserver.storage.quarantine import LOCK
from tkserver.storage.quarantine_reasons import REASONS, Reason
from tkserver.storage.quota_store import insert_and_check_conflicts, insert_within_quota
from tkserver.storage.store_statement import PREPARE_STORE
from tkserver.wire.api_errors import ApiError
from tkserver.wire.batch import read_batch, run_steps
from tkserver.wire.event import Event

REASON_DAYS = 7
"""Days for which reasons are kept if the events themselves are not kept."""

REPLAY_ROWS = 100
"""Maximum number of events in one transaction of a replay. Each can be as long as a request body."""


@dataclass(frozen=True)
class Selection:
    """The conditions that quarantined events meet. ``None`` means no condition.

    :ivar ids: sequence numbers.
    """

    app: App | None = None
    ids: tuple[int, ...] | None = None
    code: str | None = None
    sdk: str | None = None
    sdk_version: str | None = None

    def condition(self) -> tuple[str, list[object]]:
        """Return an SQL condition for the table ``quarantine AS q``, and its parameters."""
        app_id, org_id = (None, None) if self.app is None else self.app.key
        conditions = {
            "q.app_id = %s": app_id,
            "q.org_id = %s": org_id,
            "q.id = ANY (%s)": None if self.ids is None else list(self.ids),
            "q.code = %s": self.code,
            "q.sdk = %s": self.sdk,
            "q.sdk_version = %s": self.sdk_version,
        }
        used = {condition: parameter for condition, parameter in conditions.items() if parameter is not None}
        return " AND ".join(used) or "true", list(used.values())


class QuarantinedEvent(NamedTuple):
    """A row of the table ``quarantine``.

    :ivar event: JSON text; ``None`` if texts are not kept.
    """

    id: int
    app: str
    event_id: str | None
    code: str
    message: str
    sdk: str | None
    sdk_version: str | None
    request_id: str
    batch_index: int
    times: int
    received_at: datetime
    last_received_at: datetime
    event: str | None


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    :ivar stored: events that are stored now, and were not before.
    :ivar duplicates: events that were stored already.
    :ivar left: events that are still in quarantine.
    """

    stored: int = 0
    duplicates: int = 0
    left: int = 0

    def __add__(self, other: Replay) -> Replay:
        return Replay(self.stored + other.stored, self.duplicates + other.duplicates, self.left + other.left)


_EVENTS = """
SELECT
    q.id, coalesce(a.name, q.app_id::text), q.event_id::text, q.code, q.message, q.sdk, q.sdk_version,
    q.request_id, q.batch_index, q.times, q.received_at, q.last_received_at, q.event
FROM quarantine AS q LEFT JOIN apps AS a USING (app_id, org_id)
WHERE {condition} ORDER BY q.last_received_at DESC, q.id DESC LIMIT %s
"""

_FIND_EVENT = "SELECT id FROM quarantine WHERE event_id = %s"
_FIND_ID = "SELECT id FROM quarantine WHERE id = %s"

_APPS = "SELECT DISTINCT app_id::text, org_id::text FROM quarantine AS q WHERE {condition} ORDER BY 1, 2"

_DELETE = """
DELETE FROM quarantine WHERE id = ANY (ARRAY(
    SELECT q.id FROM quarantine AS q
    WHERE q.app_id = %s AND q.org_id = %s AND {condition} ORDER BY q.received_at, q.id LIMIT %s
)) RETURNING true
"""


def list_reasons(connection: Connection, app: App | None) -> list[Reason]:
    """Return the reasons of all quarantined events of one application or of all, latest first."""
    condition, parameters = Selection(app).condition()
    return [Reason(*row) for row in rows(connection, REASONS.format(condition=condition), *parameters)]


def list_events(connection: Connection, selection: Selection, limit: int) -> list[QuarantinedEvent]:
    """Return quarantined events, latest first."""
    condition, parameters = selection.condition()
    return [QuarantinedEvent(*row) for row in rows(connection, _EVENTS.format(condition=condition), *parameters, limit)]


def select(connection: Connection, name_or_id: str) -> Selection:
    """Return a selection: an application by its name or id, or an event by its number in the quarantine or its id.

    :raise UnknownObject: if there is neither.
    """
    try:
        return Selection(find_app(connection, name_or_id))
    except UnknownObject:
        found = _find_event(connection, name_or_id)
        if not found:
            raise UnknownObject(
                f"there is neither an application nor a quarantined event {name_or_id!r};"
                " tkserver quarantine list shows the applications that have quarantined events"
            ) from None
        return Selection(ids=found)


_MAX_ID = 2**63 - 1


def _find_event(connection: Connection, text: str) -> tuple[int, ...]:
    if text.isascii() and text.isdecimal() and int(text[:20]) <= _MAX_ID:
        found = rows(connection, _FIND_ID, int(text[:20]))
    else:
        event_id = parse_uuid(text)
        found = [] if event_id is None else rows(connection, _FIND_EVENT, str(event_id))
    return tuple(number for (number,) in found)


# --- deletion


def delete(connection: Connection, selection: Selection, clock: Clock, sleep: Sleep) -> int:
    """Delete the selected events, in short transactions, and return their number."""
    condition, parameters = selection.condition()
    return _delete(connection, condition, parameters, clock, sleep)


def delete_events_of_user(connection: Connection, user_id: str, app: App | None, clock: Clock, sleep: Sleep) -> int:
    """Delete the quarantined events of a user in one application or in all, and return their number."""
    condition, parameters = Selection(app).condition()
    return _delete(connection, f"{condition} AND q.user_id = %s", [*parameters, user_id], clock, sleep)


def prune(connection: Connection, days: int, default_retention: int | None, clock: Clock, sleep: Sleep) -> int:
    """Delete the events that are too old, and return their number.

    They are too old after ``days``, or after the retention of their application if that is shorter.

    :param days: 0 deletes the texts of all events, and the reasons after :data:`REASON_DAYS`.
    :param default_retention: for applications without a retention of their own; ``None`` if there is no limit.
    """
    if days == 0:
        _delete_texts(connection, clock, sleep)
    condition = """
        q.received_at < now() - make_interval(days => least(%s, coalesce(
            (SELECT a.retention_days FROM apps AS a WHERE a.app_id = q.app_id AND a.org_id = q.org_id), %s
        )))
    """
    return _delete(connection, condition, [days or REASON_DAYS, default_retention], clock, sleep)


def _delete(connection: Connection, condition: str, parameters: Sequence[object], clock: Clock, sleep: Sleep) -> int:
    paced = PacedTransactions(clock, sleep)
    total = 0
    for app_id, org_id in rows(connection, _APPS.format(condition=condition), *parameters):
        work = partial(_delete_batch, connection, (app_id, org_id), condition, parameters)
        while deleted := paced.run(work):
            total += deleted
    return total


def _delete_batch(
    connection: Connection, key: tuple[str, str], condition: str, parameters: Sequence[object], max_rows: int
) -> int:
    with _locked(connection, key):
        return len(rows(connection, _DELETE.format(condition=condition), *key, *parameters, max_rows))


_DELETE_TEXTS = """
WITH changed AS MATERIALIZED (
    SELECT id, bytes FROM quarantine WHERE app_id = %s AND org_id = %s AND event IS NOT NULL LIMIT %s
), updated AS (
    UPDATE quarantine AS q SET event = NULL, user_id = NULL, bytes = 0 FROM changed AS c WHERE q.id = c.id
)
UPDATE quarantine_usage SET bytes = bytes - (SELECT coalesce(sum(bytes), 0) FROM changed)
WHERE app_id = %s AND org_id = %s RETURNING (SELECT count(*) FROM changed)
"""


def _delete_texts(connection: Connection, clock: Clock, sleep: Sleep) -> None:
    paced = PacedTransactions(clock, sleep)
    for key in rows(connection, _APPS.format(condition="q.event IS NOT NULL")):
        while paced.run(partial(_delete_batch_of_texts, connection, (key[0], key[1]))):
            pass


def _delete_batch_of_texts(connection: Connection, key: tuple[str, str], max_rows: int) -> int:
    with _locked(connection, key):
        return int(value(connection, _DELETE_TEXTS, *key, max_rows, *key))


@contextmanager
def _locked(connection: Connection, key: tuple[str, str]) -> Iterator[None]:
    """Open a transaction in which no other one can change the quarantine of an application."""
    with transaction(connection):
        rows(connection, LOCK, *key)
        yield


# --- replay


def replay(
    connection: Connection,
    selection: Selection,
    clock: Clock,
    sleep: Sleep,
    progress: Callable[[int], object] = lambda _: None,
) -> Replay:
    """Validate the selected events again, store those that are valid now, and remove them from the quarantine.

    ``received_at`` of a stored event is the time of the replay. It counts towards the quota of this month.

    :param progress: called after each transaction with the number of events that it validated.
    """
    condition, parameters = selection.condition()
    result = Replay()
    with _store_prepared(connection):
        for app_id, org_id in rows(connection, _APPS.format(condition=condition), *parameters):
            batches = _Batches(connection, (app_id, org_id), condition, parameters)
            paced = PacedTransactions(clock, sleep)
            while replayed := paced.run(batches.replay_next):
                result += replayed
                progress(replayed.stored + replayed.duplicates + replayed.left)
    return result


_NEXT = """
SELECT q.id, q.event FROM quarantine AS q
WHERE q.app_id = %s AND q.org_id = %s AND q.id > %s AND {condition} ORDER BY q.id LIMIT %s
"""

_LOCK_QUOTA = "SELECT monthly_quota IS NOT NULL FROM apps WHERE app_id = %s AND org_id = %s FOR NO KEY UPDATE"


class _Batches:
    """The selected events of an application, in the order of their numbers."""

    def __init__(
        self, connection: Connection, key: tuple[str, str], condition: str, parameters: Sequence[object]
    ) -> None:
        self._connection = connection
        self._key = key
        self._sql = _NEXT.format(condition=condition)
        self._parameters = parameters
        self._last = 0

    def replay_next(self, max_rows: int) -> Replay | None:
        """Replay the next events in one transaction; return ``None`` if there are none."""
        connection, key = self._connection, self._key
        with transaction(connection):
            has_quota = bool(value(connection, _LOCK_QUOTA, *key))  # in the same order as servers
            rows(connection, LOCK, *key)
            limit = min(max_rows, REPLAY_ROWS)
            found = rows(connection, self._sql, *key, self._last, *self._parameters, limit)
            if not found:
                return None
            valid = {number: event for number, text in found if (event := _validated(text))}
            outcomes = self._store(valid, has_quota=has_quota)
            duplicates = [number for number, is_duplicate in outcomes.items() if is_duplicate]
            rows(connection, "DELETE FROM quarantine WHERE id = ANY (%s)", list(outcomes))
        self._last = found[-1][0]
        stored = len(outcomes) - len(duplicates)
        return Replay(stored, len(duplicates), len(found) - len(outcomes))

    def _store(self, events: dict[int, Event], *, has_quota: bool) -> dict[int, bool]:
        """Store events, by their numbers.

        :return: the numbers of those that are stored now, with true if they were stored before.
        """
        if not has_quota:
            return self._store_together(events, has_quota=False)
        results: dict[int, bool] = {}
        for number, event in events.items():  # a quota stores all events of a submission, or none
            results |= self._store_together({number: event}, has_quota=True)
        return results

    def _store_together(self, events: dict[int, Event], *, has_quota: bool) -> dict[int, bool]:
        if not events:
            return {}
        app_id, org_id = map(UUID, self._key)
        submission = Submission.from_events(org_id, app_id, None, events, has_quota=has_quota)
        insert = insert_within_quota if has_quota else insert_and_check_conflicts
        (outcome,) = complete(insert(executor(self._connection), [submission], insert_accepted))
        return _stored(submission, outcome)


def _stored(submission: Submission, outcome: Outcome) -> dict[int, bool]:
    if outcome.nothing_stored:
        return {}
    return {index: index in outcome.duplicates for index in submission.rows if index not in outcome.refused}


def _validated(text: str | None) -> Event | None:
    """Return the event if it is valid now."""
    if text is None:
        return None
    try:
        return run_steps(read_batch(b'{"events":[%s]}' % text.encode())).events.get(0)
    except ApiError:  # nested too deeply
        return None


@contextmanager
def _store_prepared(connection: Connection) -> Iterator[None]:
    """Prepare the store statement on a connection."""
    for statement in PREPARE_STORE:
        rows(connection, statement)
    yield
    for statement in ("DEALLOCATE tkserver_store", "RESET enable_seqscan", "RESET plan_cache_mode"):
        rows(connection, statement)
