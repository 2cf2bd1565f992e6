"""Whether this node's GPUs can be checkpointed. Without any there is nothing to complain about.

The driver is not initialised for that: its library is looked into for the calls, and what the GPUs
are is asked of NVML.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence

from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, absent, bad, ok
from shim.errors import Unfit
from shim.gpu import nvml
from shim.gpu.nvml import Gpu
from shim.gpu.rules import unsupported

LIBRARY = "libcuda.so.1"
DRIVER = 570  # the first whose libcuda has the calls below
_CALLS = tuple(
    f"cuCheckpointProcess{verb}"
    for verb in ("Lock", "Checkpoint", "Restore", "Unlock", "GetState", "GetRestoreThreadId")
)
VERSION = "/sys/module/nvidia/version"
_UPDATE = f"install a driver from {DRIVER} on; workers without a GPU are not concerned"


def gpu(
    node: Node,
    load: Callable[[str], object] = ctypes.CDLL,
    ask: Callable[[], Sequence[Gpu]] = nvml.gpus,
) -> Iterator[Verdict]:
    """libcuda can take a process's GPU state and give it back; one more line for each GPU."""
    try:
        version = node.read(VERSION)
    except OSError:
        yield absent("no GPU here", f"an NVIDIA driver from {DRIVER} on, if there is one")
        return
    yield _driver(version, load)
    try:
        gpus = ask()
    except Unfit as error:
        yield bad(error.message, error.hint)
        return
    if not gpus:
        yield bad("NVML finds no GPU", "install the driver's libraries; see what nvidia-smi says")
    for found in gpus:
        yield _one(found)


def _driver(version: str, load: Callable[[str], object]) -> Verdict:
    try:
        library = load(LIBRARY)
    except OSError as error:
        return bad(f"driver {version}, but no {LIBRARY}: {error}", "install the driver's libraries")
    missing = [call for call in _CALLS if not hasattr(library, call)]
    if missing:
        return bad(f"driver {version} cannot checkpoint a process: no {missing[0]}", _UPDATE)
    if _branch(version) < DRIVER:  # a newer libcuda stands before the driver's: CUDA's "compat"
        return bad(f"driver {version} is too old, though {LIBRARY} has the calls", _UPDATE)
    return ok(f"driver {version}")


def _branch(version: str) -> int:
    """580 of 580.159.04; what is no version is taken to be new enough."""
    number = version.partition(".")[0]
    return int(number) if number.isascii() and number.isdecimal() else DRIVER


def _one(found: Gpu) -> Verdict:
    where = f"GPU {found.index}"
    for reason in unsupported([found]):
        return bad(reason, "workers on it boot cold; give them whole GPUs", where)
    return ok(f"{found.model}, {found.memory / (1 << 30):.0f} GiB, {found.uuid}", where)
