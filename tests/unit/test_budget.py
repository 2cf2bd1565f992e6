"""Buffers get what the operator allows, and leave something to the others."""

from __future__ import annotations

from shim.budget import GIB, available, budget_of


def test_the_budget() -> None:
    assert budget_of(4.0, 100 * GIB) == 4 * GIB
    assert budget_of(4.0, 6 * GIB) == 3 * GIB
    assert budget_of(0.0, 6 * GIB) == 0


def test_there_is_some_memory() -> None:
    assert available() > 0
