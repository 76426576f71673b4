"""Event accounting: the outcome of every event that was received."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tkserver.storage.errors import StorageError
from tkserver.storage.events import Outcome, Submission
from tkserver.wire.api_errors import (
    EVENT_CODES,
    InternalError,
    NonceReused,
    Overloaded,
    QuotaExceeded,
    StorageUnavailable,
)
from tkserver.wire.batch import Batch

Entry = tuple[str, str]
"""An outcome, and the error code if the outcome can have several reasons. Clients receive the same code."""

STORED: Entry = ("stored", "")
DUPLICATE: Entry = ("duplicate", "")
NOT_TRACKED: Entry = ("not_tracked", "")
ERASED: Entry = ("erased", "")

QUARANTINED = "quarantined"
"""The outcome of events that violate a rule: permanent, so that the client does not send them again."""

REFUSED = "refused"
"""The outcome of events that were not stored for a temporary reason: the client sends them again."""

GIVEN_UP = "given_up"
"""The code of events that were not written because nothing waited for them anymore: the client had disconnected, or
the request had timed out."""

_TEMPORARY = (
    *(error.code for error in (Overloaded, StorageUnavailable, NonceReused, QuotaExceeded, InternalError)),
    GIVEN_UP,
)

ENTRIES: tuple[Entry, ...] = (
    STORED,
    DUPLICATE,
    *((QUARANTINED, code) for code in EVENT_CODES),
    NOT_TRACKED,
    ERASED,
    *((REFUSED, code) for code in _TEMPORARY),
)
"""All possible entries."""


class Ledger:
    """Counts each event when it is received and again when its outcome is known.

    At any time, ``received`` equals the sum of ``settled`` plus the number of events in the queue. Outcomes are counted
    where they are decided, not where the response is sent: the client may have disconnected, or the request timed out.

    :ivar received: the number of events in all batches that were read, and in do-not-track requests.
    :param count_duplicates: called with an application and the number of its duplicates.
    :ivar settled: the number of events by outcome.
    """

    def __init__(self, count_duplicates: Callable[[tuple[int, int], int], object] = lambda *_: None) -> None:
        self._count_duplicates = count_duplicates
        self.received = 0
        self.settled: Counter[Entry] = Counter(dict.fromkeys(ENTRIES, 0))

    def receive(self, batch: Batch) -> None:
        """Count the events of a batch."""
        self.received += batch.size

    def skip(self, events: int) -> None:
        """Count the events of a do-not-track request."""
        self.received += events
        self.settled[NOT_TRACKED] += events

    def refuse(self, events: int, code: str) -> None:
        """Settle events that were not stored for a temporary reason."""
        self.settled[REFUSED, code] += events

    def fail(self, events: int, error: BaseException | None) -> None:
        """Settle events that could not be stored because of an exception."""
        self.refuse(events, StorageUnavailable.code if isinstance(error, StorageError) else InternalError.code)

    def settle(self, submission: Submission, outcome: Outcome) -> None:
        """Settle the events of a committed submission, except those that the database has refused."""
        if outcome.nonce_reused:
            self.refuse(submission.size, NonceReused.code)
        elif outcome.over_quota is not None:
            self.refuse(submission.size, QuotaExceeded.code)
        elif outcome.duplicates or outcome.refused or outcome.erased or submission.invalid:
            self._settle_each(submission, outcome)
        else:
            self.settled[STORED] += len(submission.rows)

    def _settle_each(self, submission: Submission, outcome: Outcome) -> None:
        settled, rows, refused = self.settled, submission.rows, outcome.refused
        erased = outcome.erased.intersection(rows) - refused  # the refused ones get an outcome of their own
        duplicates = outcome.duplicates - erased
        settled[STORED] += len(rows) - len(duplicates) - len(erased) - len(refused)
        settled[DUPLICATE] += len(duplicates)
        self._count_duplicates(submission.application, len(duplicates))
        settled[ERASED] += len(erased)
        for index, event in submission.invalid.items():
            settled[ERASED if index in outcome.erased else (QUARANTINED, event.code)] += 1
