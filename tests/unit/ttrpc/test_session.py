from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from shim.errors import FailedPrecondition, NotFound, ThawError
from shim.lean import threads
from shim.proto.known import Empty, Timestamp
from shim.proto.ttrpc_pb import KeyValue
from shim.proto.wire import Message
from shim.ttrpc.frames import DATA, HEADER, MAX_BODY, REQUEST, RESPONSE, pack
from shim.ttrpc.server import Call, Deferred, Method

PATIENCE = 30.0


def echo(request: Timestamp, call: Call) -> Timestamp:
    return request


def raising(error: Exception) -> Method:
    def handler(request: Empty, call: Call) -> Empty:
        raise error

    return Method(Empty, handler, inline=True)


ECHO = {"Echo": Method(Timestamp, echo), "Inline": Method(Timestamp, echo, inline=True)}


@pytest.mark.parametrize("method", ["Echo", "Inline"])
def test_a_call_is_answered(bench: Any, method: str) -> None:
    bench.serve(ECHO)
    peer = bench.peer()
    peer.ask(1, method, Timestamp(seconds=7), metadata=[KeyValue(key="k", value="v")])
    stream, response = peer.answer()
    assert (stream, response.status) == (1, None)
    assert Timestamp.decode(response.payload) == Timestamp(seconds=7)


def test_inline_handlers_run_on_the_loop_and_others_do_not(bench: Any) -> None:
    on_loop: list[bool] = []

    def note(request: Empty, call: Call) -> Empty:
        on_loop.append(threading.get_ident() == bench._thread.ident)
        return Empty()

    bench.serve({"Here": Method(Empty, note, True), "There": Method(Empty, note)})
    peer = bench.peer()
    for stream, method in (1, "Here"), (3, "There"):
        peer.ask(stream, method)
        peer.answer()
    assert on_loop == [True, False]


def test_200_blocking_calls_on_one_connection(bench: Any) -> None:
    barrier = threading.Barrier(200)

    def meet(request: Timestamp, call: Call) -> Timestamp:
        barrier.wait(PATIENCE)  # nobody is answered before all are being served
        return request

    bench.serve({"Meet": Method(Timestamp, meet)})
    peer = bench.peer()
    for number in range(200):
        peer.ask(2 * number + 1, "Meet", Timestamp(seconds=number))
    answers = dict(peer.answer() for _ in range(200))
    for number in range(200):
        assert Timestamp.decode(answers[2 * number + 1].payload).seconds == number


def test_answers_go_out_in_the_order_they_are_given(bench: Any) -> None:
    waiting: dict[int, Deferred] = {}

    def wait(request: Timestamp, call: Call) -> Deferred:
        return waiting.setdefault(request.seconds, Deferred())

    bench.serve({"Wait": Method(Timestamp, wait, inline=True)})
    peer = bench.peer()
    for number in range(200):
        peer.ask(2 * number + 1, "Wait", Timestamp(seconds=number))
    bench.until(lambda: len(waiting) == 200)
    order = random.Random(1).sample(range(200), 200)
    for number in order:
        waiting[number].resolve(Timestamp(seconds=number))
    assert [peer.answer()[0] for _ in order] == [2 * number + 1 for number in order]


def test_a_held_wait_holds_up_nobody(bench: Any) -> None:
    held = Deferred()
    bench.serve(ECHO | {"Wait": Method(Empty, lambda request, call: held)})
    peer = bench.peer()
    peer.ask(1, "Wait")
    for stream in range(3, 23, 2):
        peer.ask(stream, "Echo")
        assert peer.answer()[0] == stream
    threads = threading.active_count()
    held.fail(NotFound("gone"))
    assert peer.status() == (1, 5, "gone")
    assert threading.active_count() <= threads  # the wait had no thread


