"""Real out-of-memory kills in small groups; version 2 with a plain file for memory.events."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes.host import open_fds
from fakes.settled import PATIENCE

from shim import cgroup
from shim.cgroup import Cgroup
from shim.loop import Loop
from shim.oom import OomWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

V1 = not cgroup.is_unified()
ROOT = Path(cgroup.ROOT, "memory") if V1 else Path(cgroup.ROOT)
real = pytest.mark.skipif(
    os.geteuid() != 0
    or not os.access(ROOT, os.W_OK)
    or not (V1 or "memory" in (ROOT / "cgroup.subtree_control").read_text()),
    reason="needs root and a memory controller",
)
only_v1 = pytest.mark.skipif(not V1, reason="needs version 1")
GREEDY = "import os; os.read(0, 1); x = bytearray(b'x') * (64 << 20)"


class Running:
    """A loop on a thread of its own, and an OOM watch on it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.fired: list[str] = []
        self.event = threading.Event()
        self.watch = OomWatch(self.loop, self._fired)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _fired(self, container_id: str) -> None:
        self.fired.append(container_id)
        self.event.set()

    def on_loop(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop thread and wait for it."""
        done = threading.Event()
        errors: list[BaseException] = []

        def call() -> None:
            try:
                fn()
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)
            done.set()

        self.loop.call_soon(call)
        assert done.wait(PATIENCE)
        for error in errors:
            raise error

    def close(self) -> None:
        self.on_loop(self.watch.close)
        self.loop.stop()
        self._thread.join(PATIENCE)
        self.loop.close()


@pytest.fixture
def running() -> Iterator[Running]:
    before = open_fds()
    running = Running()
    yield running
    running.close()
    assert open_fds(before) == set()


@pytest.fixture
def group() -> Iterator[Cgroup]:
    folder = ROOT / f"thaw-test-oom-{os.getpid()}"
    folder.mkdir()
    made = Cgroup(1 if V1 else 2, {"memory" if V1 else "": str(folder)})
    yield made
    assert made.kill(PATIENCE)
    made.remove()


def run_out_of_memory(folder: str) -> None:
    """Let a process in a group of 16 MB ask for 64 and be killed."""
    limits = (
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if V1
        else ("memory.swap.max", "memory.max")
    )
    for limit in limits:
        if Path(folder, limit).exists():
            Path(folder, limit).write_text("0" if "swap" in limit and not V1 else "16M")
    with subprocess.Popen([sys.executable, "-IS", "-c", GREEDY], stdin=subprocess.PIPE) as child:
        Path(folder, "cgroup.procs").write_text(str(child.pid))
        child.communicate(b"x")
    assert child.returncode == -9


@real
def test_kill(running: Running, group: Cgroup) -> None:
    running.on_loop(lambda: running.watch.add("one", group))
    run_out_of_memory(group.main)
    assert running.event.wait(PATIENCE)
    running.event.clear()
    run_out_of_memory(group.main)
    assert running.event.wait(PATIENCE)
    assert running.fired == ["one", "one"]


@real
def test_kill_in_a_group_below(running: Running, group: Cgroup) -> None:
    below = Path(group.main, "below")
    below.mkdir()
    if not V1:
        Path(group.main, "cgroup.subtree_control").write_text("+memory")
    running.on_loop(lambda: running.watch.add("one", group))
    run_out_of_memory(str(below))
    # In version 1 the signal goes to the group below alone; the look at init's exit finds it.
    running.on_loop(lambda: running.watch.check("one"))
    assert running.fired == ["one"]


@real
def test_check_comes_first_and_the_signal_is_no_second_notice(
    running: Running, group: Cgroup
) -> None:
    def killed_while_the_loop_is_busy() -> None:
        run_out_of_memory(group.main)
        running.watch.check("one")
        assert running.fired == ["one"]

    running.on_loop(lambda: running.watch.add("one", group))
    running.on_loop(killed_while_the_loop_is_busy)
    running.on_loop(lambda: None)  # the signal is handled before this, or right after
    running.on_loop(lambda: running.watch.check("one"))
    assert running.fired == ["one"]


@real
@only_v1
def test_v1_removal_of_the_group_is_no_notice(running: Running, group: Cgroup) -> None:
    seen = threading.Event()
    running.on_loop(lambda: running.watch.add("one", group))
    watched = running.watch._watches["one"]
    real = watched._ready  # type: ignore[union-attr]

    def ready(mask: int) -> None:
        real(mask)
        seen.set()

    eventfd = watched._eventfd  # type: ignore[union-attr]
    running.on_loop(lambda: running.loop.unwatch(eventfd))
    running.on_loop(lambda: running.loop.watch(eventfd, 1, ready))
    group.remove()
    assert seen.wait(PATIENCE)
    assert running.fired == []
    running.on_loop(lambda: running.watch.check("one"))
    assert running.fired == []


@real
def test_kills_from_before_are_no_notice(running: Running, group: Cgroup) -> None:
    run_out_of_memory(group.main)
    running.on_loop(lambda: running.watch.add("one", group))
    running.on_loop(lambda: running.watch.check("one"))
    assert running.fired == []


def test_a_group_without_a_memory_controller(running: Running) -> None:
    running.on_loop(lambda: running.watch.add("one", Cgroup(1, {"pids": "/"})))
    running.on_loop(lambda: running.watch.check("one"))
    running.on_loop(lambda: running.watch.remove("one"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_that_is_gone(running: Running, tmp_path: Path, version: int) -> None:
    gone = Cgroup(version, {"memory" if version == 1 else "": str(tmp_path / "gone")})
    running.on_loop(lambda: running.watch.add("one", gone))
    running.on_loop(lambda: running.watch.remove("one"))


def events(folder: Path, kills: int) -> None:
    """What the kernel does when it kills: the file changes in place."""
    (folder / "memory.events").write_text(f"low 0\noom {kills + 1}\noom_kill {kills}\n")


@pytest.fixture
def unified(tmp_path: Path) -> Callable[[str], Cgroup]:
    def make(name: str) -> Cgroup:
        (tmp_path / name).mkdir()
        events(tmp_path / name, 1)
        return Cgroup(2, {"": str(tmp_path / name)})

    return make


def test_v2_kill(running: Running, unified: Callable[[str], Cgroup]) -> None:
    groups = {name: unified(name) for name in ("one", "two")}
    for name, group in groups.items():
        running.on_loop(lambda name=name, group=group: running.watch.add(name, group))  # type: ignore[misc]
    events(Path(groups["two"].main), 2)
    assert running.event.wait(PATIENCE)
    running.event.clear()
    events(Path(groups["one"].main), 3)
    assert running.event.wait(PATIENCE)
    assert running.fired == ["two", "one"]


def test_v2_other_events_are_no_notice(running: Running, unified: Callable[[str], Cgroup]) -> None:
    group = unified("one")
    running.on_loop(lambda: running.watch.add("one", group))
    with open(f"{group.main}/memory.events", "a") as file:
        file.write("oom_group_kill 7\n")
    running.on_loop(lambda: running.watch.check("one"))
    assert running.fired == []


def test_v2_after_remove_nothing_comes(running: Running, unified: Callable[[str], Cgroup]) -> None:
    one, two = unified("one"), unified("two")
    running.on_loop(lambda: running.watch.add("one", one))
    running.on_loop(lambda: running.watch.add("two", two))
    running.on_loop(lambda: running.watch.remove("one"))
    events(Path(one.main), 5)
    events(Path(two.main), 5)
    assert running.event.wait(PATIENCE)
    assert running.fired == ["two"]


def test_v2_the_group_may_go_first(running: Running, unified: Callable[[str], Cgroup]) -> None:
    group = unified("one")
    running.on_loop(lambda: running.watch.add("one", group))
    Path(group.main, "memory.events").unlink()
    running.on_loop(lambda: running.watch.check("one"))
    running.on_loop(lambda: running.watch.remove("one"))
    assert running.fired == []


def test_lost_inotify_events_mean_a_look_at_everything(
    running: Running, unified: Callable[[str], Cgroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = unified("one"), unified("two")
    overflow = (-1).to_bytes(4, "little", signed=True) + bytes(12)

    def lose() -> None:
        for name, group in (("one", one), ("two", two)):
            running.watch.add(name, group)
            events(Path(group.main), 2)
        monkeypatch.setattr(os, "read", lambda fd, size: overflow)
        running.watch._files._ready(1)
        monkeypatch.undo()

    running.on_loop(lose)
    assert sorted(running.fired) == ["one", "two"]


@real
def test_adding_again_replaces(running: Running, group: Cgroup) -> None:
    running.on_loop(lambda: running.watch.add("one", group))
    running.on_loop(lambda: running.watch.add("one", group))
    run_out_of_memory(group.main)
    assert running.event.wait(PATIENCE)
    assert running.fired == ["one"]
