"""A worker's GPU state taken away and given back: whatever goes wrong, it runs as before."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import Call, FakeCuda
from fakes.cuda_worker import Workers
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import CheckpointFailed, GpuFailed, GpuLost
from shim.gpu.driver import Driver
from shim.gpu.suspension import Area, Suspension, anonymous_areas, beyond, give_back, recover
from shim.gpu.watch import Watch
from shim.timeline import Timeline

MIB = 1 << 20
OUT_OF_MEMORY, NOT_READY, NOT_SUPPORTED = 2, 600, 801


@pytest.fixture
def workers(cuda: FakeCuda) -> Iterator[Workers]:
    with Workers(cuda, 3) as made:
        yield made


def suspension(driver: Driver, workers: Workers, **more: Any) -> Suspension:
    return Suspension(driver, workers.pids, **more)


def at(driver: Driver, call: str, pid: int, do: Callable[[], object]) -> None:
    """Have something happen while the driver is at work on a process, before it is done."""
    real = getattr(driver, call)

    def instead(asked: int, *rest: object) -> None:
        if asked == pid:
            do()
        real(asked, *rest)

    setattr(driver, call, instead)


def phases(calls: list[Call]) -> list[str]:
    """Which calls there were, runs of one kind as one."""
    kinds = [call.short for call in calls if call.pid and call.short != "GetState"]
    return [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind]


ALL = ["Lock", "Checkpoint", "Restore", "Unlock"]


def test_away_and_back(cuda: FakeCuda, driver: Driver, workers: Workers) -> None:
    timeline = Timeline()
    with Suspension(driver, workers.pids, timeline, seconds=1.5) as suspended:
        assert workers.states == ["checkpointed"] * 3
        suspended.check()
        suspended.resume()
        assert workers.states == ["running"] * 3
        before = len(cuda.calls)
    assert len(cuda.calls) == before, "not twice"
    assert phases(cuda.calls) == ALL, "each for all before the next one for any"
    assert [call.detail for call in cuda.calls if call.short == "Lock"] == ["1500"] * 3
    assert [span.name for span in timeline.spans] == ["lock", "device", "device back"]


def test_all_at_the_same_time(cuda: FakeCuda, driver: Driver, workers: Workers) -> None:
    """Processes that wait for each other's work could otherwise never be locked."""
    with cuda.together(len(workers.pids), *ALL), suspension(driver, workers):
        pass
    for name in ALL:
        one, *others = [call for call in cuda.calls if call.short == name]
        assert all(one.overlaps(other) for other in others), name


def test_it_is_given_back_without_a_word(cuda: FakeCuda, driver: Driver, workers: Workers) -> None:
    with suspension(driver, workers):
        pass
    assert workers.states == ["running"] * 3
    with pytest.raises(CheckpointFailed, match="no dump"), suspension(driver, workers):
        raise CheckpointFailed("no dump")
    assert workers.states == ["running"] * 3
    assert phases(cuda.calls) == ALL * 2


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("call", ["Lock", "Checkpoint"])
def test_the_driver_refuses(
    cuda: FakeCuda, driver: Driver, workers: Workers, call: str, place: int
) -> None:
    pid = workers.pids[place]
    cuda.answer(call, NOT_READY if call == "Lock" else OUT_OF_MEMORY, pid=pid)
    words = "NOT_READY" if call == "Lock" else "OUT_OF_MEMORY"
    with (
        pytest.raises(GpuFailed, match=f"of process {pid}: .*{words}") as failed,
        suspension(driver, workers),
    ):
        pytest.fail("it was not suspended")
    assert failed.value.hint
    assert workers.states == ["running"] * 3
    touched = cuda.asked(pid)
    assert f"Unlock {pid}" in touched if call == "Checkpoint" else touched == [f"Lock {pid}"]
    assert ("Checkpoint" in phases(cuda.calls)) == (call == "Checkpoint")


def test_a_refusal_that_leaves_more_than_one_state(
    cuda: FakeCuda, driver: Driver, workers: Workers
) -> None:
    """Nothing of what was done is remembered: the driver is asked what there is to undo."""
    one, other, last = workers.pids
    cuda.answer("Checkpoint", OUT_OF_MEMORY, pid=one, left="checkpointed")
    cuda.answer("Checkpoint", OUT_OF_MEMORY, pid=other, left="running")
    with pytest.raises(GpuFailed) as failed, suspension(driver, workers):
        pass
    assert f"process {one}" in failed.value.message
    assert f"process {other}" in failed.value.message
    assert workers.states == ["running"] * 3
    assert cuda.asked(one)[2:] == [f"Restore {one}", f"Unlock {one}"]
    assert cuda.asked(other) == [f"Lock {other}", f"Checkpoint {other}"]
    assert cuda.asked(last)[2:] == [f"Restore {last}", f"Unlock {last}"]


