"""A PyTorch worker whose every byte on the GPU can be checked: random memory and a CUDA graph.

    python -m gpu.worker GIB PORT [DEVICE]     a random bf16 tensor of so many GiB, and a graph

    GET /health               200, once it is warm
    GET /check                checksums of the whole tensor, and of what a replay of the graph gives

It knows nothing of Thaw. What it answers depends on nothing but its size, so a worker that was
restored, one that was started anew and the one beside them answer alike but for `answers`, which
says how often this very process has been asked. Without a GPU (DEVICE cpu) there is no graph.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from gpu.answering import serve

SEED = 20250101
BLOCK = 1 << 28  # elements that are summed up at a time
SIDE = 2048  # of the graph's matrices


class State:
    """What lies on the GPU."""

    def __init__(self, size: float, device: str) -> None:
        torch.manual_seed(SEED)
        count = int(size * (1 << 30)) // 2
        self.memory = torch.empty(count, dtype=torch.bfloat16, device=device)
        for begin in range(0, count, BLOCK):
            self.memory[begin : begin + BLOCK].normal_()
        self._answers = 0
        self._given = torch.randn(SIDE, SIDE, device=device)
        self._weights = torch.randn(SIDE, SIDE, device=device) / SIDE**0.5
        self._graph: Any = None
        self._result: Any = None
        if device == "cuda":
            self._graph, self._result = self._captured()

    def _captured(self) -> tuple[Any, Any]:
        """A graph of what a small network does; warmed up on a stream of its own, as it must be."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._network()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._network()
        return graph, result

    def _network(self) -> Any:
        out = self._given
        for _ in range(4):
            out = torch.relu(out @ self._weights)
        return out

    def _replayed(self) -> Any:
        if self._graph is None:
            return self._network()
        self._graph.replay()
        torch.cuda.synchronize()
        return self._result

    def graph(self) -> list[int]:
        """The checksums of what a replay gives."""
        return sums(self._replayed().view(torch.int32))

    def check(self) -> dict[str, Any]:
        """The checksums, and how often they were asked for."""
        self._answers += 1
        return {
            "memory": sums(self.memory.view(torch.int16)),
            "graph": self.graph(),
            "answers": self._answers,
            "pid": os.getpid(),
        }


def sums(numbers: Any) -> list[int]:
    """Two sums for each block: of the numbers, and of the numbers by their places."""
    flat = numbers.flatten()
    found: list[int] = []
    for begin in range(0, flat.numel(), BLOCK):
        block = flat[begin : begin + BLOCK]
        places = torch.arange(1, block.numel() + 1, dtype=torch.int32, device=block.device)
        found.append(int(block.sum(dtype=torch.int64)))
        found.append(int((block.to(torch.int32) ^ places).sum(dtype=torch.int64)))
    return found


def main(size: float, port: int, device: str = "cuda") -> None:
    """Fill the memory, capture the graph, answer."""
    state = State(size, device)
    state.check()
    serve(port, lambda _path, _query: state.check())


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
