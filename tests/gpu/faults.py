"""What can go wrong with a GPU in the flow: the worker runs on, or the reason is said.

killed-at-STAGE   its process is killed during lock, checkpoint, dump, restore, unlock
together          two workers share one GPU; both are snapshotted, and restored at the same time
occupied          somebody else has the GPU's memory at a restore: it waits, and says who has it
vacated           the same, and he exits meanwhile
managed           managed memory cannot be checkpointed: the worker runs on
imported          nor can memory that was imported and is mapped; the driver says so when it is too
                  late, and the worker is lost: there must be no snapshot of it
verified          a snapshot is restored once, beside its original, before it is published
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from subprocess import CompletedProcess
from typing import Any

import grpc
from bed.lane import CRI_NAMESPACE
from bed.pod import Container, Pod
from bench.bare import end
from gpu import watching
from gpu.asking import ask, wait_until_healthy
from gpu.lane import STARTING, GpuLane
from gpu.record import Record, say
from gpu.subject import PORT, Subject, Wrong, compare, pytorch

NAME = "faulty"
COLD = {"thaw.dev/snapshot": NAME, "thaw.dev/on-failure": "cold-start"}
FAIL = {"thaw.dev/snapshot": NAME, "thaw.dev/on-failure": "fail"}
GIB = 1 << 30
SIZE = {"cuda": 4.0, "cpu": 0.5}  # GiB
OTHERS_PORT = 8019
KILLED = 137
_NOTICED = 5.0  # seconds within which the runtime knows of an end
REFUSED = ("NOT_SUPPORTED", "managed", "import", "of another process")
_ERRORS = (Wrong, RuntimeError, OSError, HTTPException, subprocess.SubprocessError)
_BRIEF, _LONG = 3.0, 60.0  # seconds of gpu.wait
Act = Callable[[GpuLane, str], str]


def attempt(lane: GpuLane, name: str, act: Act, device: str, record: Record) -> bool:
    """Try one and note how it went; answers whether that is as it should be."""
    began, settings = time.monotonic(), lane.places.thaw_config.read_text()
    try:
        outcome, good = act(lane, device), True
    except (*_ERRORS, grpc.RpcError) as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error)
        outcome, good = f"{type(error).__name__}: {said}", False
        say(lane.log(20))
    lane.places.thaw_config.write_text(settings)
    lane.clear()
    lane.forget()
    seconds = round(time.monotonic() - began, 1)
    record.put({"outcome": outcome, "good": good, "seconds": seconds}, "faults", name)
    say(f"{name}: {'' if good else 'NOT AS IT SHOULD BE: '}{outcome} ({seconds} s)")
    return good


def holder(kind: str, device: str, *, driver: bool = False) -> Subject:
    """device_memory.py: it starts in no time. `driver`: all of its memory is left to that."""
    chosen = kind if device == "cuda" else "none"
    words = ("-m", "gpu.device_memory", chosen, str(SIZE[device]), str(PORT))
    notes = {"thaw.dev/gpu-memory": "driver"} if driver else {}
    return Subject(NAME, words, ("memory",), annotations=notes, starting=60)


def checkpoint(lane: GpuLane, container: Container, name: str = NAME) -> CompletedProcess[str]:
    """Ask for a snapshot; what became of it is the caller's to judge."""
    return lane.thaw("checkpoint", container.id, name, "--namespace", CRI_NAMESPACE, check=False)


def snapshot(lane: GpuLane, subject: Subject) -> dict[str, Any]:
    """One of a worker that has ended since; answers what it said."""
    cold, _, container = lane.boot(subject, f"{NAME}-cold", {})
    done = checkpoint(lane, container)
    if done.returncode:
        raise RuntimeError(f"no snapshot: {done.stderr}")
    lane.clear()
    return cold.answer


