"""A PyTorch worker whose every byte on the GPU can be checked: random memory and a CUDA graph.

    worker.py GIB PORT        a random bf16 tensor of so many GiB, and a captured graph

    GET /health               200, once it is warm
    GET /check                checksums of the whole tensor, and of what a replay of the graph gives

It knows nothing of Thaw. What it answers depends on nothing but its size, so a worker that was
restored, one that was started anew and the one beside them answer alike but for `answers`, which
says how often this very process has been asked.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any

import torch

SEED = 20250101
BLOCK = 1 << 28  # elements that are summed up at a time
SIDE = 2048  # of the graph's matrices


class State:
    """What lies on the GPU."""

    def __init__(self, size: float) -> None:
        torch.manual_seed(SEED)
        count = int(size * (1 << 30)) // 2
        self.memory = torch.empty(count, dtype=torch.bfloat16, device="cuda")
        for begin in range(0, count, BLOCK):
            self.memory[begin : begin + BLOCK].normal_()
        self._answers = 0
        self._turn = threading.Lock()
        self._given = torch.randn(SIDE, SIDE, device="cuda")
        self._weights = torch.randn(SIDE, SIDE, device="cuda") / SIDE**0.5
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

    def check(self) -> dict[str, Any]:
        """The checksums, and how often they were asked for."""
        with self._turn:
            self._answers += 1
            self._graph.replay()
            torch.cuda.synchronize()
            return {
                "memory": sums(self.memory.view(torch.int16)),
                "graph": sums(self._result.view(torch.int32)),
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


def main(size: float, port: int) -> None:
    """Fill the memory, capture the graph, answer."""
    state = State(size)
    state.check()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = state.check() if self.path == "/check" else {}
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    # Not http.server's own, which asks for its name: where there is no DNS that takes its time.
    TCPServer.allow_reuse_address = True
    with TCPServer(("0.0.0.0", port), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
