"""Reservations of memory for request bodies."""

from __future__ import annotations

from twisted.internet.task import Clock

from tkserver.web.http.body_budget import BodyBudget


def test_reservations_are_granted_in_order() -> None:
    """A reservation is granted while there is memory; small ones do not overtake large ones."""
    clock = Clock()
    budget = BodyBudget(100, clock)
    granted: list[str] = []
    first = budget.reserve(60, lambda: granted.append("first"))
    large = budget.reserve(50, lambda: granted.append("large"))
    small = budget.reserve(10, lambda: granted.append("small"))
    assert (first.granted, large.granted, small.granted) == (True, False, False)
    first.release()
    clock.advance(0)
    assert granted == ["large", "small"]


def test_released_reservation_is_skipped() -> None:
    """A reservation that is released while it waits is never granted, and returns no memory."""
    clock = Clock()
    budget = BodyBudget(100, clock)
    granted: list[str] = []
    first = budget.reserve(100, lambda: None)
    waiting = budget.reserve(100, lambda: granted.append("waiting"))
    budget.reserve(100, lambda: granted.append("next"))
    waiting.release()
    first.release()
    clock.advance(0)
    assert granted == ["next"]
    assert not budget.reserve(1, lambda: None).granted


def test_reservation_larger_than_the_budget() -> None:
    """A reservation of more than the budget reserves the whole budget, so that one body is always possible."""
    assert BodyBudget(10, Clock()).reserve(1000, lambda: None).granted