def _killed_away(stage: str) -> Act:
    """The worker is killed in a stage of the checkpoint: an error that says so, and no snapshot."""

    def act(lane: GpuLane, device: str) -> str:
        subject = holder("plain", device, driver=True)
        _, pod, container = lane.boot(subject, f"{NAME}-{stage}", {})
        pid, gpu = watching.init_of(container.id), device == "cuda"
        if stage == "lock":
            ask(pod.ip, PORT, "/busy")
            soon = time.monotonic() + 1.0
            condition: Callable[[], int] = lambda: pid if time.monotonic() > soon else 0  # noqa: E731
        elif stage == "checkpoint":
            condition = watching.being_checkpointed(pid, int(SIZE[device] * GIB))
        else:
            condition = watching.being_dumped(pid, gpu=gpu)
        with watching.Killer(condition) as killer:
            done = checkpoint(lane, container)
        if not killer.killed:
            raise Wrong("it was over before the worker could be killed")
        expect(done.returncode != 0, f"a snapshot of a killed worker: {done.stdout}")
        expect(not any(lane.places.snapshots.glob("snapshots/*")), "the store has something")
        expect(container.wait() == KILLED, "it did not end as killed")
        return f"no snapshot: {short(done.stderr)}"

    return act


def _killed_back(stage: str) -> Act:
    """The worker is killed in a stage of the restore: a cold boot with the reason in the log."""

    def act(lane: GpuLane, device: str) -> str:
        subject = holder("plain", device, driver=True)
        snapshot(lane, subject)
        pod = lane.run_pod_for(subject, f"{NAME}-{stage}", COLD)
        container = lane.container_in(pod, subject)
        watch = watching.being_restored if stage == "restore" else watching.restored
        condition = watch(container.id, int(SIZE[device] * GIB), gpu=device == "cuda")
        with watching.Killer(condition) as killer:
            container.start(STARTING)
            if not lane.restored(container):
                killed = killer.killed
                return booted_cold(lane, subject, pod, container, killed)
        expect(bool(killer.killed), "it was over before the worker could be killed")
        expect(container.wait() == KILLED, "it did not end as killed")
        return f"it ran already, and ended with {KILLED}"

    return act


def booted_cold(
    lane: GpuLane, subject: Subject, pod: Pod, container: Container, killed: int
) -> str:
    """Raise Wrong unless it was started anew and the log says why, which is answered."""
    expect(bool(killed), f"it was not killed, and not restored: {lane.reasons(container)}")
    subject.wait(pod.ip)
    expect(subject.answer(pod.ip)["answers"] == 1, "it was not started anew")
    reason = lane.reasons(container)
    expect(bool(reason), "the log has no reason")
    return f"cold boot: {short(reason)}"


def _together(lane: GpuLane, device: str) -> str:
    size = 4.0 if device == "cuda" else 0.05
    subjects = [pytorch(size, device, name) for name in ("one", "other")]
    cold = [lane.boot(subject, f"{subject.name}-cold", {}) for subject in subjects]
    for (boot, pod, container), subject in zip(cold, subjects, strict=True):
        done = checkpoint(lane, container, subject.name)
        expect(done.returncode == 0, done.stderr)
        compare("a worker after its snapshot", subject, boot.answer, subject.answer(pod.ip))
    lane.clear()

    def back(subject: Subject) -> float:
        notes = {"thaw.dev/snapshot": subject.name, "thaw.dev/on-failure": "fail"}
        boot, *_ = lane.boot(subject, f"{subject.name}-back", notes)
        [before] = [
            one.answer for (one, *_), of in zip(cold, subjects, strict=True) if of is subject
        ]
        compare("a worker beside another", subject, before, boot.answer)
        return boot.answered

    with ThreadPoolExecutor(len(subjects)) as pool:
        times = list(pool.map(back, subjects))
    words = " and ".join(f"{seconds:.1f} s" for seconds in times)
    return f"both restored at the same time, in {words}; all the same"


def _occupied(lane: GpuLane, device: str) -> str:
    subject = holder("plain", device)
    snapshot(lane, subject)
    lane.configure("gpu.wait", str(_BRIEF))
    with _occupant(lane) as other:
        began = time.monotonic()
        try:
            lane.boot(subject, f"{NAME}-occupied", FAIL)
        except grpc.RpcError as error:
            said = error.details() if isinstance(error, grpc.Call) else str(error)
        else:
            raise Wrong("it was restored where there was no room")
        waited = time.monotonic() - began
    expect(str(other) in said and "free" in said, f"it does not say that {other} has it: {said}")
    return f"refused after {waited:.1f} s: {short(said)}"


