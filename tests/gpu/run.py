"""A PyTorch worker on a real GPU through containerd: cold start, snapshot, restores in new pods.

Run by run.sh, which says what it needs. The same worker is then dumped and restored by stock CRIU
with the driver's calls around it (stock.py), in the same run. A restore may not fall back to a cold
start here, and every answer is compared with the first: the figures are of workers that are whole.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from bed import fetch
from bed.dismantle import sweep
from bed.images import HOST_IMAGE
from bed.install import installed
from bed.lane import CRI_NAMESPACE, Installation, Lane
from bed.pod import Container, Mount, Pod
from gpu.asking import ask, wait_until_healthy
from gpu.machine import ANNOTATIONS, Machine, described, this_machine

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SNAPSHOT = "gpu-worker"
RESTORED = {"thaw.dev/snapshot": SNAPSHOT, "thaw.dev/on-failure": "fail"}
PORT = 8000
STARTING = 300.0  # seconds; nobody waits as briefly as the kubelet for what is measured
SAME = ("memory", "graph")


class Boot(NamedTuple):
    """One start of the worker: seconds from the pod's creation, and what it said."""

    started: float  # StartContainer has returned
    answered: float  # the first checksums are there
    answer: dict[str, Any]
    steps: str  # of a restore, as the shim's log has them


class Wrong(Exception):
    """What came back is not what was there."""


class GpuLane(Lane):
    """A lane whose engine finds the driver's libraries, wherever they are."""

    def __init__(self, installation: Installation, machine: Machine) -> None:
        self._libraries = str(machine.library.parent)
        super().__init__("2.x", installation)
        with open(self.places.thaw_config, "a") as file:
            file.write(f'gpu.library = "{machine.library}"\n')

    def environment(self) -> dict[str, str]:
        """The environment of containerd, and so of all shims."""
        return {**super().environment(), "LD_LIBRARY_PATH": self._libraries}


@contextmanager
def opened(installation: Installation, machine: Machine) -> Iterator[Lane]:
    """A lane that runs, and is taken down at the end of the block."""
    lane = GpuLane(installation, machine)
    try:
        lane.start()
        lane.import_images()
        yield lane
    finally:
        lane.take_down()


def main(words: Sequence[str]) -> int:
    """Run it all; 0 if every worker had all that it had before."""
    args = arguments(words)
    machine = this_machine(args.python)
    chosen = os.environ.get("THAW_TEST_INSTALLATION", "")
    installation = Installation(Path(chosen)) if chosen else installed(CHECKOUT)
    sweep(Path(tempfile.gettempdir()))
    with described(), opened(installation, machine) as lane:
        try:
            ours = through_containerd(lane, machine, args.gib, args.restores)
        except (RuntimeError, TimeoutError, grpc.RpcError, Wrong) as error:
            said = error.details() if isinstance(error, grpc.Call) else str(error)
            print(f"gpu: {said}\n{lane.log(120)}", file=sys.stderr)
            return 1
    result = {"gib": args.gib, "thaw": ours, "stock": stock(installation, machine, args.gib)}
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))
    return 0 if all(one["same"] for one in result["stock"]["restores"]) else 1


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    parser.add_argument("--gib", type=float, default=8.0, help="the worker's memory on the GPU")
    parser.add_argument("--restores", type=int, default=3, help="from the one snapshot")
    parser.add_argument("--python", default="python3", help="one that has PyTorch for the GPU")
    parser.add_argument("--json", default="", help="a file for the figures")
    return parser.parse_args(words)


def through_containerd(lane: Lane, machine: Machine, size: float, count: int) -> dict[str, Any]:
    """Cold start, snapshot, pod deleted, and restores each in a pod of its own."""
    say(f"booting a worker with {size:g} GiB on the GPU")
    cold, pod, container = boot(lane, machine, size, "cold", {})
    say("making a snapshot of it")
    began = time.monotonic()
    lane.thaw("checkpoint", container.id, SNAPSHOT, "--namespace", CRI_NAMESPACE)
    made = time.monotonic() - began
    compare("the worker after its snapshot", cold.answer, ask(pod.ip, PORT))
    lane.clear()
    boots = []
    for number in range(count):
        say(f"restoring it in a new pod, {number + 1} of {count}")
        back, *_ = boot(lane, machine, size, f"restored-{number}", RESTORED)
        compare("the restored worker", cold.answer, back.answer)
        boots.append(back)
        lane.clear()
    return {
        "cold": {"started": cold.started, "answered": cold.answered},
        "snapshot": {"seconds": made, **snapshot_of(lane)},
        "restores": [
            {"started": one.started, "answered": one.answered, "steps": one.steps} for one in boots
        ],
    }


