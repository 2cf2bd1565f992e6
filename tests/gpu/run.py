"""Workers on a real GPU through containerd, each part of it on its own. Run by run.sh.

Each part has a time limit and notes what it has found in the document of --json at once: whatever
becomes of a later one, nothing is lost, and a later run goes on with the same document.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import grpc
from bed.dismantle import sweep
from bed.install import installed
from bed.lane import Installation
from bench.disk import files_below
from gpu import faults, moved_faults, overheads, sanitizer, two
from gpu.ceilings import about, ceilings
from gpu.flow import Restores, stock, through_containerd
from gpu.lane import GpuLane, opened
from gpu.machine import described, this_machine
from gpu.record import Record, say
from gpu.report import report
from gpu.store import huge_pages
from gpu.subject import Subject, by_driver, everything, jaxed, pytorch, transformers
from gpu.vllm import vllm

CHECKOUT = Path(__file__).resolve().parents[2]
CLEARING = 60  # seconds that a lane may take to be rid of what a part has left
Part = Callable[[GpuLane, argparse.Namespace, Record], None]


class Late(Exception):
    """A part has taken longer than it may."""


def main(words: Sequence[str]) -> int:
    """Run what was asked for; 0 if every worker had all that it had before."""
    args = arguments(words)
    machine = this_machine(args.python, args.device)
    chosen = os.environ.get("THAW_TEST_INSTALLATION", "")
    installation = Installation(Path(chosen)) if chosen else installed(CHECKOUT)
    sweep(Path(tempfile.gettempdir()))
    record = Record.opened(args.json)
    record.put(about(machine), "machine")
    kept = huge_pages if args.store == "huge" else nullcontext
    with described(), opened(installation, machine) as lane, kept(lane):
        for setting in args.set:
            lane.configure(*setting.split("=", 1))
        parts = args.only.split(",")
        failed = [name for name in parts if not _attempt(lane, args, name, record)]
    print("\n".join(report(record.found)), flush=True)
    print(f"gpu: failed: {', '.join(failed)}" if failed else "gpu: all well", flush=True)
    return 1 if failed else 0


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    add = parser.add_argument
    add("--only", default="pytorch,transformers,faults", help=f"of {', '.join(PARTS)}")
    add("--gib", type=float, default=8.0, help="the PyTorch worker's memory on the GPU")
    add("--shapes", default="0.6B,4B,8B", help="of the transformers workers: see model.py")
    add("--tokens", type=int, default=16, help="that each of them makes")
    add("--cache", type=float, default=0.0, help="GiB of zeros beside each of these")
    add("--workers", default="everything,expandable,jax", help="of the part memory")
    add("--paths", default="library", help="library, driver: how GPU memory is moved; or both")
    add(
        "--held",
        type=int,
        default=0,
        help="restores with the node's cache, at once and after a while",
    )
    add("--rounds", type=int, default=0, help="then so often: restored, and snapshotted again")
    add("--store", default="", help="huge: snapshots lie on a tmpfs of huge pages")
    add("--cold", type=int, default=1, help="restores with the page cache cold")
    add("--warm", type=int, default=3, help="restores with the page cache warm")
    add("--stock", default="1,1", help="stock CRIU's, cold and warm; 0,0: none")
    add("--vllm", default="0.6B:sleep,8B", help="shapes; with :sleep, with its sleep and wake-up")
    add("--vllm-site", default="", help="a folder with vLLM, for PYTHONPATH")
    add("--sanitizer", default="compute-sanitizer", help="NVIDIA's, of the CUDA toolkit")
    add("--faults", default="", help="only those of (moved_)faults.py; all by default")
    add("--limit", type=int, default=420, help="seconds that a part may take")
    add("--set", action="append", default=[], help="KEY=VALUE of Thaw's configuration, as TOML")
    add("--label", default="", help="added to the workers' names in the document")
    add("--python", default="python3", help="one that has PyTorch for the GPU")
    add("--device", default="cuda", help="cpu: to try these tests, without a GPU")
    add("--json", default="", help="a file for what is found; goes on with what is there")
    return parser.parse_args(words)


def _attempt(lane: GpuLane, args: argparse.Namespace, name: str, record: Record) -> bool:
    """Do one part; what goes wrong is told, and ends this part alone."""
    began = time.monotonic()
    try:
        with _within(args.limit, name):
            PARTS[name](lane, args, record)
        outcome = "done"
    except Exception as error:  # noqa: BLE001 - the other parts are to be run
        outcome = error.details() if isinstance(error, grpc.Call) else str(error)
        outcome = outcome or type(error).__name__
        print(f"{traceback.format_exc()}\n{lane.log(20)}", file=sys.stderr)
        # What the workers have said is gone with their pods, and says more than we know.
        for log in lane.places.pods.rglob("*.log"):
            print(log.read_text(errors="replace")[-20000:], file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - began, 1)
    record.put({"outcome": outcome, "seconds": seconds}, "parts", name)
    say(f"{name}: {outcome} ({seconds} s)")
    try:
        with _within(CLEARING, "clearing up"):
            lane.clear()
            lane.forget()
    except Exception as error:  # noqa: BLE001 - the lane is taken down in the end, by force
        say(f"{name}: not cleared up: {error}")
    return outcome == "done"


@contextmanager
def _within(seconds: int, what: str) -> Iterator[None]:
    """A block that ends by Late if it takes longer."""

    def late(*_: object) -> None:
        raise Late(f"{what} took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _both(lane: GpuLane, args: argparse.Namespace, subject: Subject, record: Record) -> None:
    """A worker through containerd, and the same with stock CRIU; the first one's snapshot is also
    what the disk's ceiling is measured with.
    """

    def measured(folder: Path) -> None:
        if "ceilings" not in record.found:
            record.put(ceilings(lane.machine, files_below([folder / "pages"])), "ceilings")

    if args.label:
        subject = replace(subject, name=f"{subject.name}-{args.label}")
    ours = Restores(args.cold, args.warm, args.held, args.rounds)
    for path in args.paths.split(","):
        if path == "driver":  # one restore is enough to stand beside
            once = Restores(0, min(1, args.warm))
            through_containerd(lane, by_driver(subject), once, record, measured)
        else:
            through_containerd(lane, subject, ours, record, measured)
    theirs = Restores(*map(int, args.stock.split(",")))
    if theirs.conditions and not subject.acts:
        stock(lane, subject, theirs, record)


def _pytorch(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    _both(lane, args, pytorch(args.gib, args.device), record)


def _transformers(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    for shape in args.shapes.split(","):
        _both(lane, args, transformers(shape, args.tokens, args.device, args.cache), record)


def _memory(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    for name in args.workers.split(","):
        if name == "jax":
            subject = jaxed(args.gib, args.device)
        else:
            chosen = name == "expandable"
            subject = everything(args.gib, args.cache, args.device, expandable=chosen)
        _both(lane, args, subject, record)


def _overhead(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    assert lane.installation is not None
    record.put(overheads.measured(lane.machine, lane.installation, args.device), "overhead")


def _sanitizer(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    assert lane.installation is not None
    found = sanitizer.found_by(args.sanitizer, lane.machine, lane.installation, args.device)
    record.put(found, "sanitizer")


def _vllm(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    for chosen in args.vllm.split(","):
        shape, _, sleep = chosen.partition(":")
        subject = vllm(shape, args.vllm_site, sleep=bool(sleep))
        _both(lane, args, subject, record)


def _moved(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    two.moved(lane, args.gib, record)


def _nccl(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
    for path in args.paths.split(","):
        two.shared(lane, args.gib / 2, args.device, path, Restores(0, args.warm), record)


def _faults(acts: Mapping[str, faults.Act]) -> Part:
    """The part that tries these, or of them what was chosen."""

    def part(lane: GpuLane, args: argparse.Namespace, record: Record) -> None:
        bad = [
            name
            for name in (args.faults.split(",") if args.faults else acts)
            if not faults.attempt(lane, name, acts[name], args.device, record)
        ]
        if bad:
            raise RuntimeError(f"not as they should be: {', '.join(bad)}")

    return part


PARTS: dict[str, Part] = {
    "pytorch": _pytorch,
    "transformers": _transformers,
    "vllm": _vllm,
    "memory": _memory,
    "overhead": _overhead,
    "sanitizer": _sanitizer,
    "faults": _faults(faults.ALL),
    "moved-faults": _faults(moved_faults.ALL),
    "moved": _moved,
    "nccl": _nccl,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
