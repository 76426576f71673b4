"""The size and pace of transactions in the background."""

from __future__ import annotations

import pytest

from tkserver.operations.adaptive_batch import MAX_PAUSE, MAX_ROWS, MIN_ROWS, TARGET, AdaptiveBatch


def test_batch_adapts_to_speed_of_database() -> None:
    """When transactions are slow, they become smaller and pauses longer; when they are fast, they become larger."""
    batch = AdaptiveBatch()
    rows = batch.rows
    assert batch.pause_after(2 * TARGET) == pytest.approx(8 * TARGET)
    assert batch.rows < rows
    assert batch.pause_after(1000) == MAX_PAUSE
    for _ in range(10):
        batch.pause_after(2 * TARGET)
    assert batch.rows == MIN_ROWS
    for _ in range(100):
        batch.pause_after(TARGET / 10)
    assert batch.rows == MAX_ROWS
