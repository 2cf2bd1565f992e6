"""The same worker, dumped and restored by stock CRIU with the driver's calls around it.

    stock.py FOLDER CRIU LIBRARY GIB PYTHON      prints one line of JSON: seconds of each step

No containerd, no runc, nothing of Thaw but its binding of the driver's calls: what is to be beaten.
Run by run.py in the product's environment, with the worker's in its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.bare import Criu, end, wait_until_gone
from gpu.asking import ask, wait_until_healthy

from shim.gpu.driver import Driver

WORKER = Path(__file__).with_name("worker.py")
PORT = 8017
OPTIONS = ("--tcp-established", "--network-lock", "skip", "--link-remap", "--file-locks")
RUNS = 2  # the first restore may find its images on the disk alone


class Steps:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def do(self, name: str, act: Callable[[], object]) -> None:
        """Measure it."""
        began = time.monotonic()
        act()
        self.seconds[name] = round(time.monotonic() - began, 3)


def main(folder: Path, criu: Criu, driver: Driver, size: str, python: str) -> dict[str, object]:
    """One cold start, one checkpoint, some restores."""
    images, work = folder / "images", folder / "work"
    for new in (images, work):
        new.mkdir(parents=True)
    steps = Steps()
    began = time.monotonic()
    nothing = subprocess.DEVNULL
    worker = subprocess.Popen(
        [python, str(WORKER), size, str(PORT)],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
        cwd="/",
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
    )
    try:
        wait_until_healthy("127.0.0.1", PORT)
        steps.seconds["cold start"] = round(time.monotonic() - began, 3)
        before = ask("127.0.0.1", PORT)
        driver.init()
        steps.do("lock", lambda: driver.lock(worker.pid, 10))
        steps.do("checkpoint", lambda: driver.checkpoint(worker.pid))
        steps.do("dump", lambda: criu.dump(worker.pid, images, OPTIONS))
        worker.wait()
        wait_until_gone([worker.pid])
        restores = [_restored(criu, driver, images, work, worker.pid, before) for _ in range(RUNS)]
    finally:
        end([worker.pid])
    total = sum(path.stat().st_blocks * 512 for path in images.iterdir())
    return {"checkpoint": steps.seconds, "restores": restores, "bytes": total}


def _restored(
    criu: Criu, driver: Driver, images: Path, work: Path, pid: int, before: dict[str, object]
) -> dict[str, object]:
    steps = Steps()
    steps.do("criu", lambda: criu.restore(images, work, OPTIONS))
    steps.do("restore", lambda: driver.restore(pid))
    steps.do("unlock", lambda: driver.unlock(pid))
    total = round(sum(steps.seconds.values()), 3)
    after = ask("127.0.0.1", PORT)
    end([pid])
    same = all(before[name] == after[name] for name in ("memory", "graph"))
    return {**steps.seconds, "total": total, "same": same}


if __name__ == "__main__":
    place, program, library, gib, interpreter = sys.argv[1:]
    made = Path(place)
    try:
        result = main(made, Criu(Path(program)), Driver.open(library), gib, interpreter)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    print(json.dumps(result), flush=True)
    os._exit(0)  # without waiting for what the driver does at exit
