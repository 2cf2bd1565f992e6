"""What can go wrong while GPU memory is moved past the driver: the worker runs on, or boots cold.

WHO-at-STAGE   the worker, or the engine that has its memory, is killed at that stage:
               held       its GPU work is held
               emptied    its memory is the engine's, and the driver is at work
               dumped     and so is CRIU, while the memory is copied
               given      CRIU is done, and it gets its memory back
               filling    of a restore: the memory comes onto the GPU
               restoring  CRIU is at work
               returned   the driver is done, and it gets its memory
holder-at-filling   the same of the process that has the node's cache, while that fills
engine-at-filling-cached   of the engine, meanwhile
flipped        one byte of a snapshot's GPU memory is another one
truncated      a piece of it is cut off

A worker whose engine was killed goes on with what it had, and one that was killed leaves nothing on
the GPU. Every byte is compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bed.pod import Container, Pod
from gpu import watching
from gpu.faults import (
    COLD,
    FAIL,
    GIB,
    KILLED,
    NAME,
    SIZE,
    Act,
    booted_cold,
    checkpoint,
    expect,
    holder,
    short,
    snapshot,
)
from gpu.held import holding
from gpu.lane import STARTING, GpuLane
from gpu.subject import Subject, Wrong, compare
from gpu.watching import Killer

_AWAY = ("held", "emptied", "dumped", "given")
_BACK = ("filling", "restoring", "returned")
_NOTICED = 5.0  # seconds within which the runtime knows of an end
_SETTLES = 20.0  # and the driver has all memory back of one that was killed
_MIB = 1 << 20
_SLACK = 64 * _MIB  # of a GPU's memory: the driver's own


def _victim(lane: GpuLane, who: str, pid: int) -> int:
    return pid if who == "worker" else watching.engine(lane.places.folder)


def _killed_away(who: str, stage: str) -> Act:
    """Somebody is killed in a stage of the checkpoint; there is no snapshot, or a good one."""

    def act(lane: GpuLane, device: str) -> str:
        subject, free = holder("plain", device), watching.gpu_memory()
        boot, pod, container = lane.boot(subject, f"{NAME}-{stage}", {})
        pid = watching.init_of(container.id)
        reached = watching.emptied(stage, pid)

        def victim() -> int:
            return _victim(lane, who, pid) if reached() else 0

        with Killer(victim) as killer:
            done = checkpoint(lane, container)
        expect(bool(killer.killed), f"it was over before anybody could be killed: {done.stderr}")
        there = any(lane.places.snapshots.glob("snapshots/*"))
        expect(there == (done.returncode == 0), f"a snapshot: {there}, though: {done.stderr}")
        expect(not there or stage == "given", f"a snapshot: {done.stdout}")
        said = _checked(lane, subject, boot.answer) if there else "no snapshot"
        if who == "worker":
            expect(container.wait() == KILLED, "it did not end as killed")
            lane.clear()
            _is_back(free)
            return f"{said}; its memory is free: {short(done.stderr)}"
        _runs_on(container, subject, pod, boot.answer, done.stderr)
        return f"{said}; the worker runs on, all the same: {short(done.stderr)}"

    return act


def _checked(lane: GpuLane, subject: Subject, before: dict[str, Any]) -> str:
    """The snapshot that was made all the same is one that a worker comes back from."""
    back, *_ = lane.boot(subject, f"{NAME}-checked", FAIL)
    compare("the one restored from it", subject, before, back.answer)
    return f"a good snapshot, restored in {back.answered:.1f} s"


def _runs_on(
    container: Container, subject: Subject, pod: Pod, before: dict[str, Any], said: str
) -> None:
    """It has all that it had, again and again."""
    try:
        container.wait(_NOTICED)
    except TimeoutError:
        first = subject.answer(pod.ip)
        compare("the worker", subject, before, first)
        compare("the worker, asked again", subject, first, subject.answer(pod.ip))
    else:
        raise Wrong(f"the worker was ended: {short(said)}")


def _killed_over_it(
    lane: GpuLane, subject: Subject, what: str, victim: Callable[[int], int]
) -> tuple[Pod, Container, int]:
    """A pod that is to be restored while somebody is killed: who, as a pid.

    `victim` gets the worker's pid, 0 before there is one, and answers whom to kill once it is time.
    """
    names: list[str] = []  # of the container, once it has one

    with Killer(lambda: victim(watching.init_of(names[0]) if names else 0)) as killer:
        pod = lane.run_pod_for(subject, f"{NAME}-{what}", COLD)
        container = lane.container_in(pod, subject)
        names.append(container.id)
        container.start(STARTING)
    expect(bool(killer.killed), "it was over before anybody could be killed")
    return pod, container, killer.killed


def _killed_back(who: str, stage: str) -> Act:
    """Somebody is killed in a stage of the restore: a cold boot, with the reason in the log."""

    def act(lane: GpuLane, device: str) -> str:
        subject, free = holder("plain", device), watching.gpu_memory()
        before = snapshot(lane, subject)
        _is_back(free)
        reached = watching.refilled(stage, free, int(SIZE[device] * GIB))
        victim = lambda pid: _victim(lane, who, pid) if reached(pid) else 0  # noqa: E731
        pod, container, killed = _killed_over_it(lane, subject, stage, victim)
        if not lane.restored(container):
            return booted_cold(lane, subject, pod, container, killed)
        if who == "worker":
            expect(container.wait() == KILLED, "it did not end as killed")
            return f"it ran already, and ended with {KILLED}"
        _runs_on(container, subject, pod, before, "")
        return "it ran already, and has what it had"

    return act


def _killed_at_the_cache(who: str) -> Act:
    """While the holder fills, it or the engine it does that for is killed.

    The restore goes on without the holder, or is a cold boot; nothing half filled is used, nor
    kept by the one who is left.
    """

    def act(lane: GpuLane, device: str) -> str:
        subject, free = holder("plain", device), watching.gpu_memory()
        before = snapshot(lane, subject)
        _is_back(free)
        with holding(lane, SIZE[device] + 1) as process:
            lane.thaw("warm", NAME)
            reached = watching.refilled("filling", watching.gpu_memory(), int(SIZE[device] * GIB))

            def victim(_: int) -> int:
                if not reached(0):
                    return 0
                return process.pid if who == "holder" else watching.engine(lane.places.folder)

            pod, container, killed = _killed_over_it(lane, subject, who, victim)
            if not lane.restored(container):
                return booted_cold(lane, subject, pod, container, killed)
            _runs_on(container, subject, pod, before, "")
        return "restored without it, all the same"

    return act


def _damaged(how: Callable[[Path], None]) -> Act:
    """A snapshot is not what it was: nothing of it is used."""

    def act(lane: GpuLane, device: str) -> str:
        subject = holder("plain", device)
        snapshot(lane, subject)
        pieces = (lane.newest() / "pages").glob("gpu-*")
        largest = max(pieces, key=lambda path: path.stat().st_size)
        how(largest)
        pod = lane.run_pod_for(subject, f"{NAME}-damaged", COLD)
        container = lane.container_in(pod, subject)
        container.start(STARTING)
        expect(not lane.restored(container), "it was restored from that")
        expect(largest.name in lane.reasons(container), "the log does not name the file")
        return booted_cold(lane, subject, pod, container, 1)

    return act


def _flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _is_back(before: int) -> None:
    """As much of the GPU's memory is free as was: nobody has kept any."""
    free = watching.settled(before - _SLACK, _SETTLES)
    expect(free >= before - _SLACK, f"{(before - free) // _MIB} MiB of the GPU are not free again")


ALL: dict[str, Act] = {
    **{f"{who}-at-{at}": _killed_away(who, at) for who in ("engine", "worker") for at in _AWAY},
    **{
        f"{who}-at-{at}": _killed_back(who, at)
        for who in ("engine", "worker")
        for at in _BACK
        if (who, at) != ("worker", "filling")  # there may be none yet
    },
    "holder-at-filling": _killed_at_the_cache("holder"),
    "engine-at-filling-cached": _killed_at_the_cache("engine"),
    "flipped": _damaged(_flip),
    "truncated": _damaged(_cut),
}
