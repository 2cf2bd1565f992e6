from __future__ import annotations

import time

import pytest

from shim.errors import NotFound
from shim.proto.known import Empty, Timestamp
from shim.proto.wire import Message
from shim.ttrpc.call import Call, Deferred


def test_a_call_without_a_timeout_has_no_deadline() -> None:
    call = Call("service", "Method", 0)
    assert call.deadline is None
    assert call.remaining() is None


def test_a_call_with_a_timeout_knows_what_remains() -> None:
    before = time.monotonic()
    call = Call("service", "Method", 5_000_000_000)
    assert call.deadline is not None
    assert before + 5 <= call.deadline <= time.monotonic() + 5
    remaining = call.remaining()
    assert remaining is not None
    assert 0 < remaining <= 5


def test_what_remains_is_never_negative() -> None:
    call = Call("service", "Method", 1)
    call.deadline = time.monotonic() - 1
    assert call.remaining() == 0


@pytest.mark.parametrize("first", [True, False])
def test_an_answer_is_delivered_before_or_after_it_is_waited_for(first: bool) -> None:
    got: list[Message | Exception] = []
    deferred = Deferred()
    if first:
        deferred.resolve(Timestamp(seconds=1))
    deferred.subscribe(got.append)
    if not first:
        deferred.resolve(Timestamp(seconds=1))
    assert got == [Timestamp(seconds=1)]


def test_the_first_answer_counts() -> None:
    got: list[Message | Exception] = []
    deferred = Deferred()
    deferred.subscribe(got.append)
    error = NotFound("gone")
    deferred.fail(error)
    deferred.resolve(Empty())
    assert got == [error]


def test_an_abandoned_call_hears_nothing_but_its_owner_does() -> None:
    told: list[str] = []
    got: list[Message | Exception] = []
    deferred = Deferred(on_abandon=lambda: told.append("abandoned"))
    deferred.subscribe(got.append)
    deferred.abandon()
    deferred.abandon()
    deferred.resolve(Empty())
    assert told == ["abandoned"]
    assert got == []


def test_an_answered_call_cannot_be_abandoned() -> None:
    told: list[str] = []
    deferred = Deferred(on_abandon=lambda: told.append("abandoned"))
    deferred.resolve(Empty())
    deferred.abandon()
    assert told == []


def test_one_deferred_answers_one_call() -> None:
    deferred = Deferred()
    deferred.subscribe(lambda _: None)
    with pytest.raises(RuntimeError, match="one call only"):
        deferred.subscribe(lambda _: None)
