"""Thaw's way to restore a folder of CRIU's images, as its engine does it, without a container."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shim.config import Config
from shim.criu import CONFIG, Steering
from shim.restore import huge
from shim.restore.memory import Filling
from shim.snapshot.cuda import CudaProcess
from shim.snapshot.index import FOLDER, Index

from .bare import Criu


@dataclass(frozen=True)
class Timed:
    """Seconds of a restore."""

    whole: float
    reading: float  # from the first read until the last byte was in place
    filling: float  # of these, what came after CRIU's part


def restore(
    criu: Criu,
    images: Path,
    work: Path,
    *,
    threads: int,
    budget: int,
    source: int = 0,
    pages: Sequence[Path] | None = None,
    staging: Sequence[CudaProcess] = (),
    look: Callable[[int], object] = lambda _: None,
) -> Timed:
    """Restore images that have an index: read ahead, the skeleton by CRIU, the rest after it.

    `work` is a folder for CRIU's log, its configuration, and links; `budget` in bytes; `pages` are
    the folders with the pages in pieces, if they are; `staging` comes first, in huge pages; `look`
    is called with the first process's pid when all is filled and nothing runs. Raises what the fill
    raised, or Failed.
    """
    began = time.monotonic()
    index = Index.open(images / FOLDER, images, pages)
    index.check_files()
    links = work / "links"
    index.link(links)
    for name, data in huge.images(images, Config(), staging).items():
        (links / name).unlink()
        (links / name).write_bytes(data)
    filled: list[float] = []
    with Filling(index, threads=threads, budget=budget, source=source, staging=staging) as filling:
        reading = time.monotonic()
        filling.hurry()  # the container is there
        filling.prefetch()

        def fill(init: int) -> None:
            filled.append(time.monotonic())
            filling.fill(init)
            filled.append(time.monotonic())
            look(init)

        with Steering(work, [], {"post-restore": fill}) as steering:
            try:
                criu.restore(links, work, ["--config", str(work / CONFIG)])
            except BaseException as error:
                filling.cancel()  # or the thread that fills would be waited for
                raise steering.failure or error from error
        whole = time.monotonic() - began
    before, after = filled
    return Timed(whole, after - reading, after - before)
