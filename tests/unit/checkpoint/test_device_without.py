"""A container that has nothing to do with GPUs is dumped as if there were none."""

from __future__ import annotations

import subprocess
import sys

from shim.checkpoint.device import Device, candidates
from shim.snapshot.cuda import CudaState

PROGRAM = """
import sys
from shim.checkpoint.device import recover, suspended
from shim.timeline import Timeline
import shim.checkpoint.engine, shim.engine, shim.restore.engine
from shim.restore.device import Device
from shim.snapshot.cuda import CudaState
class Work:
    details = {"pid": int(sys.argv[1])}
    config = None
class Snapshot:
    gpu = CudaState()
with suspended(Work, Timeline()) as held:
    assert held.state == CudaState()
    held.check()
    held.resume()
recover(Work)
device = Device()
device.expect(None, Snapshot)
assert device.judge(Work, {}, Snapshot) == []
assert device.report() == {}
print(*sorted(name for name in sys.modules if name.startswith(("shim.gpu", "pynvml"))))
"""


def test_it_costs_nothing() -> None:
    """Neither side so much as imports what it would be done with."""
    with subprocess.Popen(["sleep", "1000"]) as worker:
        command = [sys.executable, "-c", PROGRAM, str(worker.pid)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        worker.kill()
    assert (ran.returncode, ran.stderr) == (0, "")
    light = ("", ".given", ".hooks", ".preload", ".spec")  # which every daemon has, too
    assert set(ran.stdout.split()) <= {f"shim.gpu{name}" for name in light}


def test_a_worker_that_has_ended() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    assert candidates(gone.pid) == {}


def test_nothing_to_be_done() -> None:
    held = Device()
    held.check()
    held.save([], 0)
    held.resume()
    assert (held.state, held.gpus, held.copies) == (CudaState(), (), False)
