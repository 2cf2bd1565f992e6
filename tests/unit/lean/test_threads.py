from __future__ import annotations

from shim.lean.threads import Condition, Event, Lock, RLock, start


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
