"""One worker's whole way: cold start, snapshot, pod deleted, restores each in a pod of its own.

A restore may not fall back to a cold start here, and every answer is compared with the first: the
figures are of workers that are whole. The same worker is then dumped and restored by stock CRIU
with the driver's calls around it (stock.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bed import fetch
from bed.lane import CRI_NAMESPACE
from bench.disk import cool, files_below, warm
from gpu.figures import COLD, HELD, LATER, WARM
from gpu.held import holding
from gpu.lane import GpuLane
from gpu.machine import Machine
from gpu.record import Record, say
from gpu.subject import TESTS, Subject, Wrong, compare

from shim.gpu.spec import ENVIRONMENT

_IO_URING = Path("/proc/sys/kernel/io_uring_disabled")
_WHILE = 0.5  # seconds: a kubelet looks for images and mounts volumes in between
_ROOM = 2.0  # GiB that it has beside that


class Restores(NamedTuple):
    """How often it is restored, by what the page cache is."""

    cold: int = 1
    warm: int = 3
    held: int = 0  # with the node's cache; only through containerd, as what follows
    rounds: int = 0  # each of a snapshot of the one before

    @property
    def conditions(self) -> list[str]:
        """Each restore's, in order."""
        return [COLD] * self.cold + [WARM] * self.warm


def through_containerd(
    lane: GpuLane,
    subject: Subject,
    restores: Restores,
    record: Record,
    look: Callable[[Path], None] | None = None,
) -> None:
    """Do all of it. `look` is shown the snapshot's folder before it is removed. Raises Wrong."""
    place = ("workers", subject.name, "thaw")
    say(f"{subject.name}: booting it")
    cold, pod, container = lane.boot(subject, f"{subject.name}-cold", {})
    record.put({"cold": cold.times()}, *place)  # an earlier run's restores are another snapshot's
    say(f"{subject.name}: first answer after {cold.answered:.2f} s; making a snapshot")
    began = time.monotonic()
    lane.thaw("checkpoint", container.id, subject.name, "--namespace", CRI_NAMESPACE)
    made: dict[str, Any] = {"seconds": time.monotonic() - began, **_account(lane.newest())}
    made["said"] = {}
    if lane.machine.library is not None:
        made["said"] = lane.told(container, "GPU memory dumped")
    record.put(made, *place, "snapshot")
    digest = compare("the worker after it", subject, cold.answer, subject.answer(pod.ip))
    record.put(digest, "workers", subject.name, "same")
    lane.clear()
    for number, condition in enumerate(restores.conditions):
        _restored(lane, subject, f"{subject.name}-{number}", condition, cold.answer, record)
    if restores.held:
        with holding(lane, float(made["said"].get("stored", 0.0)) + _ROOM):
            began = time.monotonic()
            lane.thaw("warm", subject.name)
            record.put(time.monotonic() - began, *place, "warmed")
            for condition in (HELD, LATER):
                for number in range(restores.held):
                    name = f"{subject.name}-{condition}-{number}"
                    _restored(lane, subject, name, condition, cold.answer, record)
    if look is not None:
        look(lane.newest())
    if restores.rounds:
        _in_a_row(lane, subject, restores.rounds, cold.answer, record)
    lane.forget()


def _in_a_row(
    lane: GpuLane, subject: Subject, many: int, before: dict[str, Any], record: Record
) -> None:
    """Restore it, make a snapshot of what was restored, and again, each from the one before."""
    place = ("workers", subject.name, "thaw", "rounds")
    made: list[dict[str, Any]] = []
    name = subject.name
    for number in range(many):
        notes = {"thaw.dev/snapshot": name, "thaw.dev/on-failure": "fail"}
        back, pod, container = lane.boot(subject, f"{subject.name}-again-{number}", notes)
        compare("the one restored again", subject, before, back.answer)
        began, last, name = time.monotonic(), name, f"{subject.name}-{number}"
        lane.thaw("checkpoint", container.id, name, "--namespace", CRI_NAMESPACE)
        took = time.monotonic() - began
        compare("the one restored, after its snapshot", subject, before, subject.answer(pod.ip))
        lane.clear()
        lane.thaw("rm", last)
        made.append({"restored": back.answered, "snapshot": took, "said": back.restored})
        record.put(made, *place)
        say(f"{subject.name}: round {number + 1}: {back.answered:.2f} s, snapshot {took:.2f} s")


