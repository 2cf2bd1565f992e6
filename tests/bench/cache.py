"""How fast the node's cache is filled, and GPUs from there: `python -m tests.bench.cache --help`.

A snapshot of noise is read into a cache in huge pages (as root; otherwise wherever `--folder` is),
whose memory is pinned; then regions are filled from it, by themselves and as an engine asks for it,
over the socket, when they are made as well. No worker, no CRIU. Every figure is GiB/s.

Needs an NVIDIA driver and a GPU (`--uuid`, by default NVML's first), or a library that looks like
one, which tells nothing about a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from shim.cache import place
from shim.cache.client import Cached
from shim.cache.holder import Driver, Holder, listening
from shim.cache.intake import Intake
from shim.cache.pinned import put
from shim.cache.reading import Reading
from shim.cache.segments import SEGMENT, Segment
from shim.cache.store import Store
from shim.config import Config
from shim.errors import ThawError
from shim.gpu.driver import LIBRARY
from shim.gpu.memory.device import Memory, Region
from shim.gpu.memory.index import Stored
from shim.gpu.memory.making import Making, Wanted
from shim.gpu.nvml import Gpu, uuid_text
from shim.snapshot.layout import Blob

from .device import GIB, RECORD, Case, chosen, show, size_of, table, write_noise

_EXTENT = 4 << 20  # bytes, at most; none is in two regions
_TIMES = 3  # a fill is measured so often; the best counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    try:
        uuid = chosen(args.uuid)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            cases = _run(Path(folder), args, uuid)
    except (ThawError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(args.output, cases, table(cases))
    return 0


def _run(folder: Path, args: argparse.Namespace, uuid: bytes) -> list[Case]:
    cases: list[Case] = []

    def measured(kind: str, threads: int, act: Callable[[], object]) -> None:
        began = time.monotonic()
        act()
        cases.append(Case(kind, threads, args.size / GIB / (time.monotonic() - began)))

    found = _snapshot(folder, args.size, args.regions)
    with _memory(folder / "cache", args.size + SEGMENT), ExitStack() as stack:
        driver = Driver(args.library, lambda: [_named(uuid)])
        stack.callback(driver.close)
        store = Store(folder / "cache", args.size + SEGMENT)
        stack.callback(store.close)
        intake = Intake(folder, found)
        measured("taken in", args.threads, lambda: intake.run(store, args.threads))
        measured("pinned", 1, lambda: _pin(store, driver.pin))
        memory = Memory.open(args.library)
        stack.callback(memory.close)
        wanted = [Wanted(uuid, size) for size in found.regions]
        address = stack.enter_context(_listening(folder, store, driver))
        cached = Cached(address, intake.key, folder)
        with closing(Making(memory, wanted, range(len(wanted)))) as making:
            making.wait()
            for _ in range(_TIMES):
                measured("put", 1, lambda: _put(store, intake.key, making.regions))
        for _ in range(_TIMES):
            with ExitStack() as come:
                measured("asked for", 1, partial(_fill, cached, wanted, come))
    kinds = dict.fromkeys((case.kind, case.threads) for case in cases)
    best = {kind: max(c.gib_s for c in cases if c.kind == kind[0]) for kind in kinds}
    return [Case(*kind, rate) for kind, rate in best.items()]


def _snapshot(folder: Path, size: int, count: int) -> Stored:
    """A file of noise, as regions of equal size."""
    extents = write_noise(folder / "noise", size)
    each = max(size // count // _EXTENT, 1) * _EXTENT
    count = max(1, min(count, size // each))
    regions = [each] * (count - 1) + [size - each * (count - 1)]
    made = b""
    for address, offset, *rest in RECORD.iter_unpack(extents):
        number = min(address // each, count - 1)
        made += RECORD.pack(address - number * each, offset, rest[0], rest[1], number, 0, 0)
    return Stored(folder, [Blob("noise", size)], [folder / "noise"], made, regions)


@contextmanager
def _memory(folder: Path, size: int) -> Iterator[None]:
    """Where the cache is: in huge pages, if we may mount that."""
    if os.geteuid() != 0:
        folder.mkdir()
        yield
        return
    place.make(folder, size)
    try:
        yield
    finally:
        place.remove(folder)


@contextmanager
def _listening(folder: Path, store: Store, driver: Driver) -> Iterator[str]:
    """Where a holder can be asked."""
    reading = Reading(Config(), store, 1)
    address = str(folder / "cache.sock")
    with closing(listening(address)) as listener:
        holder = Holder(store, driver, reading)
        serving = threading.Thread(target=holder.serve, args=(listener,))
        serving.start()
        try:
            yield address
        finally:
            holder.stop(listener)
            serving.join()
            reading.close()


def _pin(store: Store, pin: Callable[[Segment], None]) -> None:
    for segment in store.segments.values():
        pin(segment)
    if store.accounts().pinned < store.accounts().held:
        print("memory of the cache is not pinned", file=sys.stderr)


def _put(store: Store, key: str, regions: Sequence[Region]) -> None:
    with store.using(key) as record:
        assert record is not None
        put(regions, store.memory(record), record.extents)


def _fill(cached: Cached, wanted: Sequence[Wanted], come: ExitStack) -> None:
    """Regions that go with `come`."""
    regions = cached.fill(wanted, lambda: None)
    if regions is None:
        raise OSError("the cache did not fill the regions")
    for region in regions:
        come.callback(region.close)


def _named(uuid: bytes) -> Gpu:
    return Gpu(0, 0, uuid_text(uuid), "", 0, 0, "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cache", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", type=size_of, default=GIB, help="of the snapshot (1G)")
    parser.add_argument("--regions", type=int, default=16, help="into which it is divided (16)")
    parser.add_argument("--threads", type=int, default=4, help="that read it in (4)")
    parser.add_argument("--folder", default="/dev/shm", help="where the file is (/dev/shm)")
    parser.add_argument("--library", default=LIBRARY, help="of the driver")
    parser.add_argument("--uuid", default="", help="of the GPU (NVML's first)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
