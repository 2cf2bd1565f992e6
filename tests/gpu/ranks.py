"""Two processes, each with a GPU of its own, that add up what they have by NCCL; and one without.

    python -m gpu.ranks GIB PORT [DEVICE]     so much memory on each GPU

    GET  /check        checksums of each one's memory, and of the sum that each has got
    POST /quiesce      tear NCCL down: what it holds of other GPUs and of the network is not saved
    POST /resume       build it up again

Between the last two they cannot be asked. The processes are spawned; what they share is a pipe.
Without a GPU (DEVICE cpu) they use Gloo.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu.answering import serve
from gpu.worker import sums

RANKS = 2
SEED = 20250101
SHARED = 1 << 24  # numbers that are added up
MEETING = "/tmp/thaw-ranks-{}"  # a file where they find one another, for each time another


class Rank:
    """What one of them has."""

    def __init__(self, rank: int, size: float, device: str) -> None:
        self._rank, self._cuda = rank, device == "cuda"
        if self._cuda:
            torch.cuda.set_device(rank)
        torch.manual_seed(SEED + rank)
        place = f"cuda:{rank}" if self._cuda else device
        self._memory = torch.randn(int(size * (1 << 30)) // 4, device=place)
        self._times = 0
        self.resume()

    def resume(self) -> list[int]:
        """Meet the other one."""
        self._times += 1
        meeting = MEETING.format(self._times)
        backend = "nccl" if self._cuda else "gloo"
        dist.init_process_group(
            backend, init_method=f"file://{meeting}", rank=self._rank, world_size=RANKS
        )
        self.check()  # the first one is what builds up the connections
        return []

    def quiesce(self) -> list[int]:
        """Leave the other one."""
        dist.barrier()
        dist.destroy_process_group()
        if self._cuda:
            torch.cuda.synchronize()
        if self._rank == 0:
            Path(MEETING.format(self._times)).unlink(missing_ok=True)
        return []

    def check(self) -> list[int]:
        """Checksums of its own memory, and of the sum."""
        total = self._memory[:SHARED].clone()
        dist.all_reduce(total)
        return [*sums(self._memory.view(torch.int32)), *sums(total.view(torch.int32))]


def work(rank: int, size: float, device: str, pipe: Connection) -> None:
    """One process: does what it is told, until nobody tells it any longer."""
    mine = Rank(rank, size, device)
    acts = {"check": mine.check, "quiesce": mine.quiesce, "resume": mine.resume}
    pipe.send([])
    while True:
        try:
            word = pipe.recv()
        except EOFError:
            return
        pipe.send(acts[word]())


def main(size: float, port: int, device: str = "cuda") -> None:
    """Start them, and pass on what is asked."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    for rank in range(RANKS):
        ours, theirs = context.Pipe()
        context.Process(target=work, args=(rank, size, device, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    answers = 0

    def answer(path: str, _query: dict[str, str]) -> dict[str, Any]:
        nonlocal answers
        for pipe in pipes:
            pipe.send(path.strip("/"))
        told = [pipe.recv() for pipe in pipes]
        answers += path == "/check"
        return {"sums": told, "answers": answers, "pid": os.getpid()}

    serve(port, answer)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
