"""Whether GPU memory can be read by GPUDirect Storage here: what of it is seen without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

from shim.doctor.gpu import VERSION
from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, absent, bad, ok
from shim.gpu.memory.cufile import CALLS, LIBRARY, MODULES, NVIDIA_FS

_RING = "until then GPU memory is read into this machine's memory first"
_INSTALL = f"install cuFile of CUDA 12.9 or newer; {_RING}"


def storage(node: Node, load: Callable[[str], object] = ctypes.CDLL) -> Iterator[Verdict]:
    """GPUDirect Storage, as gpu.storage has it: nvidia-fs, and cuFile with what we call."""
    how = node.config.text("gpu.storage")
    if not _says(node, VERSION):
        yield absent("no GPU here", "nothing needs to be done")
    elif how == "ring":
        yield absent("gpu.storage says ring", 'gpu.storage = "auto" uses what there is')
    elif how == "auto" and not _says(node, NVIDIA_FS):
        yield absent("nvidia-fs is not loaded", "it is of use where snapshots are on NVMe disks")
    elif not _says(node, MODULES):
        yield bad(f"there is no {MODULES}, without which cuFile hangs", f"another kernel; {_RING}")
    else:
        yield _cufile(load, _says(node, NVIDIA_FS) or "nothing but cuFile's compatibility mode")


def _says(node: Node, path: str) -> str:
    """The first line of a file of the kernel's; nothing if it is not there."""
    try:
        return (node.read(path).splitlines() or ["?"])[0].strip() or "?"
    except OSError:
        return ""


def _cufile(load: Callable[[str], object], driver: str) -> Verdict:
    try:
        found = load(LIBRARY)
    except OSError as error:
        return bad(f"no {LIBRARY}: {error}", _INSTALL)
    missing = [call for call in CALLS if not hasattr(found, call)]
    if missing:
        return bad(f"cuFile has no {missing[0]}", _INSTALL)
    return ok(f"cuFile, nvidia-fs: {driver}")
