"""The part of a snapshot's config document that is about GPUs: what of a worker was on them.

As the rest of it, it is read as untrusted input; `check` says what the types alone do not.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any

from shim.lean.values import Value

PAGE = 4096
GPU_PAGE = 2 << 20  # bytes: regions of GPU memory are multiples of it
CONTEXT = 512 << 20  # bytes that the driver takes on a GPU for a process that makes memory there
# As NVML writes it; MIG devices have their own kind (MIG-…), and are refused elsewhere.
GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class Staging(Value):
    """A mapping that the driver has made for device memory: address and bytes."""

    address: int
    length: int


class GpuRegion(Value):
    """A piece of GPU memory of a process that is stored past the driver."""

    id: int  # the library's
    size: int  # bytes
    device: int  # the library's number of the GPU
    gpu: str  # its UUID
    rdma: bool = False  # network cards may reach it


class CudaProcess(Value):
    """A process whose GPU state lies in its own memory, by its pid inside the container."""

    pid: int
    staging: list[Staging] = field(default_factory=list)  # by address
    regions: list[GpuRegion] = field(default_factory=list)  # by id
    left: dict[str, int] = field(default_factory=dict)  # bytes that the driver has, by their kind
    reason: str = ""  # why the driver has all of it; "": what could be moved was


class CudaState(Value):
    """What of a worker was on GPUs: nothing, as a rule."""

    processes: list[CudaProcess] = field(default_factory=list)  # by pid
    uuids: list[str] = field(default_factory=list)  # of the container's GPUs, in its order
    memory: dict[str, int] = field(default_factory=dict)  # UUID → bytes there, but for regions'

    @property
    def pids(self) -> list[int]:
        """The pids inside the container."""
        return [process.pid for process in self.processes]

    @property
    def regions(self) -> list[GpuRegion]:
        """Those of all processes, in their order: extents (index/gpu) count them so."""
        return [region for process in self.processes for region in process.regions]

    @property
    def needed(self) -> dict[str, int]:
        """UUID → bytes that a restore needs there.

        Regions are made by the engine, which has a context beside the worker's until these are
        handed over.
        """
        found = dict(self.memory)
        for gpu in {region.gpu for region in self.regions}:
            found[gpu] = found.get(gpu, 0) + CONTEXT
        for region in self.regions:
            found[region.gpu] += region.size
        return found


def add_regions(document: dict[str, Any]) -> None:
    """What format 3 does not know. Of what has another form nothing is changed."""
    cuda = document.get("gpu")
    processes = cuda.get("processes") if isinstance(cuda, dict) else None
    for process in processes if isinstance(processes, list) else ():
        if isinstance(process, dict):
            process |= {"regions": [], "left": {}, "reason": ""}


def check(cuda: CudaState) -> None:
    """Raise ValueError unless numbers can be ones, and GPUs are told apart."""
    pids = cuda.pids
    if pids != sorted(set(pids)) or (pids and pids[0] < 1):
        raise ValueError(f"bad pids {str(pids)[:80]}")
    for area in (area for process in cuda.processes for area in process.staging):
        if area.address < 0 or area.length < 1 or area.address % PAGE or area.length % PAGE:
            raise ValueError(f"bad mapping {area}")
    for uuid in (*cuda.uuids, *cuda.memory):
        if not GPU_UUID.fullmatch(uuid):
            raise ValueError(f"bad GPU {uuid!a:.80}")
    if len(set(cuda.uuids)) != len(cuda.uuids) or not set(cuda.memory) <= set(cuda.uuids):
        raise ValueError("GPUs are listed twice, or not at all")
    if any(size < 0 for size in cuda.memory.values()):
        raise ValueError("bad size of memory")
    _check_regions(cuda)


def _check_regions(cuda: CudaState) -> None:
    """Sizes that can be, on GPUs that are listed."""
    for process in cuda.processes:
        ids = [region.id for region in process.regions]
        if ids != sorted(set(ids)) or (ids and ids[0] < 1):
            raise ValueError("regions are out of order")
        for region in process.regions:
            good = region.size > 0 and region.size % GPU_PAGE == 0 and 0 <= region.device < 1 << 16
            if not good or region.gpu not in cuda.uuids:
                raise ValueError(f"bad region {region.id}")
        if any(size < 0 for size in process.left.values()):
            raise ValueError("bad size of memory")
    if sum(region.size for region in cuda.regions) >= 1 << 63:
        raise ValueError("more memory than there is")
