"""What a pod's shim may import, and the memory that its modules may take.

Every pod has a shim of its own, for as long as it lives: what one of them imports is paid again
and again. The engine and the command line may import what they like.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import _cffi_backend
import pytest
from fakes.pod import FAKES, make_bundle

from shim import _native
from shim.bundle import Bundle
from shim.config import Config
from shim.task.options import keep

CHECKOUT = Path(__file__).resolve().parents[2]
TOO_DEAR = {
    *("asyncio", "collections", "concurrent", "contextlib", "ctypes", "dataclasses", "datetime"),
    *("enum", "functools", "hashlib", "inspect", "json", "logging", "pathlib", "re", "selectors"),
    *("signal", "socket", "subprocess", "tempfile", "threading", "tomllib", "typing"),
    *("google.protobuf", "grpc", "rich", "urllib3"),
}
# As the launcher starts it; the extension may lie elsewhere if the checkout is installed editably.
BEGIN = """
import sys
sys.path[:0] = sys.argv[1:3]
import shim
shim.__path__.append(sys.argv[3])
"""
END = """
with open("/proc/self/smaps_rollup") as file:
    kib = sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
modules = sorted(sys.modules)
import json
with open(sys.argv[4], "w") as file:
    json.dump([kib, modules], file)
"""
DAEMON = "from shim import bootstrap, daemon, log\n"
# What the first pod brings along: its configuration, its container, its events.
POD = f"""
{DAEMON}
from shim import removal
from shim.proto import runc_pb, runtimeoptions_pb
from shim.task import checkpointing, contract, membership
from shim.worker import identity
from shim import conduct
from shim.ttrpc import client
"""
DELETE = """
import os
from shim.bootstrap import main
assert main(["-namespace", "test", "-id", "c", "-bundle", os.environ["BUNDLE"], "delete"]) == 0
"""
# KiB beyond a bare interpreter's; measured 2,310 and 2,430 (CPython 3.11, x86-64), and a margin.
DAEMON_BOUND = 2700
POD_BOUND = 2800


class Load:
    """A fresh interpreter that runs a program, as the launcher would start it."""

    def __init__(self, folder: Path) -> None:
        self._report = folder / "report"

    def run(self, program: str, **environment: str) -> tuple[int, set[str]]:
        """KiB of private memory, and the modules, once `program` has been run."""
        folders = [CHECKOUT, Path(_cffi_backend.__file__).parent, Path(_native.__file__).parent]
        arguments = map(str, [*folders, self._report])
        call = [sys.executable, "-IS", "-c", program + END, *arguments]
        ran = subprocess.run(
            call, capture_output=True, check=False, env={**os.environ, **environment}
        )
        assert ran.returncode == 0, ran.stderr
        kib, modules = json.loads(self._report.read_text())
        return kib, set(modules)

    def modules(self, program: str, **environment: str) -> set[str]:
        """The modules that `program` loads."""
        return self.run(BEGIN + program, **environment)[1]

    def kib(self, program: str) -> int:
        """The memory that `program` takes; the least of three, as the first may have to compile."""
        return min(self.run(program)[0] for _ in range(3))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return Load(tmp_path)


def test_the_list_can_be_broken(load: Load) -> None:
    """What is looked for is found where it is: in a program that does import it."""
    assert {"asyncio", "re", "enum", "shim"} <= load.modules("import asyncio")


@pytest.mark.parametrize("program", [DAEMON, POD], ids=["daemon", "pod"])
def test_modules_of_a_daemon(load: Load, program: str) -> None:
    modules = load.modules(program)
    assert "shim.task.service" in modules
    assert modules & TOO_DEAR == set()
    rooms = ("checkpoint", "restore", "snapshot", "cli", "work", "registration", "gpu")
    others = tuple(f"shim.{room}." for room in rooms)
    assert {name for name in modules if f"{name}.".startswith(others)} == set()
    assert modules & {"shim.worker.actions", "shim.worker.canary"} == set()


@pytest.mark.parametrize(
    ("program", "bound"), [(DAEMON, DAEMON_BOUND), (POD, POD_BOUND)], ids=["daemon", "pod"]
)
def test_memory_of_a_daemon(load: Load, program: str, bound: int) -> None:
    taken = load.kib(BEGIN + program) - load.kib("import sys")
    assert 500 < taken < bound, f"{taken} KiB"


def test_modules_of_delete(load: Load, tmp_path: Path) -> None:
    """The whole of it, with a container to remove: it has five seconds, and runs for every task."""
    bundle = make_bundle(tmp_path / "c", ["true"], {})
    (tmp_path / "runc").mkdir()
    settings = {
        "BinaryName": str(FAKES / "runc.py"),
        "Root": str(tmp_path / "runc"),
        "state": str(tmp_path / "state"),
    }
    keep(Bundle(str(bundle)), Config(settings))
    modules = load.modules(DELETE, BUNDLE=str(bundle))
    assert "delete" in (tmp_path / "runc" / "calls").read_text(), "it has done its work"
    assert "shim.deletion" in modules
    assert [name for name in modules if name.startswith(("shim.daemon", "shim.ttrpc"))] == []
    assert modules & TOO_DEAR == set()
