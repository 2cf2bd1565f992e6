"""How fast memory comes back, and how fast it could: `python -m tests.bench.restore --help`.

For each size and number of processes a worker with random private memory is dumped by CRIU. It is
then restored by stock CRIU and by Thaw, with the images in the page cache (warm) and out of it
(cold), in the same run as two ceilings: a parallel memcpy into fresh memory of the same page size,
and what fio reads from the same files past the page cache. After each restore the worker looks at
every byte.

Needs root, gcc, CRIU 4.2 or later, an installed shim (`pip install -e .`), and for one ceiling fio;
neither containerd nor a network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from .bare import Failed, chosen_criu
from .report import Row, document, load, table

_UNITS = {"M": 1 << 20, "G": 1 << 30}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, or draw what one has written."""
    args = _parser().parse_args(argv)
    try:
        measured = load(args.from_file) if args.from_file else _run(args)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(json.dumps(measured, indent=2) if args.output == "json" else table(measured))
    if args.plot:
        from .plot import draw  # matplotlib takes a second, and need not be there otherwise

        draw(measured, args.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.restore", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--size", type=_sizes, default="1G", metavar="8G,…", help="memory of the worker, in all")
    add("--processes", type=_numbers, default="1", metavar="1,4,…", help="it is split over these")
    add("--threads", type=_numbers, default="0", metavar="1,2,…", help="0: one per processor")
    add("--runs", type=int, default=1, metavar="N", help="of each restore; the median counts")
    add("--huge", action="store_true", help="memory with MADV_HUGEPAGE instead of 4 KiB pages")
    add("--warm", action="store_true", help="leave out cold restores and fio")
    add("--memory", type=float, default=4.0, metavar="GIB", help="read-ahead buffers (4)")
    add("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")
    add("--criu", default="", metavar="PATH", help="default: the tests' own, or criu in PATH")
    add("-o", "--output", choices=("table", "json"), default="table")
    add("--plot", type=Path, metavar="FILE", help="also draw it, as .svg or .png")
    add("--from", type=Path, dest="from_file", metavar="FILE", help="measure nothing: -o json's")
    return parser


def _run(args: argparse.Namespace) -> dict[str, object]:
    if os.geteuid() != 0:
        raise Failed("CRIU and the fill need root")
    try:
        from .measure import Plan, measured, processors
    except ImportError as error:
        raise Failed(f"{error}; install the checkout first: pip install -e .") from error
    criu = chosen_criu(args.criu)
    rows: list[Row] = []
    with _scratch(args.folder) as folder:
        plan = Plan(
            folder=folder,
            criu=criu,
            threads=[threads or processors() for threads in args.threads],
            runs=args.runs,
            huge=args.huge,
            cold=not args.warm,
            budget=int(args.memory * _UNITS["G"]),
        )
        for size in args.size:
            _check_room(folder, size)
            for processes in args.processes:
                rows += [vars(figures) for figures in measured(plan, size, processes)]
    if not args.warm and not shutil.which("fio"):
        print("# there is no fio: no ceiling for the disk", file=sys.stderr)
    return document(rows, criu.version)


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thaw-bench-", dir=parent) as folder:
        yield Path(folder)


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size * 1.05 + _UNITS["M"]:
        raise Failed(f"{folder} has {free >> 20} MiB free, too few for {size >> 20}: see --folder")


def _sizes(text: str) -> list[int]:
    try:
        return [int(float(word[:-1]) * _UNITS[word[-1]]) for word in text.split(",")]
    except (KeyError, IndexError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: like 8G or 512M,1G") from None


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: like 1,2,4")
    return numbers


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    sys.exit(main())
