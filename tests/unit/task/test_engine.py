"""The daemon's end of an engine process, with a fake engine at the other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fakes.host import Node, open_fds
from fakes.pod import FAKES, Behind

from shim import errors
from shim.errors import Cancelled, DeadlineExceeded, RestoreFailed, Unfit, Unknown
from shim.task import engine
from shim.task.engine import Engine, Engines, rebuilt

ENV = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PROGRAM", str(FAKES / "engine.py"))


def test_a_question_and_its_answer(node: Node) -> None:
    before = open_fds()
    made = Engine(node.reaper, ENV)
    request = {"play": "reply", "big": "x" * 200_000, "umlaut": "ü"}
    assert made.ask(request, [], None) == {"fds": 0, "request": request}
    made.close()
    assert not made.alive
    node.until(lambda: open_fds(before) == set())


def test_descriptors_go_along(node: Node) -> None:
    made, (read, write) = Engine(node.reaper, ENV), os.pipe()
    made.ask({"play": "fds", "write": "from the engine"}, [write, write], 15.0)
    assert os.read(read, 99) == b"from the engine" * 2
    made.close()
    os.close(read)
    os.close(write)


def test_it_inherits_nothing_but_its_socket(node: Node) -> None:
    made = Engine(node.reaper, ENV)
    node.until(lambda: os.path.exists(f"/proc/{made.pid}/fd/3"))
    node.until(lambda: "python" in os.readlink(f"/proc/{made.pid}/exe"))
    inherited = {
        int(fd): os.readlink(f"/proc/{made.pid}/fd/{fd}")
        for fd in os.listdir(f"/proc/{made.pid}/fd")
        if int(fd) < 4
    }
    assert inherited.pop(3).startswith("socket:")
    assert set(inherited.values()) == {"/dev/null"}
    assert os.getpgid(made.pid) == made.pid, "it leads a group, so that all of it can be killed"
    made.close()


@pytest.mark.parametrize("play", ["die", "half"])
def test_an_engine_that_dies(node: Node, play: str) -> None:
    made = Engine(node.reaper, ENV)
    with pytest.raises(RestoreFailed, match="the engine process died"):
        made.ask({"play": play}, [], 15.0)
    made.close()


def test_an_engine_that_was_dead_before(node: Node) -> None:
    made = Engine(node.reaper, ENV)
    node.reaper.kill(made.pid, 9)
    node.until(lambda: not made.alive)
    with pytest.raises(RestoreFailed):
        made.ask({"play": "reply"}, [], 15.0)
    made.close()


def test_a_deadline(node: Node, tmp_path: Path) -> None:
    made = Engine(node.reaper, ENV)
    with pytest.raises(DeadlineExceeded, match=r"not done within 0\.1 s"):
        made.ask({"play": "hang", "child": str(tmp_path / "child")}, [], 0.1)
    made.end()
    made.release()
    assert not made.alive


def test_a_deadline_that_has_passed(node: Node, tmp_path: Path) -> None:
    made = Engine(node.reaper, ENV)
    with pytest.raises(DeadlineExceeded):
        made.ask({"play": "hang", "child": str(tmp_path / "child")}, [], 0.0)
    made.end()
    made.release()


def test_kill_ends_it_and_its_children(node: Node, tmp_path: Path) -> None:
    made = Engine(node.reaper, ENV)
    asking = Behind(lambda: made.ask({"play": "hang", "child": str(tmp_path / "child")}, [], None))
    node.until((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    made.kill()
    with pytest.raises(Cancelled):
        asking.get()
    made.close()
    assert not made.alive
    node.until(lambda: not os.path.exists(f"/proc/{child}"))


def test_its_children_go_with_it_however_it_ends(node: Node, tmp_path: Path) -> None:
    made = Engine(node.reaper, ENV)
    asking = Behind(lambda: made.ask({"play": "hang", "child": str(tmp_path / "child")}, [], None))
    node.until((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    node.reaper.kill(made.pid, 9)  # the engine alone, as the OOM killer does
    with pytest.raises(RestoreFailed):
        asking.get()
    node.until(lambda: not os.path.exists(f"/proc/{child}"))
    made.close()


def test_kill_before_the_question(node: Node) -> None:
    made = Engine(node.reaper, ENV)
    made.kill()
    with pytest.raises(Cancelled):
        made.ask({"play": "reply"}, [], None)
    made.close()


def test_errors_come_back_as_themselves(node: Node) -> None:
    made = Engine(node.reaper, ENV)
    error = {"class": "Unfit", "message": "no such mount", "hint": "add it"}
    with pytest.raises(Unfit, match="no such mount") as caught:
        made.ask({"play": "reply", "reply": {"error": error}}, [], None)
    assert caught.value.hint == "add it"
    made.close()


def test_rebuilt_knows_every_leaf_and_falls_back() -> None:
    leaves = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ThawError)
    ]
    for leaf in leaves:
        made = rebuilt({"class": leaf.__name__, "message": "m", "hint": "h"})
        assert type(made) is leaf
    assert type(rebuilt({"class": "Nonsense", "message": "m", "hint": ""})) is Unknown


def test_a_program_that_cannot_be_started(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(FileNotFoundError):
        Engine(node.reaper, ENV)
    node.until(lambda: open_fds(before) == set())


def test_a_spare_engine_is_taken_once(node: Node) -> None:
    engines = Engines(node.loop, node.reaper)
    engines.warm(ENV, ["one"], {})
    spare = engines._spare["one"].engine
    first, second = engines.take(ENV, "one"), engines.take(ENV, "one")
    assert first is spare
    assert second is not spare
    first.close()
    second.close()


def test_a_spare_engine_that_died_is_not_handed_out(node: Node) -> None:
    engines = Engines(node.loop, node.reaper)
    engines.warm(ENV, ["one"], {})
    spare = engines._spare["one"].engine
    node.reaper.kill(spare.pid, 9)
    node.until(lambda: not spare.alive)
    taken = engines.take(ENV, "one")
    assert taken is not spare
    assert taken.ask({"play": "reply"}, [], None)
    taken.close()


def test_a_second_spare_replaces_the_first(node: Node) -> None:
    engines = Engines(node.loop, node.reaper)
    engines.warm(ENV, ["one"], {})
    first = engines._spare["one"].engine
    engines.warm(ENV, ["one"], {})
    assert not first.alive
    assert engines._spare["one"].engine is not first
    engines.take(ENV, "one").close()


def test_a_spare_engine_that_nobody_takes_goes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SPARE", 0.01)
    engines = Engines(node.loop, node.reaper)
    engines.warm(ENV, ["one"], {})
    node.until(lambda: not engines._spare)
    node.until(lambda: not node._children())


def test_each_snapshot_has_a_spare_engine_of_its_own(node: Node) -> None:
    engines = Engines(node.loop, node.reaper)
    engines.warm(ENV, ["one", "two"], {})
    spare = {name: kept.engine for name, kept in engines._spare.items()}
    taken = {name: engines.take(ENV, name) for name in ("three", "two", "one")}
    third = taken.pop("three")
    assert taken == spare
    for used in (third, *spare.values()):
        used.close()


def test_an_engine_that_is_given_back_serves_the_next(node: Node) -> None:
    engines = Engines(node.loop, node.reaper)
    first = engines.take(ENV, "one")
    engines.give_back(first, "one")
    again = engines.take(ENV, "one")
    assert again is first
    assert again.ask({"play": "reply"}, [], None)
    again.close()


def test_what_is_given_back_does_not_displace_what_has_read_ahead(node: Node) -> None:
    engines = Engines(node.loop, node.reaper)
    engines.warm(ENV, ["one"], {})
    spare, newcomer = engines._spare["one"].engine, Engine(node.reaper, ENV)
    engines.give_back(newcomer, "one")
    assert not newcomer.alive
    assert engines.take(ENV, "one") is spare
    spare.close()


def test_an_engine_that_was_cancelled_is_handed_to_nobody(node: Node) -> None:
    engines = Engines(node.loop, node.reaper)
    first = engines.take(ENV, "one")
    first.kill()
    engines.give_back(first, "one")
    second = engines.take(ENV, "one")
    assert second is not first
    first.close()
    second.close()


def test_who_comes_back_has_all_its_time_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(node.loop, node.reaper)
    monkeypatch.setattr(engine, "SPARE", 0.05)
    engines.warm(ENV, ["one"], {})
    monkeypatch.setattr(engine, "SPARE", 60.0)
    taken = engines.take(ENV, "one")
    engines.give_back(taken, "one")
    over: list[bool] = []
    node.loop.call_later(0.2, lambda: over.append(True))
    node.until(lambda: bool(over))
    assert engines.take(ENV, "one") is taken
    taken.close()