def boot(
    lane: Lane, machine: Machine, size: float, name: str, annotations: Mapping[str, str]
) -> tuple[Boot, Pod, Container]:
    """Run a pod with the worker and ask it; cold and restored go exactly the same way."""
    began = time.monotonic()
    pod = lane.run_pod(name, annotations=annotations)
    container = pod.container(
        "worker",
        HOST_IMAGE,
        [machine.python, "/app/worker.py", str(size), str(PORT)],
        env=machine.environment,
        mounts=[*machine.mounts, Mount(HERE, "/app")],
        annotations=ANNOTATIONS,
    )
    container.start(STARTING)
    started = time.monotonic() - began
    wait_until_healthy(pod.ip, PORT)
    answer = ask(pod.ip, PORT)
    answered = time.monotonic() - began
    return Boot(started, answered, answer, steps_of(lane, container)), pod, container


def compare(who: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise Wrong unless all memory is what it was, and the process the one that was asked."""
    differ = [name for name in SAME if before[name] != after[name]]
    if differ:
        raise Wrong(f"{who} has another {' and another '.join(differ)} than before")
    if after["answers"] <= before["answers"]:
        raise Wrong(f"{who} was started anew: it has answered {after['answers']} times")


def steps_of(lane: Lane, container: Container) -> str:
    """What the shim's log says of the steps of a container's restore; "" if there was none."""
    for line in lane.places.log.read_text(errors="replace").splitlines():
        if f"container={container.id}" in line and "msg=restored" in line:
            found = re.findall(r'(?:timeline|cuda|fill|gib)=(?:"[^"]*"|\S+)', line)
            return " ".join(found)
    return ""


def snapshot_of(lane: Lane) -> dict[str, Any]:
    """The snapshot's own account: seconds of each step, bytes."""
    [path] = lane.places.snapshots.glob("snapshots/*/config.json")
    document = json.loads(path.read_text())
    return {
        "steps": {span["name"]: round(span["seconds"], 3) for span in document["spans"]},
        "bytes": sum(document["sizes"].values()),
        "gpu": document["gpu"],
    }


def stock(installation: Installation, machine: Machine, size: float) -> dict[str, Any]:
    """The same with CRIU and the driver alone, in a process that ends with it."""
    say("the same with stock CRIU and the driver's calls")
    folder = tempfile.mkdtemp(prefix="thaw-gpu-stock-", dir=fetch.cache_folder())
    command = [str(installation.bin / "python"), str(HERE / "stock.py"), folder]
    command += [str(fetch.criu()), str(machine.library), str(size), machine.python]
    libraries = {"LD_LIBRARY_PATH": str(machine.library.parent)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **libraries}
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def table(result: Mapping[str, Any]) -> list[str]:
    """What was measured, for people; seconds."""
    ours, theirs = result["thaw"], result["stock"]
    away, back = ours["snapshot"]["steps"], theirs["checkpoint"]
    best = min(one["answered"] for one in ours["restores"])
    fastest = min(one["total"] for one in theirs["restores"])
    rows: list[tuple[str, str, str]] = [
        (f"{result['gib']:g} GiB on the GPU, seconds", "Thaw", "stock CRIU + driver"),
        ("cold start", shown(ours["cold"]["answered"]), shown(back["cold start"])),
        ("lock", shown(away.get("lock")), shown(back["lock"])),
        ("checkpoint (GPU → memory)", shown(away.get("device")), shown(back["checkpoint"])),
        ("CRIU dump", shown(away.get("dump")), shown(back["dump"])),
        ("memory → GPU, afterwards", shown(away.get("device back")), "-"),
        ("snapshot, all in all", shown(ours["snapshot"]["seconds"]), "-"),
        ("size, GiB", gib(ours["snapshot"]["bytes"]), gib(theirs["bytes"])),
    ]
    for number, (one, other) in enumerate(pairs(ours["restores"], theirs["restores"]), 1):
        answered, started = one.get("answered"), one.get("started")
        rows.append((f"restore {number}: pod created → answer", shown(answered), "-"))
        rows.append(("  pod created → running", shown(started), shown(other.get("total"))))
        rows += [(f"    {name}", "", shown(other.get(name))) for name in ("criu", "restore")]
    rows.append(("best restore against the best stock one", f"{fastest / best:.1f} x", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return ["", *lines, "", *(f"steps: {one['steps']}" for one in ours["restores"])]


def pairs(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """One beside the other; what is missing is empty."""
    for number in range(max(len(ours), len(theirs))):
        one = ours[number] if number < len(ours) else {}
        yield one, theirs[number] if number < len(theirs) else {}


def shown(seconds: float | None) -> str:
    """A time, for people."""
    return "-" if seconds is None else f"{seconds:.2f}"


def gib(size: int) -> str:
    """A size, for people."""
    return f"{size / (1 << 30):.2f}"


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"gpu: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
