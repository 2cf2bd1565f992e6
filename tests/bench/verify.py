"""How fast a snapshot is verified and sealed: `python -m tests.bench.verify --help`.

A worker with random private memory is dumped by CRIU and becomes a snapshot, with an archive of
random bytes beside its memory. In turn, each time with the snapshot out of the page cache: what fio
reads of it past the page cache, `thaw verify` before it is sealed (the CRC-32C of files and
extents), sealing (the SHA-256 of all blobs), and `thaw verify` after that (both). Every figure is
of the snapshot's bytes, each counted once however often it is looked at.

Needs root, gcc, CRIU 4.2 or later, an installed shim (`pip install -e .`) and fio; neither
containerd nor a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from shim.config import Config
from shim.errors import ThawError
from shim.snapshot.artifact import seal
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.verification import verify

from . import subject
from .bare import Failed, chosen_criu
from .disk import cool, files_below, fio_rate, in_memory

GIB = 1 << 30
_UNITS = {"M": 1 << 20, "G": GIB}
_LARGE = 64 << 20  # bytes: fio reads such files, the others do not matter
_KINDS = ("verify", "seal", "verify sealed")


@dataclass(frozen=True)
class Case:
    """The medians of one kind of work. `fio` is GiB/s, too, None where there is none."""

    kind: str
    threads: int
    gib_s: float
    cores: float  # seconds of processor time per second
    fio_gib_s: float | None


@dataclass(frozen=True)
class _Once:
    gib_s: float
    cores: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    try:
        measured = _run(args)
    except (Failed, ThawError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(json.dumps(measured, indent=2) if args.output == "json" else table(measured))
    return 0


def table(measured: dict[str, object]) -> str:
    """The figures for people."""
    cases = measured["cases"]
    assert isinstance(cases, list)
    rows = [["", "threads", "GiB/s", "fio", "%", "processors busy"]]
    for case in cases:
        fio = case["fio_gib_s"]
        rows.append(
            [
                case["kind"],
                str(case["threads"]),
                f"{case['gib_s']:.2f}",
                f"{fio:.2f}" if fio else "-",
                f"{case['gib_s'] / fio * 100:.0f}" if fio else "-",
                f"{case['cores']:.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rate = f"{measured['sha256_gib_s']:.2f} GiB/s"
    lines = [
        f"{measured['processors']} processors, each with SHA-256 at {rate}",
        f"{measured['size_gib']:.2f} GiB in {measured['blobs']} blobs",
        "",
    ]
    for first, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.verify", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--size", type=_size, default="1G", metavar="8G", help="memory of the worker")
    add("--archive", type=_size, metavar="1G", help="bytes of files (a quarter of the memory)")
    add("--threads", type=_numbers, default="0", metavar="2,0", help="0: one per processor")
    add("--runs", type=int, default=1, metavar="N", help="of each; the median counts")
    add("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")
    add("--criu", default="", metavar="PATH", help="default: the tests' own, or criu in PATH")
    add("-o", "--output", choices=("table", "json"), default="table")
    return parser


def _run(args: argparse.Namespace) -> dict[str, object]:
    if os.geteuid() != 0:
        raise Failed("CRIU needs root")
    criu = chosen_criu(args.criu)
    archive = args.size // 4 if args.archive is None else args.archive
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thaw-bench-", dir=args.folder) as folder:
        free = shutil.disk_usage(folder).free
        if free < (args.size + archive) * 1.05 + _UNITS["M"]:
            raise Failed(f"{folder} has {free >> 20} MiB free, too few: see --folder")
        _tell("a worker fills its memory and is dumped")
        snapshot = subject.make(Path(folder), criu, args.size, archive)
        if in_memory(snapshot.path):
            _tell(f"{folder} is in memory: nothing can be cold")
        return _measured(snapshot, args.threads, args.runs)


def _measured(snapshot: Snapshot, threads: Sequence[int], runs: int) -> dict[str, object]:
    files = files_below([snapshot.path])
    large = [file for file in files if file.stat().st_size >= _LARGE] or files
    size = sum(file.stat().st_size for file in files)
    rates: list[float] = []
    done: dict[tuple[str, int], list[_Once]] = {}
    for number in range(runs):
        # In turn: the speed of a disk drifts.
        for count in threads:
            _tell(f"run {number + 1}, {count or processors()} threads")
            cool(files)
            rate = fio_rate(large)
            rates += [rate] if rate is not None else []
            for kind, once in zip(_KINDS, _in_turn(snapshot, files, size, count), strict=True):
                done.setdefault((kind, count or processors()), []).append(once)
    fio = statistics.median(rates) if rates else None
    return {
        "processors": processors(),
        "sha256_gib_s": round(_sha256_rate(), 4),
        "size_gib": round(size / GIB, 4),
        "blobs": sum(1 for file in files if file.parent.name not in ("criu", "index")) + 1,
        "cases": [asdict(_median(*key, each, fio)) for key, each in done.items()],
    }


def _in_turn(snapshot: Snapshot, files: list[Path], size: int, threads: int) -> list[_Once]:
    """What each of _KINDS takes, one after another."""

    def look() -> None:
        verify(snapshot, Config(), threads).refuse()

    subject.unseal(snapshot)
    steps: list[Callable[[], object]] = [look, lambda: seal(snapshot, threads), look]
    done = []
    for step in steps:
        cool(files_below([snapshot.path]))
        done.append(_timed(step, size))
    return done


def _timed(step: Callable[[], object], size: int) -> _Once:
    used, began = _processor_seconds(), time.monotonic()
    step()
    seconds = time.monotonic() - began
    return _Once(size / GIB / seconds, (_processor_seconds() - used) / seconds)


def _median(kind: str, threads: int, done: Sequence[_Once], fio: float | None) -> Case:
    return Case(
        kind=kind,
        threads=threads,
        gib_s=round(statistics.median(once.gib_s for once in done), 4),
        cores=round(statistics.median(once.cores for once in done), 6),
        fio_gib_s=None if fio is None else round(fio, 4),
    )


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _sha256_rate() -> float:
    """GiB/s of one thread, from memory."""
    data = os.urandom(32 << 20)
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        hashlib.sha256(data).digest()
        seconds.append(time.monotonic() - began)
    return len(data) / GIB / min(seconds)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def _tell(what: str) -> None:
    print(f"# {what}", file=sys.stderr, flush=True)


def _size(text: str) -> int:
    try:
        return int(float(text[:-1]) * _UNITS[text[-1]])
    except (KeyError, IndexError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: like 8G or 512M") from None


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: like 2,0")
    return numbers


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    sys.exit(main())
