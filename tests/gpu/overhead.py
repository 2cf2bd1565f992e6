"""What a program pays for the GPU memory library: run with it in LD_PRELOAD, and without.

    python -m gpu.overhead [DEVICE]      one line of JSON

alloc N, free N     microseconds of a cuMemAlloc and a cuMemFree of N MiB; medians
launch, graph       microseconds of a kernel launch and of a graph's of 20 kernels, by PyTorch
multiply            TFLOP/s of a matrix product
to, from, within    GiB/s of copies: pinned memory to the GPU and back, and within the GPU
small copies        microseconds of a copy of 4 KiB to the GPU, in a stream
memory              bytes of the GPU that a model takes (transformers' 0.6B shape), and the context

DEVICE cpu tries the program itself, where there is no GPU.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

MIB, GIB = 1 << 20, 1 << 30
SIZES = (1, 2, 20, 256, 2048)  # MiB
TIMES = 40  # of each
LAUNCHES = 5000
SIDE = 8192
SHAPE = {"cuda": "0.6B", "cpu": "tiny"}


def main(device: str = "cuda") -> None:
    """Measure everything and tell."""
    told: dict[str, float] = {}
    if device == "cuda":
        before = _used()
        told |= allocations()
        told |= launches() | copies()
        torch.cuda.empty_cache()
        told["memory"] = memory(device, before)
    else:
        told["memory"] = memory(device, 0)
    print(json.dumps({name: round(value, 3) for name, value in told.items()}), flush=True)


def allocations() -> dict[str, float]:
    """By the driver's own calls: what PyTorch keeps for itself is asked for once."""
    cuda = ctypes.CDLL("libcuda.so.1")
    torch.zeros(1, device="cuda")  # its context is current in this thread
    address, found = ctypes.c_uint64(), {}
    for size in SIZES:
        made, freed = [], []
        for _ in range(TIMES):
            made.append(_seconds(lambda: _do(cuda.cuMemAlloc_v2, address, size)))  # noqa: B023
            freed.append(_seconds(lambda: _check(cuda.cuMemFree_v2(address))))
        found[f"alloc {size}"] = statistics.median(made) * 1e6
        found[f"free {size}"] = statistics.median(freed) * 1e6
    return found


def launches() -> dict[str, float]:
    """Of kernels so small that the processor is what takes the time."""
    x = torch.zeros(1 << 10, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x.add_(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            x.add_(1)
    a = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    once = 2 * SIDE**3 / 1e12
    return {
        "launch": _each(lambda: x.add_(1), LAUNCHES) * 1e6,
        "graph": _each(graph.replay, LAUNCHES // 10) * 1e6,
        "multiply": once / _each(lambda: torch.mm(a, a), 30),
    }


def copies() -> dict[str, float]:
    """Of 1 GiB, and of very little."""
    here = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    there = torch.empty_like(here)
    pinned = torch.empty(GIB, dtype=torch.uint8).pin_memory()
    little, slight = here[:4096], pinned[:4096]
    return {
        "to": 1 / _each(lambda: here.copy_(pinned, non_blocking=True), 10),
        "from": 1 / _each(lambda: pinned.copy_(here, non_blocking=True), 10),
        "within": 1 / _each(lambda: there.copy_(here), 50),
        "small copies": _each(lambda: little.copy_(slight, non_blocking=True), LAUNCHES) * 1e6,
    }


def memory(device: str, before: int) -> float:
    """What the GPU has less with a model on it."""
    from gpu.model import generate, load

    model = load(SHAPE[device], device)
    generate(model, 2)
    return float(
        _used() - before if device == "cuda" else sum(p.nbytes for p in model.parameters())
    )


def _used() -> int:
    free, whole = torch.cuda.mem_get_info()
    return int(whole - free)


def _each(act: Callable[[], Any], times: int) -> float:
    """Seconds; the best of three rounds of so many."""

    def round_of() -> None:
        for _ in range(times):
            act()
        torch.cuda.synchronize()

    round_of()
    return min(_seconds(round_of) for _ in range(3)) / times


def _seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _do(call: Callable[..., int], address: ctypes.c_uint64, size: int) -> None:
    _check(call(ctypes.byref(address), ctypes.c_size_t(size * MIB)))


def _check(answered: int) -> None:
    if answered:
        raise RuntimeError(f"the driver answers {answered}")


if __name__ == "__main__":
    main(*sys.argv[1:])
