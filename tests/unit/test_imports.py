"""What a pod's shim may import, and the memory that its modules may take.

Every pod has a shim of its own, for as long as it lives: what one of them imports is paid again
and again. The engine and the command line may import what they like.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import _cffi_backend
import pytest

from shim import _native

CHECKOUT = Path(__file__).resolve().parents[2]
TOO_DEAR = {
    *("asyncio", "collections", "concurrent", "contextlib", "ctypes", "dataclasses", "datetime"),
    *("enum", "functools", "hashlib", "inspect", "json", "logging", "pathlib", "re", "selectors"),
    *("signal", "socket", "subprocess", "tempfile", "threading", "tomllib", "typing"),
    *("google.protobuf", "grpc"),
}
# As the launcher starts it; the extension may lie elsewhere if the checkout is installed editably.
BEGIN = """
import sys
sys.path[:0] = sys.argv[1:3]
import shim
shim.__path__.append(sys.argv[3])
"""
END = """
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
kib, modules = private(), sorted(sys.modules)
import json
print(json.dumps([kib, modules]))
"""
DAEMON = "from shim import bootstrap, daemon, log"
DELETE = "from shim import bootstrap, deletion"
DAEMON_KIB = 0  # measured: 0 more than a bare interpreter's


def loaded(statement: str) -> tuple[int, set[str]]:
    """KiB of private memory, and the modules, of a fresh interpreter that ran `statement`."""
    program = BEGIN + statement + END if statement else "import sys" + END
    folders = [CHECKOUT, Path(_cffi_backend.__file__).parent, Path(_native.__file__).parent]
    call = [sys.executable, "-IS", "-c", program, *map(str, folders)]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    kib, modules = json.loads(ran.stdout)
    return kib, set(modules)
