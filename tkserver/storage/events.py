"""Events into their table: any number of submissions, one statement, one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tkserver.storage.errors import DataRefused, StorageError
from tkserver.storage.pool import Execute, Pool
from tkserver.storage.quota import Allowance
from tkserver.wire.event import Environment, Event, Service

NONCE_LIFETIME = "20 minutes"
"""For how long a nonce may not be used again: longer than both sides of the timestamp's window together."""


class Row(NamedTuple):
    """An event as it goes to the database: JSON arrays, in the order in which ``PREPARE_STORE`` takes them apart.

    :ivar origin: what most events of a batch have in common, and many a batch has once: who sent them, from where.
        Lacks its closing bracket, for the events are its last element.
    :ivar values: the rest.
    """

    event_id: UUID
    user_id: str
    origin: bytes
    values: bytes


class Submission(Struct, frozen=True):
    """What one request asks to have stored.

    :ivar nonce: ``None`` where the request had none.
    :ivar rows: by the event's place in the batch, from 0; at least one.
    :ivar metered: whether its application has a quota.
    """

    org_id: UUID
    app_id: UUID
    nonce: str | None
    rows: dict[int, Row]
    metered: bool = False

    @classmethod
    def of(
        cls, org_id: UUID, app_id: UUID, nonce: str | None, events: Mapping[int, Event], *, metered: bool = False
    ) -> Submission:
        origins: dict[Origin, bytes] = {}
        return cls(org_id, app_id, nonce, {place: _row(event, origins) for place, event in events.items()}, metered)

    @property
    def application(self) -> tuple[int, int]:
        """Whose events these are, to be looked up by: the hash of a UUID is computed in Python, and slow."""
        return self.org_id.int, self.app_id.int

    @property
    def bytes(self) -> int:
        """What it takes up while it waits, roughly."""
        return sum(len(row.origin) + len(row.values) for row in self.rows.values())


class Outcome(Struct, frozen=True):
    """What became of a submission that was committed.

    :ivar nonce_reused: nothing of it was stored, for its nonce belongs to another request.
    :ivar duplicates: the places of the events that this application had already sent, in this or in another batch.
    :ivar conflicts: the places of the events whose id belongs to another application.
    :ivar unstorable: the places of the events that the database will not take.
    :ivar over_quota: nothing of it was stored, for it has more new events than this leaves room for.
    :ivar erased: the places of the events that are not stored, or no longer, for their users are erased.
    :ivar problem: why it cannot be answered as stored, although it is.
    """

    nonce_reused: bool = False
    duplicates: frozenset[int] = frozenset()
    conflicts: frozenset[int] = frozenset()
    unstorable: frozenset[int] = frozenset()
    over_quota: Allowance | None = None
    erased: frozenset[int] = frozenset()
    problem: StorageError | None = None

    def accepts_any_of(self, submission: Submission) -> bool:
        """Whether at least one event of the submission that this is the outcome of is now stored."""
        return not self.nonce_reused and len(submission.rows) > len(self.conflicts) + len(self.unstorable)

    def newly_stored(self, submission: Submission) -> int:
        """How many events of the submission that this is the outcome of were not stored before, and now are."""
        if self.nonce_reused or self.over_quota is not None:
            return 0
        return len(submission.rows) - len(self.duplicates) - len(self.conflicts) - len(self.unstorable)

    def merged_with(self, other: Outcome) -> Outcome:
        """The outcome of two halves of one submission."""
        return Outcome(
            nonce_reused=self.nonce_reused or other.nonce_reused,
            duplicates=self.duplicates | other.duplicates,
            conflicts=self.conflicts | other.conflicts,
            unstorable=self.unstorable | other.unstorable,
        )


_ALL_STORED = Outcome()