@pytest.mark.parametrize("state", ["locked", "checkpointed", "failed"])
def test_another_tool_is_at_work(
    cuda: FakeCuda, driver: Driver, workers: Workers, state: str
) -> None:
    """What others have done is not undone, and nobody else is touched."""
    pid = workers.pids[1]
    cuda.add(pid, state)
    with pytest.raises(GpuFailed, match=f"process {pid} is {state}"), suspension(driver, workers):
        pytest.fail("it was suspended")
    assert workers.states == ["running", state, "running"]
    assert cuda.asked() == []


@pytest.mark.parametrize("call", ["lock", "checkpoint"])
def test_a_worker_is_killed_meanwhile(
    cuda: FakeCuda, driver: Driver, workers: Workers, call: str
) -> None:
    """No snapshot of the rest is made, and the rest runs on."""
    killed, *others = workers.pids
    at(driver, call, killed, lambda: workers.kill(killed))
    with pytest.raises(GpuFailed, match=f"process {killed} ended"), suspension(driver, workers):
        pytest.fail("it was suspended")
    assert [cuda.state(pid) for pid in others] == ["running"] * 2


def test_a_worker_is_killed_over_the_dump(cuda: FakeCuda, driver: Driver, workers: Workers) -> None:
    killed, *others = workers.pids
    with suspension(driver, workers) as suspended:
        workers.kill(killed)
        with pytest.raises(GpuFailed, match=f"process {killed} ended"):
            suspended.check()
        suspended.resume()
    assert [cuda.state(pid) for pid in others] == ["running"] * 2
    assert cuda.asked(killed) == [f"Lock {killed}", f"Checkpoint {killed}"]


@pytest.mark.parametrize("call", ["restore", "unlock"])
def test_a_worker_is_killed_while_it_is_given_back(
    cuda: FakeCuda, driver: Driver, workers: Workers, call: str
) -> None:
    killed, *others = workers.pids
    with suspension(driver, workers) as suspended:
        at(driver, call, killed, lambda: workers.kill(killed))
        suspended.resume()
    assert [cuda.state(pid) for pid in others] == ["running"] * 2


def test_all_have_ended(cuda: FakeCuda, driver: Driver, workers: Workers) -> None:
    """CRIU ends a container that was to exit; its pids may be others' by now."""
    with suspension(driver, workers) as suspended:
        for pid in workers.pids:
            workers.kill(pid)
        cuda.forget()
        suspended.resume()
    assert cuda.calls == []


def test_one_that_cannot_be_given_back(cuda: FakeCuda, driver: Driver, workers: Workers) -> None:
    """The others are; that one would wait for ever, and is not asked for twice."""
    stuck = workers.pids[1]
    cuda.answer("Restore", NOT_SUPPORTED, pid=stuck)
    words = f"cannot be given back.*{stuck}.*NOT_SUPPORTED"
    with pytest.raises(GpuLost, match=words) as failed, suspension(driver, workers) as suspended:
        suspended.resume()
    assert "memory of another process" in failed.value.hint
    assert workers.states == ["running", "checkpointed", "running"]
    assert cuda.asked(stuck)[2:] == [f"Restore {stuck}"], "once, and no unlock"


def test_neither_dumped_nor_given_back(cuda: FakeCuda, driver: Driver, workers: Workers) -> None:
    """Both are told, as what is worse."""
    cuda.answer("Unlock", NOT_SUPPORTED, pid=workers.pids[0])
    words = r"no dump\nthe worker is lost"
    with pytest.raises(GpuLost, match=words) as failed, suspension(driver, workers):
        raise CheckpointFailed("no dump", hint="the container runs on")
    assert "runs on" not in failed.value.hint
    assert workers.states == ["locked", "running", "running"]


def test_given_back_after_an_engine_that_died(
    cuda: FakeCuda, driver: Driver, workers: Workers
) -> None:
    """Wherever it was, and twice as well as once."""
    for pid, state in zip(workers.pids, ["checkpointed", "locked", "running"], strict=True):
        cuda.add(pid, state)
    for _ in range(2):
        recover(driver, workers.pids)
        assert workers.states == ["running"] * 3
    one, other, last = workers.pids
    assert cuda.asked(one) == [f"Restore {one}", f"Unlock {one}"]
    assert cuda.asked(other, last) == [f"Unlock {other}"]
    cuda.add(one, "failed")
    cuda.add(other, "locked")
    with pytest.raises(GpuFailed, match=f"process {one} is failed"):
        recover(driver, workers.pids)
    assert cuda.state(other) == "running"


def test_nobody_is_left(driver: Driver) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    with Watch([gone.pid]) as watch:
        assert give_back(driver, [gone.pid], watch, 60) == {}


# Calls that never return