def test_an_answer_that_was_there_before(bench: Any) -> None:
    def wait(request: Empty, call: Call) -> Deferred:
        deferred = Deferred()
        deferred.resolve(Timestamp(seconds=9))
        return deferred

    bench.serve({"Wait": Method(Empty, wait, inline=True)})
    peer = bench.peer()
    peer.ask(1, "Wait")
    assert Timestamp.decode(peer.answer()[1].payload).seconds == 9


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NotFound("container x is unknown"), 5, "container x is unknown"),
        (FailedPrecondition("no", hint="start it"), 9, "no (start it)"),
        (ThawError("odd \udcff"), 2, "odd \\udcff"),
    ],
)
def test_our_errors_become_their_code(
    bench: Any, error: ThawError, code: int, message: str
) -> None:
    bench.serve({"Fail": raising(error)})
    peer = bench.peer()
    peer.ask(1, "Fail")
    assert peer.status() == (1, code, message)
    assert bench.reported == []


def test_other_errors_are_reported(bench: Any) -> None:
    error = KeyError("x")
    bench.serve({"Fail": raising(error)})
    peer = bench.peer()
    peer.ask(1, "Fail")
    assert peer.status() == (1, 2, "KeyError: 'x'")
    assert bench.reported == [error]


def test_a_long_error_is_cut(bench: Any) -> None:
    bench.serve({"Fail": raising(ThawError("x" * (MAX_BODY + 1)))})
    peer = bench.peer()
    peer.ask(1, "Fail")
    assert len(peer.status()[2]) == 32 << 10


def test_an_answer_that_is_no_message_is_a_reported_error(bench: Any) -> None:
    bench.serve({"Nothing": Method(Empty, lambda request, call: None, True)})  # type: ignore[arg-type, return-value]
    peer = bench.peer()
    peer.ask(1, "Nothing")
    assert peer.status()[1] == 2
    assert isinstance(bench.reported[0], AttributeError)


def test_an_answer_that_cannot_be_encoded(bench: Any) -> None:
    def bad(request: Empty, call: Call) -> Message:
        return Timestamp(nanos=1 << 40)

    bench.serve({"Bad": Method(Empty, bad)})
    peer = bench.peer()
    peer.ask(1, "Bad")
    assert peer.status()[1:] == (
        3,
        "google.protobuf.Timestamp.nanos: 1099511627776 does not fit 32 bits",
    )


def test_unknown_services_and_methods(bench: Any) -> None:
    bench.serve(ECHO)
    peer = bench.peer()
    peer.ask(1, "Nope")
    assert peer.status() == (1, 12, "method test.Service/Nope is not offered")
    peer.ask(3, "Echo", service="other")
    assert peer.status() == (3, 12, "service other is not offered")


def test_streams_must_be_odd_and_grow(bench: Any) -> None:
    bench.serve(ECHO)
    peer = bench.peer()
    for stream, answered in (2, False), (5, True), (5, False), (3, False), (7, True):
        peer.ask(stream, "Echo")
        number, response = peer.answer()
        assert number == stream
        assert (response.status is None) == answered
        assert answered or response.status.code == 3


def test_garbage_in_a_frame_is_refused_and_the_next_is_served(bench: Any) -> None:
    bench.serve(ECHO)
    peer = bench.peer()
    peer.sock.sendall(pack(1, REQUEST, b"\xff"))
    assert peer.status()[:2] == (1, 3)
    peer.ask(3, "Echo", payload=b"\x08")
    assert peer.status() == (3, 3, "google.protobuf.Timestamp: a number is cut off")
    peer.ask(5, "Echo")
    assert peer.answer()[0] == 5


def test_unknown_frames_are_ignored_and_data_is_refused(bench: Any) -> None:
    bench.serve(ECHO)
    peer = bench.peer()
    peer.sock.sendall(pack(1, 9, b"future") + pack(1, RESPONSE, b"?") + pack(1, DATA, b"stream"))
    assert peer.status() == (1, 3, "stream 1 does not take data")
    peer.ask(1, "Echo")
    assert peer.answer()[0] == 1
    assert peer.silent()


def test_flags_of_a_request_do_not_matter(bench: Any) -> None:
    bench.serve({"Nothing": Method(Empty, lambda request, call: Empty(), True)})
    peer = bench.peer()
    request = b"\x0a\x0ctest.Service\x12\x07Nothing"
    peer.sock.sendall(pack(1, REQUEST, request, flags=0xFF))
    assert peer.answer()[1].status is None