# The requests come as one JSON array of arrays, each with its origins as arrays again, and these with their events:
# PostgreSQL takes that apart about as fast as anything else that one round trip allows. It answers with the exceptions
# only: a row (request, null, null) for a request whose nonce was used before, and a row (request, event id, whether
# this application owns it) for each event that was not inserted. Under REPEATABLE READ every row that an id collides
# with is visible to this same statement, or the statement fails and is tried again.
#
# Most often there are no exceptions: where as many rows were inserted as came in, nothing is compared one by one.
_STATEMENT = f"""
PREPARE tkserver_store (jsonb) AS
WITH request AS MATERIALIZED (
    SELECT n AS request, (r->>0)::uuid AS org_id, (r->>1)::uuid AS app_id, r->>2 AS nonce, r->3 AS origins
    FROM jsonb_array_elements($1) WITH ORDINALITY AS t (r, n)
), fresh AS MATERIALIZED (
    SELECT * FROM request AS r
    WHERE r.nonce IS NULL OR (  -- not NOT EXISTS, for which all nonces would be read and hashed
        SELECT true FROM nonces AS n
        WHERE n.app_id = r.app_id AND n.org_id = r.org_id AND n.nonce = r.nonce
          AND n.used_at > now() - interval '{NONCE_LIFETIME}'
    ) IS NULL
), origin AS MATERIALIZED (
    SELECT
        f.request, f.org_id, f.app_id, o->>0 AS schema_version,
        o->>1 AS service_name, o->>2 AS service_version, o->>3 AS service_language, o->>4 AS service_language_version,
        o->>5 AS user_id, o->>6 AS session_id,
        o->>7 AS os, o->>8 AS os_version, o->>9 AS arch, (o->>10)::boolean AS ci, o->>11 AS shell,
        o->>12 AS sdk_version, o->13 AS events
    FROM fresh AS f, jsonb_array_elements(f.origins) AS o
), incoming AS MATERIALIZED (
    SELECT  -- not o.*: a row for each event, and all of them in each row
        request, org_id, app_id, schema_version,
        service_name, service_version, service_language, service_language_version,
        user_id, session_id, os, os_version, arch, ci, shell, sdk_version,
        (e->>0)::uuid AS event_id, e
    FROM origin AS o, jsonb_array_elements(o.events) AS e
), stored AS (
    INSERT INTO events (
        org_id, app_id, event_id, schema_version, timestamp,
        service_name, service_version, service_language, service_language_version,
        user_id, session_id, os, os_version, arch, ci, shell,
        event_type, event_category, event_data,
        sdk_version, transmission_timestamp, batch_size, retry_count
    )
    SELECT
        org_id, app_id, event_id, schema_version, (e->>1)::timestamptz,
        service_name, service_version, service_language, service_language_version,
        user_id, session_id, os, os_version, arch, ci, shell,
        e->>2, e->>3, e->4,
        sdk_version, (e->>5)::timestamptz, (e->>6)::int, (e->>7)::int
    FROM incoming
    ORDER BY event_id, request
    ON CONFLICT (event_id) DO NOTHING
    RETURNING event_id, org_id, app_id
), every AS MATERIALIZED (
    SELECT (SELECT count(*) FROM stored) = (SELECT count(*) FROM incoming) AS one_stored
), missed AS MATERIALIZED (
    SELECT i.request, i.event_id, coalesce((
        SELECT (o.org_id, o.app_id) = (i.org_id, i.app_id) FROM events AS o WHERE o.event_id = i.event_id
    ), false) AS own
    FROM incoming AS i
    WHERE NOT (SELECT one_stored FROM every) AND NOT EXISTS (
        SELECT FROM stored AS s
        WHERE s.event_id = i.event_id AND s.org_id = i.org_id AND s.app_id = i.app_id
    )
), burnt AS (
    INSERT INTO nonces (org_id, app_id, nonce)
    SELECT f.org_id, f.app_id, f.nonce FROM fresh AS f
    WHERE f.nonce IS NOT NULL AND ((SELECT one_stored FROM every) OR f.request IN (
        SELECT i.request FROM incoming AS i LEFT JOIN missed AS m USING (request, event_id)
        WHERE m.own IS DISTINCT FROM false
    ))
    ON CONFLICT (app_id, org_id, nonce) DO UPDATE SET used_at = excluded.used_at
)
SELECT r.request, NULL::text, NULL::boolean FROM request AS r
WHERE r.request NOT IN (SELECT f.request FROM fresh AS f)
UNION ALL
SELECT m.request, m.event_id::text, m.own FROM missed AS m
"""

PREPARE_STORE = (
    # To plan the statement anew takes as long as to store a few events: it is planned once for each connection, and
    # perhaps while the tables are still empty. A plan that reads them whole would be right then, and not for long.
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_seqscan = off",
    _STATEMENT,
)
"""Makes a connection ready for :class:`EventStore`."""

_STORE = "EXECUTE tkserver_store (%s)"

_FORGET_NONCES = f"DELETE FROM nonces WHERE used_at < now() - interval '{NONCE_LIFETIME}'"

PROBE = """
INSERT INTO readiness (checked_at) VALUES (now()) ON CONFLICT (id) DO UPDATE SET checked_at = excluded.checked_at
"""
"""Shows that the database accepts writes."""


class EventStore:
    """The events of every application.

    :param pool: on whose connections ``PREPARE_STORE`` was run.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def store(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store all submissions in one commit, or none.

        No two of them may have the same nonce for the same application.

        :return: what became of each.
        :raise DataRefused: when there is a value among them that the database will never take.
        :raise StorageError: when it did not work this time.
        """
        return await store_all(self._pool.run, submissions)

    async def store_sound_part(self, submission: Submission) -> Outcome:
        """Store, in one commit, what the database takes of a submission that it refused as a whole.

        Halves of it are tried until each event that is refused stands alone.
        """
        return await self._pool.transaction(partial(store_sound_part, submission=submission))

    async def forget_nonces(self) -> None:
        """Delete the nonces that are too old to matter."""
        await self._pool.run(_FORGET_NONCES)

    async def probe(self) -> None:
        """Write something.

        :raise StorageError: when the database accepts no writes.
        """
        await self._pool.run(PROBE)


