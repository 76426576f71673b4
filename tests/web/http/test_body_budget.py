"""Room for bodies: claimed before they are read, first come, first served."""

from __future__ import annotations

from twisted.internet.task import Clock

from tkserver.web.http.body_budget import BodyBudget


def test_room() -> None:
    """Claims are granted as long as there is room, and later ones wait behind earlier ones."""
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


def test_given_up() -> None:
    """Who stops waiting is skipped, and gives back nothing that it did not have."""
    clock = Clock()
    budget = BodyBudget(100, clock)
    granted: list[str] = []
    first = budget.reserve(100, lambda: None)
    gone = budget.reserve(100, lambda: granted.append("gone"))
    budget.reserve(100, lambda: granted.append("next"))
    gone.release()
    first.release()
    clock.advance(0)
    assert granted == ["next"]
    assert not budget.reserve(1, lambda: None).granted


def test_more_than_there_is() -> None:
    """A reserve for more than all gets all: one body at a time is always possible."""
    assert BodyBudget(10, Clock()).reserve(1000, lambda: None).granted
