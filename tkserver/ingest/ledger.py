"""The books: what became of each event that was received, to the event."""

from __future__ import annotations

from collections import Counter

from tkserver.storage.errors import StorageError
from tkserver.storage.events import Outcome
from tkserver.wire.batch import Batch
from tkserver.wire.refusal import (
    EVENT_CODES,
    EVENT_ID_CONFLICT,
    INVALID_SCHEMA,
    InternalError,
    NonceReused,
    Overloaded,
    QuotaExceeded,
    StorageUnavailable,
)

Entry = tuple[str, str]
"""An outcome, and where there are several reasons for it, the code of one: the same that clients are told."""

STORED: Entry = ("stored", "")
DUPLICATE: Entry = ("duplicate", "")
NOT_TRACKED: Entry = ("not_tracked", "")
ERASED: Entry = ("erased", "")

REJECTED = "rejected"
"""For ever: the event breaks a rule."""

REFUSED = "refused"
"""For now: the client is to send it again, and then it is received once more."""

GIVEN_UP = "given_up"
"""Nobody waited any more when its turn to be written came: the client was gone, or had been told that it took too
long."""

_FOR_NOW = (
    *(refusal.code for refusal in (Overloaded, StorageUnavailable, NonceReused, QuotaExceeded, InternalError)),
    GIVEN_UP,
)

ENTRIES: tuple[Entry, ...] = (
    STORED,
    DUPLICATE,
    *((REJECTED, code) for code in EVENT_CODES),
    NOT_TRACKED,
    ERASED,
    *((REFUSED, code) for code in _FOR_NOW),
)
"""All that there are."""


class Ledger:
    """Counts events when they are received, and each of them once more when it is settled.

    At any time, ``received`` is the sum of ``settled`` and of what waits to be committed. The books are kept where it
    is known what became of an event, and not where it is answered: a client may be gone by then, or have been told
    something else because it took too long.

    :ivar received: events of batches that were read, or counted where they are not to be tracked.
    :ivar settled: events by what became of them.
    """

    def __init__(self) -> None:
        self.received = 0
        self.settled: Counter[Entry] = Counter(dict.fromkeys(ENTRIES, 0))

    def receive(self, batch: Batch) -> None:
        """A batch was read. What breaks a rule is rejected with that, whatever becomes of the rest."""
        self.received += len(batch.events) + len(batch.refusals)
        for refusal in batch.refusals:
            self.settled[REJECTED, refusal.code] += 1

    def leave(self, events: int) -> None:
        """So many events are not to be tracked."""
        self.received += events
        self.settled[NOT_TRACKED] += events

    def refuse(self, events: int, code: str) -> None:
        """So many events are not stored for now."""
        self.settled[REFUSED, code] += events

    def fail(self, events: int, error: BaseException | None) -> None:
        """So many events could not be stored."""
        self.refuse(events, StorageUnavailable.code if isinstance(error, StorageError) else InternalError.code)

    def settle(self, events: int, outcome: Outcome) -> None:
        """A submission of so many events was committed."""
        if outcome.nonce_reused:
            self.refuse(events, NonceReused.code)
        elif outcome.over_quota is not None:
            self.refuse(events, QuotaExceeded.code)
        elif outcome.duplicates or outcome.conflicts or outcome.unstorable or outcome.erased:
            self._enter(events, outcome)
        else:
            self.settled[STORED] += events

    def _enter(self, events: int, outcome: Outcome) -> None:
        conflicts, unstorable = outcome.conflicts, outcome.unstorable
        erased = outcome.erased - conflicts - unstorable  # which are not there, whoever they are of
        duplicates = outcome.duplicates - erased
        settled = self.settled
        settled[STORED] += events - len(duplicates) - len(erased) - len(conflicts) - len(unstorable)
        settled[DUPLICATE] += len(duplicates)
        settled[ERASED] += len(erased)
        settled[REJECTED, EVENT_ID_CONFLICT] += len(conflicts)
        settled[REJECTED, INVALID_SCHEMA] += len(unstorable)
