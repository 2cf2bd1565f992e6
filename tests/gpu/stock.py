"""The same worker, dumped and restored by stock CRIU with the driver's calls around it.

    python -m gpu.stock < ASKED      prints one line of JSON: seconds of each step

No containerd, no runc, nothing of Thaw but its binding of the driver's calls: what is to be beaten.
Run by flow.py in the product's environment, with the worker's in its own; ASKED is what it says.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.bare import Criu, end, tree, wait_until_gone
from bench.disk import cool, files_below, warm
from gpu.subject import Subject, compare

from shim.gpu.driver import Driver
from shim.gpu.processes import all_of, cuda_processes, each

HERE = "127.0.0.1"
OPTIONS = ("--tcp-established", "--network-lock", "skip", "--link-remap", "--file-locks")
SHARED = Path("/dev/shm")
LOCK = 20.0  # seconds


class Steps:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def do(self, name: str, act: Callable[[], object]) -> None:
        """Measure it."""
        began = time.monotonic()
        act()
        self.seconds[name] = round(time.monotonic() - began, 3)


class Gpu:
    """The driver's calls for several processes, all at the same time; nothing without a GPU."""

    def __init__(self, library: str) -> None:
        self._driver = Driver.open(library) if library else None
        self._pids: list[int] = []
        if self._driver is not None:
            self._driver.init()

    def look(self, pids: list[int]) -> None:
        """Take those of `pids` that use CUDA."""
        if self._driver is not None:
            self._pids = cuda_processes(self._driver, pids)

    def lock(self) -> None:
        self._do(lambda driver, pid: driver.lock(pid, LOCK))

    def checkpoint(self) -> None:
        self._do(lambda driver, pid: driver.checkpoint(pid))

    def restore(self) -> None:
        self._do(lambda driver, pid: driver.restore(pid))

    def unlock(self) -> None:
        self._do(lambda driver, pid: driver.unlock(pid))

    def _do(self, act: Callable[[Driver, int], None]) -> None:
        driver = self._driver
        if driver is not None:
            failures = each(lambda pid: act(driver, pid), self._pids)
            if failures:
                raise all_of(failures)


def main(asked: dict[str, Any]) -> dict[str, object]:
    """One cold start, one checkpoint, some restores."""
    gpu = Gpu(asked["library"])  # cuInit is not what is measured
    criu, subject = Criu(Path(asked["criu"])), Subject(words=(), **asked["subject"])
    images, work = (Path(asked["folder"]) / name for name in ("images", "work"))
    for new in (images, work):
        new.mkdir(parents=True)
    steps = Steps()
    nothing = subprocess.DEVNULL
    began = time.monotonic()
    worker = subprocess.Popen(
        asked["command"],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
        cwd="/",
        env=asked["environment"],
    )
    pids = [worker.pid]
    try:
        subject.wait(HERE)
        subject.begin(HERE)
        steps.seconds["cold start"] = round(time.monotonic() - began, 3)
        before = subject.answer(HERE)
        pids = tree(worker.pid)
        gpu.look(pids)
        steps.do("lock", gpu.lock)
        steps.do("checkpoint", gpu.checkpoint)
        steps.do("dump", lambda: criu.dump(worker.pid, images, OPTIONS))
        kept = _shared(Path(asked["folder"]) / "shm")
        worker.wait()
        wait_until_gone(pids)
        restores = []
        for condition in asked["conditions"]:
            (warm if condition == "warm" else cool)(files_below([images]))
            _lay_shared(kept)
            told = _restored(criu, gpu, images, work, pids, subject, before)
            restores.append({"cache": condition, **told})
    finally:
        end(pids)
    total = sum(path.stat().st_blocks * 512 for path in images.iterdir())
    return {"checkpoint": steps.seconds, "restores": restores, "bytes": total}


def _restored(
    criu: Criu,
    gpu: Gpu,
    images: Path,
    work: Path,
    pids: list[int],
    subject: Subject,
    before: dict[str, Any],
) -> dict[str, object]:
    steps = Steps()
    began = time.monotonic()
    steps.do("criu", lambda: criu.restore(images, work, OPTIONS))
    steps.do("restore", gpu.restore)
    steps.do("unlock", gpu.unlock)
    steps.do("first answer", lambda: subject.begin(HERE))
    total = round(time.monotonic() - began, 3)
    after = subject.answer(HERE)
    end(pids)
    compare("what stock CRIU restored", subject, before, after)
    return {**steps.seconds, "answered": total}


def _shared(place: Path) -> Path:
    """A copy of /dev/shm: CRIU's links to unlinked files there are used up by one restore."""
    place.mkdir()
    for path in SHARED.iterdir():
        if path.is_file():
            shutil.copy2(path, place)
    return place


def _lay_shared(kept: Path) -> None:
    for path in kept.iterdir():
        if not (SHARED / path.name).exists():
            shutil.copy2(path, SHARED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the worker ends with it
    result = main(json.load(sys.stdin))
    print(json.dumps(result), flush=True)
    os._exit(0)  # without waiting for what the driver does at exit