def _restored(
    lane: GpuLane,
    subject: Subject,
    pod_name: str,
    condition: str,
    before: dict[str, Any],
    record: Record,
) -> None:
    _condition(condition, lane.newest())
    notes = {"thaw.dev/snapshot": subject.name, "thaw.dev/on-failure": "fail"}
    pause = _WHILE if condition == LATER else 0.0
    back, *_ = lane.boot(subject, pod_name, notes, pause=pause)
    compare("the restored worker", subject, before, back.answer)
    if condition in (HELD, LATER) and back.restored.get("gpu", {}).get("from") != "cache":
        raise Wrong("its GPU memory did not come from the node's cache")
    found = record.found["workers"][subject.name]["thaw"].setdefault("restores", [])
    found.append({"cache": condition, **back.times()})
    record.save()
    say(f"{subject.name}: restored, page cache {condition}, {back.answered:.2f} s; all the same")
    lane.clear()


def _condition(condition: str, folder: Path) -> None:
    """Have a folder's files in the page cache, or not."""
    files = files_below([folder])
    (cool if condition == COLD else warm)(files)


def _account(folder: Path) -> dict[str, Any]:
    """The snapshot's own account: seconds of each step, bytes, its GPU part."""
    document = json.loads((folder / "config.json").read_text())
    return {
        "steps": {span["name"]: round(span["seconds"], 3) for span in document["spans"]},
        "spans": document["spans"],
        "bytes": sum(document["sizes"].values()),
        "gpu": {**document["gpu"], "processes": [_brief(p) for p in document["gpu"]["processes"]]},
    }


def _brief(process: dict[str, Any]) -> dict[str, Any]:
    """With all of its regions as one, which are hundreds, and without the driver's staging."""
    whole = {"size": sum(region["size"] for region in process.get("regions", []))}
    told = {name: value for name, value in process.items() if name not in ("regions", "staging")}
    return {**told, "regions": [whole] if whole["size"] else []}


def stock(lane: GpuLane, subject: Subject, restores: Restores, record: Record) -> None:
    """The same with CRIU and the driver alone, in a process that ends with it."""
    say(f"{subject.name}: the same with stock CRIU and the driver's calls")
    assert lane.installation is not None
    machine = lane.machine
    command = [str(lane.installation.bin / "python"), "-m", "gpu.stock"]
    place = tempfile.TemporaryDirectory(prefix="thaw-gpu-stock-", dir=fetch.cache_folder())
    with place as folder, _no_io_uring():
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TESTS,  # or the checkout's shim would be taken for the installed one
            env={**os.environ, **machine.libraries},
        )
        try:
            said, _ = process.communicate(json.dumps(_asked(machine, subject, restores, folder)))
        finally:
            process.terminate()  # if it is late; it ends its worker, which would answer the next
            process.wait()
    if process.returncode:
        raise RuntimeError(f"stock CRIU: exit {process.returncode}")
    record.put(json.loads(said.splitlines()[-1]), "workers", subject.name, "stock")


def _asked(machine: Machine, subject: Subject, restores: Restores, folder: str) -> dict[str, Any]:
    """What stock.py is told: the same worker, with what the shim would have given it."""
    given = {name: value for name, value, _ in ENVIRONMENT}
    fields = ("name", "same", "first", "whole", "port", "starting", "body")
    return {
        "folder": folder,
        "criu": str(fetch.criu()),
        "library": str(machine.library or ""),
        "command": [machine.python, *subject.words],
        "environment": machine.beside({**given, **subject.environment}),
        "subject": {name: getattr(subject, name) for name in fields},
        "conditions": restores.conditions,
    }


@contextmanager
def _no_io_uring() -> Iterator[None]:
    """A block in which nobody on this machine gets any, where that can be said."""
    before = _IO_URING.read_text() if _IO_URING.exists() else ""
    if before:
        _IO_URING.write_text("2")
    try:
        yield
    finally:
        if before:
            _IO_URING.write_text(before)
