from __future__ import annotations

import threading

import pytest

from shim.lean import threads
from shim.lean.threads import Condition, Event, Lock, RLock, at_once, start


def test_event_wakes_everyone() -> None:
    go, done = Event(), Event()
    lock, seen = Lock(), []

    def wait() -> None:
        go.wait()
        with lock:
            seen.append(1)
            if len(seen) == 20:
                done.set()

    for _ in range(20):
        start(wait)
    assert not go.wait(0.01)
    go.set()
    assert done.wait(10)
    assert go.is_set()
    go.clear()
    assert not go.wait(0)


def test_condition_hands_over_every_item() -> None:
    condition, done = Condition(), Event()
    items: list[int] = []
    taken: list[int] = []

    def consume() -> None:
        for _ in range(50):
            with condition:
                condition.wait_for(lambda: bool(items))
                taken.append(items.pop())
                if len(taken) == 200:
                    done.set()

    for _ in range(4):
        start(consume)
    for number in range(200):
        with condition:
            items.append(number)
            condition.notify_all()
    assert done.wait(10)
    assert sorted(taken) == list(range(200))


def test_condition_that_times_out_forgets_its_waiter() -> None:
    condition = Condition()
    with condition:
        assert not condition.wait(0.01)
        assert not condition.wait_for(lambda: False, 0.01)
        assert condition.wait_for(lambda: True, 0)
        condition.notify_all()  # nobody is there to be woken


def test_reentrant_lock() -> None:
    lock = RLock()
    with lock, lock:
        pass


def test_answers_come_in_the_order_of_the_items() -> None:
    met = threading.Barrier(4, timeout=10)

    def double(number: int) -> int:
        if number < 4:
            met.wait()  # so many are at work at the same time
        return 2 * number

    assert at_once(double, range(100), 4) == [2 * number for number in range(100)]
    assert at_once(double, [], 4) == []
    assert at_once(str, [7], 1) == ["7"]


def test_no_more_threads_than_were_allowed() -> None:
    seen = set()
    at_once(lambda _: seen.add(threading.get_ident()), range(1000), 2)
    assert len(seen) <= 2
    assert threading.get_ident() in seen


def test_the_first_failure_is_raised_and_nothing_more_begun() -> None:
    begun: list[int] = []
    met = threading.Barrier(2, timeout=10)

    def fail(number: int) -> None:
        begun.append(number)
        met.wait()
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"^0$"):
        at_once(fail, range(50), 2)
    assert sorted(begun) == [0, 1]


def test_without_a_thread_to_be_had_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_function: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start", refuse)
    assert at_once(str, range(3), 8) == ["0", "1", "2"]
