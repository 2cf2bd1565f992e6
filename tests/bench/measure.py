"""One case of the benchmark: a worker is dumped once, and restored in every way in the same run."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shim.snapshot.index import FOLDER, Index
from shim.snapshot.indexing import make

from . import thaw
from .bare import Criu, Failed
from .disk import cool, files_below, fio_rate, in_memory, warm
from .programs import Worker, compiled, memcpy_rate
from .thaw import Timed

GIB = 1 << 30

# As much as the ceiling copies at most: its rate is the same for more.
_CEILING = 8 * GIB


@dataclass(frozen=True)
class Figures:
    """What was measured of one case: seconds, and GiB/s of the bytes that Thaw fills.

    Cold figures begin when Thaw begins to read: `cold_gib_s` ends with the last byte in place. None
    is what was not measured.
    """

    size_gib: float
    processes: int
    threads: int
    pages: str
    fill_gib_s: float
    memcpy_gib_s: float
    cold_gib_s: float | None
    fio_gib_s: float | None
    stock_s: float
    thaw_s: float
    stock_cold_s: float | None
    thaw_cold_s: float | None


@dataclass(frozen=True)
class Plan:
    """What to measure and how."""

    folder: Path
    criu: Criu
    threads: Sequence[int]
    runs: int
    huge: bool
    cold: bool
    budget: int  # bytes of read-ahead buffers


def measured(plan: Plan, size: int, processes: int) -> Iterator[Figures]:
    """The figures of a worker of `size` bytes in all, for each number of threads."""
    folder = plan.folder / f"{size}-{processes}"
    folder.mkdir()
    try:
        yield from _Bench(plan, size, processes, folder).figures()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Bench:
    def __init__(self, plan: Plan, size: int, processes: int, folder: Path) -> None:
        self._plan = plan
        self._size = size
        self._processes = processes
        self._folder = folder
        self._images = folder / "images"
        self._work = folder / "work"
        self._ceiling = compiled("ceiling", folder)
        for new in (self._images, self._work):
            new.mkdir()

    def figures(self) -> Iterator[Figures]:
        plan = self._plan
        program = compiled("worker", self._folder)
        self._tell("a worker fills its memory")
        with Worker(program, self._folder, self._size, self._processes, plan.huge) as worker:
            self._tell("criu dump")
            plan.criu.dump(worker.pid, self._images)
            worker.end()
            index = make(self._images, self._images / FOLDER)
            if index.reason:
                raise Failed(f"the images cannot be indexed: {index.reason}")
            cold = plan.cold and not in_memory(self._images)
            if plan.cold and not cold:
                self._tell(f"{self._images} is in memory: nothing can be cold")
            self._tell("stock CRIU")
            stock = self._median(worker, self._warm, self._stock)
            stock_cold = self._median(worker, self._cool, self._stock) if cold else None
            fio = self._fio(index) if cold else None
            for threads in plan.threads:
                yield self._thaw(worker, index, threads, stock, stock_cold, fio)

    def _thaw(
        self,
        worker: Worker,
        index: Index,
        threads: int,
        stock: float,
        stock_cold: float | None,
        fio: float | None,
    ) -> Figures:
        plan = self._plan
        gib = index.bytes / GIB
        restored: list[Timed] = []
        copied: list[float] = []

        def restore() -> float:
            budget = plan.budget
            timed = thaw.restore(
                plan.criu, self._images, self._work, threads=threads, budget=budget
            )
            restored.append(timed)
            return timed.whole

        def both() -> float:
            # In turn: the speed of a machine drifts.
            size = min(self._size, _CEILING)
            copied.append(memcpy_rate(self._ceiling, size, threads, plan.huge))
            return restore()

        self._tell(f"Thaw, {threads} threads")
        seconds = self._median(worker, self._warm, both)
        filled = statistics.median(gib / each.filling for each in restored)
        cold, cold_rate = None, None
        if stock_cold is not None:
            restored.clear()
            cold = self._median(worker, self._cool, restore)
            cold_rate = statistics.median(gib / each.reading for each in restored)
        return Figures(
            size_gib=self._size / GIB,
            processes=self._processes,
            threads=threads,
            pages="huge" if plan.huge else "small",
            fill_gib_s=filled,
            memcpy_gib_s=statistics.median(copied),
            cold_gib_s=cold_rate,
            fio_gib_s=fio,
            stock_s=stock,
            thaw_s=seconds,
            stock_cold_s=stock_cold,
            thaw_cold_s=cold,
        )

    def _median(
        self, worker: Worker, prepare: Callable[[], None], restore: Callable[[], float]
    ) -> float:
        """Seconds of a way to restore, verified each time, the worker ended again."""
        seconds = []
        for _ in range(self._plan.runs):
            prepare()
            worker.forget()
            seconds.append(restore())
            worker.verify()
            worker.end()
        return statistics.median(seconds)

    def _warm(self) -> None:
        warm(files_below([self._images]))

    def _cool(self) -> None:
        cool(files_below([self._images]))

    def _stock(self) -> float:
        return self._plan.criu.restore(self._images, self._work)

    def _fio(self, index: Index) -> float | None:
        self._tell("fio")
        files = [self._images / blob.name for blob in index.sources if blob.size]
        cool(files)
        return fio_rate([file for file in files if file.stat().st_size >= 64 << 20] or files)

    def _tell(self, what: str) -> None:
        gib = self._size / GIB
        print(f"# {gib:g} GiB in {self._processes}: {what}", file=sys.stderr, flush=True)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
