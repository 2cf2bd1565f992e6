"""Whether this node's GPUs can be checkpointed. Without any there is nothing to complain about."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, absent, bad, ok

LIBRARY = "libcuda.so.1"
DRIVER = 570  # the first whose libcuda has the calls below
_CALLS = ("cuCheckpointProcessLock", "cuCheckpointProcessRestore")
_VERSION = "/sys/module/nvidia/version"


def gpu(node: Node, load: Callable[[str], object] = ctypes.CDLL) -> Iterator[Verdict]:
    """libcuda can take a process's GPU state and give it back."""
    try:
        version = node.read(_VERSION)
    except OSError:
        yield absent("no GPU here", "an NVIDIA driver from 570 on, if there is one")
        return
    try:
        library = load(LIBRARY)
    except OSError as error:
        yield bad(f"driver {version}, but no {LIBRARY}: {error}", "install the driver's libraries")
        return
    if all(hasattr(library, call) for call in _CALLS):
        yield ok(f"driver {version}")
    else:
        yield bad(
            f"driver {version} cannot checkpoint a process",
            f"install a driver from {DRIVER} on; workers without a GPU are not concerned",
        )
