"""A PyTorch worker with every kind of GPU memory that engines have, and a second process of it.

    python -m gpu.everything GIB CACHE PORT [DEVICE]

GIB of random numbers and a graph (worker.py), CACHE GiB of zeros that nobody has touched, numbers
on several streams, pinned host memory that goes to the GPU and comes back, many small tensors, a
graph that is changed each time (changing.py), and a child, started by spawn, with a quarter of GIB
of its own.

    GET /health               200, once both are warm
    GET /first                what the graph gives, for who wants an answer soon
    GET /check                the sums of all of it
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

import torch
from gpu.answering import serve
from gpu.changing import Changing
from gpu.model import untouched
from gpu.worker import State, sums

STREAMS = 4
PINNED = 64 << 20  # bytes
SMALL = 500  # tensors, of a few KiB each


class Everything:
    """What lies on the GPU, and beside it."""

    def __init__(self, size: float, cache: float, device: str) -> None:
        self._device = device
        self._state = State(size, device)
        self._cache = untouched(cache, device)
        self._host = torch.arange(PINNED // 8, pin_memory=device == "cuda")
        self._back = torch.zeros_like(self._host, pin_memory=device == "cuda")
        self._small = [torch.full((n + 1,), n, device=device) for n in range(SMALL)]
        self._streams = [torch.cuda.Stream() for _ in range(STREAMS)] if device == "cuda" else []
        self._each = [torch.randn(1 << 20, device=device) for _ in self._streams]
        self._changing = Changing() if device == "cuda" else None

    def first(self) -> dict[str, Any]:
        """What does not take long."""
        return {"graph": self._state.graph()}

    def check(self) -> dict[str, Any]:
        """The sums of everything."""
        return {
            **self._state.check(),
            "cache": [int(block.count_nonzero()) for block in self._cache],
            "small": sum(int(one.sum()) for one in self._small),
            "streams": self._on_streams(),
            "pinned": self._there_and_back(),
            "changed": self._changing.check() if self._changing is not None else [],
        }

    def _on_streams(self) -> list[int]:
        """At the same time, on all of them."""
        made = []
        for stream, numbers in zip(self._streams, self._each, strict=True):
            with torch.cuda.stream(stream):
                made.append(torch.relu(numbers * 2).sort().values)
        if made:
            torch.cuda.synchronize()
        return [part for numbers in made for part in sums(numbers.view(torch.int32))]

    def _there_and_back(self) -> list[int]:
        there = self._host.to(self._device, non_blocking=True)
        self._back.copy_(there + 1, non_blocking=True)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return sums(self._back)


def second(size: float, device: str, line: Connection) -> None:
    """The child: answers whatever it is asked with its sums."""
    state = State(size, device)
    line.send(state.check())
    while True:
        line.recv()
        line.send(state.check())


def main(size: float, cache: float, port: int, device: str = "cuda") -> None:
    """Have it all, answer."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    context.Process(target=second, args=(size / 4, device, theirs), daemon=True).start()
    state = Everything(size, cache, device)
    state.check()
    ours.recv()

    def answer(path: str, _query: dict[str, str]) -> dict[str, Any]:
        if path == "/first":
            return state.first()
        ours.send(None)
        own = state.check()
        child = ours.recv()
        return {**own, "second": [child["memory"], child["graph"]], "pid": os.getpid()}

    serve(port, answer)


if __name__ == "__main__":
    size, cache, port, *device = sys.argv[1:]
    main(float(size), float(cache), int(port), *device)