async def store_all(execute: Execute, submissions: Sequence[Submission]) -> list[Outcome]:
    """Store all submissions, or none, in the transaction that ``execute`` runs in, or in one of their own."""
    requests = b"[" + b",".join(map(_request, submissions)) + b"]"
    exceptions: dict[int, dict[str | None, bool]] = {}
    for request, event_id, own in await execute(_STORE, (requests.decode(),)):
        exceptions.setdefault(request, {})[event_id] = own
    stored: dict[tuple[int, int], set[int]] = {}
    return [
        _outcome(s.rows, exceptions.get(n, {}), stored.setdefault(s.application, set()))
        for n, s in enumerate(submissions, start=1)
    ]


async def store_sound_part(execute: Execute, submission: Submission) -> Outcome:
    """Store what the database takes of a submission, in the transaction that ``execute`` runs in."""
    await execute("SET CONSTRAINTS ALL IMMEDIATE")  # what is looked at with the COMMIT only can blame no event
    return await _store_halves(execute, submission)


async def _store_halves(execute: Execute, submission: Submission) -> Outcome:
    await execute("SAVEPOINT halves")
    try:
        (outcome,) = await store_all(execute, [submission])
        return outcome
    except DataRefused:
        await execute("ROLLBACK TO SAVEPOINT halves")
    places = sorted(submission.rows)
    if len(places) == 1:
        return Outcome(unstorable=frozenset(places))
    first, second = (
        replace(submission, rows={place: submission.rows[place] for place in half})
        for half in (places[: len(places) // 2], places[len(places) // 2 :])
    )
    outcome = await _store_halves(execute, first)
    if outcome.nonce_reused:
        return outcome
    if outcome.accepts_any_of(first):
        second = replace(second, nonce=None)  # the first half has just used it
    return outcome.merged_with(await _store_halves(execute, second))


def _request(submission: Submission) -> bytes:
    """A submission as ``PREPARE_STORE`` takes it: each id once, for the first of a kind stays."""
    head = msgspec.json.encode((submission.org_id, submission.app_id, submission.nonce))
    seen: set[int] = set()
    origins: dict[bytes, list[bytes]] = {}
    for row in submission.rows.values():
        number = row.event_id.int
        if number not in seen:
            seen.add(number)
            origins.setdefault(row.origin, []).append(row.values)
    texts = [b"%s,[%s]]" % (origin, b",".join(values)) for origin, values in origins.items()]
    return b"%s,[%s]]" % (head[:-1], b",".join(texts))


def _outcome(rows: dict[int, Row], exceptions: dict[str | None, bool], stored: set[int]) -> Outcome:
    """
    :param exceptions: the ids that were not inserted, and whether this application owns them; or the one key
        ``None`` where the nonce was used before.
    :param stored: the ids that this application has stored so far in this commit, which this adds to.
    """
    if None in exceptions:
        return Outcome(nonce_reused=True)
    ids = {row.event_id.int for row in rows.values()}
    if not exceptions and len(ids) == len(rows) and stored.isdisjoint(ids):
        stored |= ids
        return _ALL_STORED
    duplicates: list[int] = []
    conflicts: list[int] = []
    for place, row in rows.items():
        own = exceptions.get(str(row.event_id))
        if own is False:
            conflicts.append(place)
        elif own or row.event_id.int in stored:
            duplicates.append(place)
        else:
            stored.add(row.event_id.int)
    return Outcome(duplicates=frozenset(duplicates), conflicts=frozenset(conflicts))


Origin = tuple[str, Service, str, "str | None", Environment, str]


def _row(event: Event, origins: dict[Origin, bytes]) -> Row:
    """
    :param origins: those of the batch that were written already, to which this may add.
    """
    occurrence, metadata = event.event, event.metadata
    origin = (
        event.schema_version,
        event.service,
        event.user_id,
        event.session_id,
        event.environment,
        metadata.sdk_version,
    )
    written = origins.get(origin)
    if written is None:
        written = origins[origin] = _origin(*origin)
    values = (
        event.event_id,
        _utc(event.timestamp),
        occurrence.type,
        occurrence.category,
        occurrence.data,
        _utc(metadata.transmission_timestamp),
        metadata.batch_size,
        metadata.retry_count,
    )
    return Row(event.event_id, event.user_id, written, msgspec.json.encode(values))


def _origin(
    schema_version: str,
    service: Service,
    user_id: str,
    session_id: str | None,
    environment: Environment,
    sdk_version: str,
) -> bytes:
    values = (
        schema_version,
        service.name,
        service.version,
        service.language,
        service.language_version,
        user_id,
        session_id,
        environment.os,
        environment.os_version,
        environment.arch,
        environment.ci,
        environment.shell,
        sdk_version,
    )
    return msgspec.json.encode(values)[:-1]


def _utc(time: datetime) -> datetime:
    """PostgreSQL takes offsets of less than 16 hours only; RFC 3339 has them up to 24."""
    return time if time.tzinfo is timezone.utc else time.astimezone(timezone.utc)