def _vacated(lane: GpuLane, device: str) -> str:
    subject = holder("plain", device)
    before = snapshot(lane, subject)
    lane.configure("gpu.wait", str(_LONG))
    with ThreadPoolExecutor(1) as pool:
        with _occupant(lane):
            restore = pool.submit(lane.boot, subject, f"{NAME}-vacated", FAIL)
            time.sleep(_BRIEF)
            expect(not restore.done(), "it did not wait")
        boot, *_ = restore.result(STARTING)
    compare("the one that waited", subject, before, boot.answer)
    return f"waited while another had the memory ({_BRIEF:g} s), and was restored; all the same"


@contextmanager
def _occupant(lane: GpuLane) -> Iterator[int]:
    """Somebody who leaves half of what the worker needs free."""
    size = str(-SIZE["cuda"] / 2)
    words = ["-m", "gpu.device_memory", "plain", size, str(OTHERS_PORT)]
    process = subprocess.Popen([lane.machine.python, *words], env=lane.machine.beside({}), cwd="/")
    try:
        wait_until_healthy("127.0.0.1", OTHERS_PORT, 60)
        yield process.pid
    finally:
        end([process.pid])


def _managed(lane: GpuLane, device: str) -> str:
    subject = holder("managed", device)
    boot, pod, container = lane.boot(subject, f"{NAME}-managed", {})
    said = _refused(lane, container)
    compare("the worker", subject, boot.answer, subject.answer(pod.ip))
    return f"refused, and it runs on: {said}"


def _imported(lane: GpuLane, device: str) -> str:
    subject = holder("imported", device)
    boot, pod, container = lane.boot(subject, f"{NAME}-imported", {})
    said = _refused(lane, container)
    try:
        container.wait(_NOTICED)
    except TimeoutError:
        compare("the worker", subject, boot.answer, subject.answer(pod.ip))
        return f"refused, and it runs on: {said}"
    return f"no snapshot, and the worker was ended: {said}"


def _refused(lane: GpuLane, container: Container) -> str:
    """What the checkpoint says, which must have failed and left nothing."""
    done = checkpoint(lane, container)
    expect(done.returncode != 0, "a snapshot was made of it")
    expect(any(word in done.stderr for word in REFUSED), f"it does not say why: {done.stderr}")
    expect(not any(lane.places.snapshots.glob("snapshots/*")), "the store has something")
    return short(done.stderr)


def _verified(lane: GpuLane, device: str) -> str:
    lane.configure("checkpoint.verify", '"restore"')
    subject = holder("plain", device)
    boot, pod, container = lane.boot(subject, f"{NAME}-original", {})
    began = time.monotonic()
    done = checkpoint(lane, container)
    took = time.monotonic() - began
    expect(done.returncode == 0, f"no snapshot: {done.stderr}")
    compare("the original", subject, boot.answer, subject.answer(pod.ip))
    lane.clear()
    back, *_ = lane.boot(subject, f"{NAME}-verified", FAIL)
    compare("the one restored from it", subject, boot.answer, back.answer)
    return f"made and verified in {took:.1f} s; the original and a restored one have the same"


def expect(holds: bool, otherwise: str) -> None:
    """Raise Wrong, in these words, unless it holds."""
    if not holds:
        raise Wrong(otherwise)


def short(text: str) -> str:
    """The beginning, on one line."""
    return " ".join(text.split())[:240]


ALL: dict[str, Act] = {
    **{f"killed-at-{stage}": _killed_away(stage) for stage in ("lock", "checkpoint", "dump")},
    **{f"killed-at-{stage}": _killed_back(stage) for stage in ("restore", "unlock")},
    "together": _together,
    "occupied": _occupied,
    "vacated": _vacated,
    "verified": _verified,
    "managed": _managed,
    "imported": _imported,
}