def test_a_frame_too_big_is_answered_once_it_is_past(bench: Any) -> None:
    bench.serve(ECHO)
    peer = bench.peer()
    peer.sock.sendall(HEADER.pack(MAX_BODY + 1, 1, REQUEST, 0) + bytes(MAX_BODY))
    bench.do(lambda: None)
    assert peer.silent()
    peer.sock.sendall(b"\0")
    assert peer.status() == (1, 8, "a message of 4194305 bytes exceeds the limit of 4194304")
    peer.ask(3, "Echo")
    assert peer.answer()[0] == 3


def test_an_answer_too_big_is_an_error(bench: Any) -> None:
    def big(request: Empty, call: Call) -> Message:
        return KeyValue(value="x" * MAX_BODY)

    bench.serve({"Big": Method(Empty, big)})
    peer = bench.peer()
    peer.ask(1, "Big")
    assert peer.status()[:2] == (1, 8)


def test_the_deadline_reaches_the_handler(bench: Any) -> None:
    seen: list[float | None] = []

    def look(request: Empty, call: Call) -> Empty:
        seen.append(call.remaining())
        return Empty()

    bench.serve({"Look": Method(Empty, look)})
    peer = bench.peer()
    peer.ask(1, "Look", timeout_nano=60_000_000_000)
    peer.answer()
    peer.ask(3, "Look")
    peer.answer()
    assert seen[0] is not None
    assert 0 < seen[0] <= 60
    assert seen[1] is None


def test_a_caller_that_goes_away_is_forgotten(bench: Any) -> None:
    abandoned, release, returned = threading.Event(), threading.Event(), threading.Event()
    held = Deferred(on_abandon=abandoned.set)

    def block(request: Empty, call: Call) -> Empty:
        release.wait(PATIENCE)
        returned.set()
        return Empty()

    server = bench.serve(
        {"Wait": Method(Empty, lambda request, call: held, True), "Block": Method(Empty, block)}
    )
    peer = bench.peer()
    peer.ask(1, "Wait")
    peer.ask(3, "Block")
    bench.until(lambda: any(session._held for session in server._sessions))
    peer.close()
    assert abandoned.wait(PATIENCE)
    bench.until(lambda: not server._sessions)
    held.resolve(Empty())  # neither of these may raise
    release.set()
    assert returned.wait(PATIENCE)


def test_a_wait_that_begins_after_its_caller_left_is_abandoned(bench: Any) -> None:
    asked, release, abandoned = threading.Event(), threading.Event(), threading.Event()

    def late(request: Empty, call: Call) -> Deferred:
        asked.set()
        release.wait(PATIENCE)
        return Deferred(on_abandon=abandoned.set)

    server = bench.serve({"Late": Method(Empty, late)})
    peer = bench.peer()
    peer.ask(1, "Late")
    assert asked.wait(PATIENCE)
    peer.close()
    bench.until(lambda: not server._sessions)
    release.set()
    assert abandoned.wait(PATIENCE)


def test_one_bad_on_abandon_does_not_silence_the_others(bench: Any) -> None:
    told = threading.Event()
    error = ValueError("bad")

    def bad() -> None:
        raise error

    waits = [Deferred(on_abandon=bad), Deferred(on_abandon=told.set)]
    bench.serve({"Wait": Method(Empty, lambda request, call: waits.pop(0), True)})
    peer = bench.peer()
    peer.ask(1, "Wait")
    peer.ask(3, "Wait")
    bench.until(lambda: not waits)
    peer.close()
    assert told.wait(PATIENCE)
    assert bench.reported == [error]


def test_a_thread_that_cannot_start_is_an_answer(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.serve(ECHO)
    peer = bench.peer()

    def refuse(_run: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threads, "start", refuse)
        peer.ask(1, "Echo")
        assert peer.status() == (1, 14, "cannot run Echo: can't start new thread")
    peer.ask(3, "Echo")
    assert peer.answer()[0] == 3