@pytest.mark.parametrize("call", ALL)
def test_the_driver_hangs(
    cuda: FakeCuda, driver: Driver, limited: Callable[..., None], call: str
) -> None:
    """Only an end of the process makes such a call return: the others are given back."""
    with Workers(cuda, 3, real=True) as workers:
        stuck, *others = workers.pids
        limited(stuck, lambda: cuda.under_way(call, stuck))
        cuda.delay(call, 1000, pid=stuck)
        words = f"process {stuck}: the NVIDIA driver is not done with it"
        made = suspension(driver, workers, seconds=0.1, limit=0.5)
        with pytest.raises(GpuLost, match=words), made:
            pass
        assert [cuda.state(pid) for pid in others] == ["running"] * 2
        assert cuda.state(stuck) == ""
        [asked] = [made for made in cuda.calls if (made.short, made.pid) == (call, stuck)]
        assert asked.result == 304


def test_killed_in_the_midst_of_a_call(cuda: FakeCuda, driver: Driver) -> None:
    """The driver says so before the kernel does."""
    with Workers(cuda, 2, real=True) as workers:
        killed, other = workers.pids
        cuda.delay("Restore", 1000, pid=killed)
        with suspension(driver, workers) as suspended:
            resuming = threading.Thread(target=suspended.resume)
            resuming.start()
            while not cuda.under_way("Restore", killed):
                time.sleep(0.01)
            workers.kill(killed)
            resuming.join()
        assert cuda.state(other) == "running"


def test_one_that_is_stopped(cuda: FakeCuda, driver: Driver) -> None:
    """The driver would wait for it."""
    with Workers(cuda, 2, real=True) as workers:
        stopped = workers.pids[1]
        os.kill(stopped, signal.SIGSTOP)
        os.waitid(os.P_PID, stopped, os.WSTOPPED | os.WNOWAIT)
        with (
            pytest.raises(GpuFailed, match=f"process {stopped} is stopped"),
            suspension(driver, workers),
        ):
            pytest.fail("it was suspended")
    assert cuda.asked() == []


# Where the device memory is put


def test_what_the_driver_has_mapped(driver: Driver, workers: Workers) -> None:
    one, other, last = workers.pids
    workers.map(one, 4 * MIB)
    made: dict[int, list[int]] = {one: [], other: []}
    at(driver, "checkpoint", one, lambda: made[one].append(workers.map(one, 8 * MIB)))
    at(driver, "checkpoint", other, lambda: made[other].append(workers.map(other, 2 * MIB)))
    with suspension(driver, workers) as suspended:
        staging = suspended.staging
    assert covered(staging[one], made[one][0], 8 * MIB)
    assert covered(staging[other], made[other][0], 2 * MIB)
    assert total(staging[one]) < 9 * MIB, "only what was not there before"
    assert total(staging[last]) < MIB


def covered(areas: list[Area], address: int, length: int) -> bool:
    return any(a.address <= address and address + length <= sum(a) for a in areas)


def total(areas: list[Area]) -> int:
    return sum(area.length for area in areas)


def test_anonymous_memory(workers: Workers) -> None:
    pid = workers.pids[0]
    address = workers.map(pid, 3 * MIB)
    areas = anonymous_areas(pid)
    assert covered(areas, address, 3 * MIB)
    assert areas == sorted(areas)
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    named = [line for line in lines if line.endswith(("[stack]", "[heap]")) or "/" in line]
    taken = {int(line.split("-")[0], 16) for line in named}
    assert not taken & {area.address for area in areas}
    workers.kill(pid)
    assert anonymous_areas(pid) == []


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ([], [(8, 4)], [(8, 4)]),
        ([(8, 4)], [(8, 4)], []),
        ([(8, 4)], [], []),
        ([(8, 4)], [(4, 12)], [(4, 4), (12, 4)]),
        ([(8, 4)], [(0, 10)], [(0, 8)]),
        ([(8, 4)], [(10, 10)], [(12, 8)]),
        ([(8, 4)], [(12, 4), (16, 4)], [(12, 8)]),
        ([(0, 2), (4, 2), (8, 2)], [(0, 20)], [(2, 2), (6, 2), (10, 10)]),
        ([(0, 2), (4, 2)], [(1, 1), (3, 1), (6, 2)], [(3, 1), (6, 2)]),
        ([(0, 100)], [(4, 4), (50, 60)], [(100, 10)]),
    ],
)
def test_what_is_new(
    before: list[tuple[int, int]], after: list[tuple[int, int]], new: list[tuple[int, int]]
) -> None:
    areas = [Area(*area) for area in before], [Area(*area) for area in after]
    assert beyond(*areas) == [Area(*area) for area in new]


AREAS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=6)


@given(AREAS, AREAS)
def test_what_is_new_is_what_was_not_there(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    old, now = laid(before), laid(after)
    found = beyond(old, now)
    assert places(found) == places(now) - places(old)
    assert all(sum(one) < other.address for one, other in pairwise(found)), "adjoining are one"


def laid(areas: list[tuple[int, int]]) -> list[Area]:
    """One after the other with gaps, or none, between them, as mappings lie."""
    made: list[Area] = []
    for gap, length in areas:
        made.append(Area((sum(made[-1]) if made else 0) + gap // 4, length))
    return made


def places(areas: list[Area]) -> set[int]:
    return {place for area in areas for place in range(area.address, sum(area))}
