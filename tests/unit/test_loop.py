from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from fakes.host import Thread, open_fds
from fakes.settled import PATIENCE

from shim.loop import EPOLLHUP, EPOLLIN, EPOLLOUT, Loop


@pytest.fixture
def thread() -> Iterator[Thread]:
    made = Thread()
    made.start()
    yield made
    made.stop()


def test_calls_run_in_their_order_on_the_loops_thread(thread: Thread) -> None:
    seen: list[object] = []
    for number in range(100):
        thread.loop.call_soon(lambda number=number: seen.append(number))  # type: ignore[misc]
    where = thread.do(threading.get_ident)
    assert seen == list(range(100))
    assert where != threading.get_ident()


def test_calls_from_many_threads(thread: Thread) -> None:
    seen: list[int] = []

    def call() -> None:
        for _ in range(200):
            thread.loop.call_soon(lambda: seen.append(1))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for other in threads:
        other.start()
    for other in threads:
        other.join(PATIENCE)
    thread.until(lambda: len(seen) == 800)


def test_a_call_made_by_a_call_runs_in_the_next_round(thread: Thread) -> None:
    order: list[str] = []

    def first() -> None:
        thread.loop.call_soon(lambda: order.append("third"))
        order.append("first")

    def both() -> None:
        thread.loop.call_soon(first)
        thread.loop.call_soon(lambda: order.append("second"))

    thread.do(both)
    thread.until(lambda: len(order) == 3)
    assert order == ["first", "second", "third"]


def test_a_descriptor_is_watched_until_it_is_not(thread: Thread) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    got: list[bytes] = []
    thread.do(lambda: thread.loop.watch(read, EPOLLIN, lambda mask: got.append(os.read(read, 9))))
    os.write(write, b"one")
    thread.until(lambda: got == [b"one"])
    thread.do(lambda: thread.loop.unwatch(read))
    thread.do(lambda: thread.loop.unwatch(read))  # again is harmless
    os.write(write, b"two")
    thread.do(lambda: None)
    assert got == [b"one"]
    os.close(read)
    os.close(write)


def test_masks(thread: Thread) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    masks: list[int] = []

    def seen(mask: int) -> None:
        masks.append(mask)
        thread.loop.unwatch(read)

    thread.do(lambda: thread.loop.watch(read, 0, seen))
    os.close(write)
    thread.until(lambda: masks == [EPOLLHUP])
    os.close(read)


def test_waiting_for_something_else(thread: Thread) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    writable: list[int] = []

    def seen(mask: int) -> None:
        writable.append(mask)
        thread.loop.modify(write, 0)

    thread.do(lambda: thread.loop.watch(write, 0, seen))
    thread.do(lambda: None)
    assert writable == []
    thread.do(lambda: thread.loop.modify(write, EPOLLOUT))
    thread.until(lambda: writable == [EPOLLOUT])
    thread.do(lambda: thread.loop.unwatch(write))
    os.close(read)
    os.close(write)


def test_one_callback_may_drop_another_of_the_same_round(thread: Thread) -> None:
    """The other's descriptor may be closed by then, and its number taken by somebody else."""
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
    called: list[int] = []

    def seen(number: int) -> None:
        called.append(number)
        for read, _ in pipes:
            thread.loop.unwatch(read)

    def watch() -> None:
        for number, (read, write) in enumerate(pipes):
            os.write(write, b"x")
            thread.loop.watch(read, EPOLLIN, lambda mask, number=number: seen(number))  # type: ignore[misc]

    thread.do(watch)
    thread.until(lambda: called)
    thread.do(lambda: None)
    assert len(called) == 1
    assert thread.errors == []
    for read, write in pipes:
        os.close(read)
        os.close(write)


def test_timers_fire_in_the_order_of_their_moments(
    thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    fired: list[str] = []
    done = threading.Event()

    def set_all() -> None:
        now = time.monotonic()
        with monkeypatch.context() as patch:  # all from one moment, however long this takes
            patch.setattr(time, "monotonic", lambda: now)
            thread.loop.call_later(0.02, done.set)
            thread.loop.call_later(0.01, lambda: fired.append("second"))
            thread.loop.call_later(0.0, lambda: fired.append("first"))
            thread.loop.call_later(0.005, lambda: fired.append("never")).cancel()

    thread.do(set_all)
    assert done.wait(PATIENCE)
    assert fired == ["first", "second"]


def test_a_timer_from_another_thread_wakes_the_loop(thread: Thread) -> None:
    done = threading.Event()
    thread.loop.call_later(0.0, done.set)
    assert done.wait(PATIENCE)


def test_a_timer_that_has_fired_can_be_cancelled(thread: Thread) -> None:
    done = threading.Event()
    timer = thread.loop.call_later(0.0, done.set)
    assert done.wait(PATIENCE)
    timer.cancel()
    timer.fire()


def test_a_callback_that_fails_ends_nothing(thread: Thread) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    read, write = os.pipe2(os.O_NONBLOCK)

    def fail_once(mask: int) -> None:
        thread.loop.unwatch(read)
        fail()

    os.write(write, b"x")
    thread.do(lambda: thread.loop.watch(read, EPOLLIN, fail_once))
    thread.loop.call_soon(fail)
    thread.loop.call_later(0.0, fail)
    thread.until(lambda: len(thread.errors) == 3)
    assert {str(error) for error in thread.errors} == {"on purpose"}
    os.close(read)
    os.close(write)


def test_stop_before_run_and_close() -> None:
    before = open_fds()
    loop = Loop()
    seen: list[int] = []
    loop.call_soon(lambda: seen.append(1))
    loop.stop()
    loop.run()
    assert seen == [1]
    loop.close()
    assert open_fds(before) == set()


def test_errors_go_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    loop = Loop()

    def fail() -> None:
        raise RuntimeError("on purpose")

    loop.call_soon(fail)
    loop.stop()
    loop.run()
    loop.close()
    assert "RuntimeError: on purpose" in capsys.readouterr().err
